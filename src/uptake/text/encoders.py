"""Encoders: sentence-transformers models, or the hidden states of a language model.

Weights are read from safetensors alone, and code that comes with a model is never run. Libraries
that load models are imported when an encoder is made.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from uptake.codec import loads
from uptake.errors import BadInput, Missing
from uptake.gguf import dequantised, is_gguf
from uptake.hub import cached_if_silent
from uptake.kernels import keep_few
from uptake.model_checks import check_model
from uptake.showing import one_line
from uptake.text.types import Embedder
from uptake.text.utf8 import storable

if TYPE_CHECKING:
    import torch

DEFAULT_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
DTYPES = ("float32", "bfloat16", "float16")

_STATES = "lm:"
_CURE = (
    "give a folder with --encoder DIR, the language model's own states with --encoder lm:MODEL, "
    "or search by words with --retriever lexical"
)
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model"]
_UNWANTED = ["onnx/*", "openvino/*"]
_TOKENS_A_BATCH = 8192
# What tokenizers do differently: case, accents, spaces, digits, scripts, emoji.
_PROBE = (
    "The Quick  brown\tfox's naïve café cost $1,234.56\n    def f(x): return x_1\n日本語 Ελλάδα \U0001f600"
)


def make_encoder(spec: str, device: str = "cpu", dtype: str = "bfloat16") -> Embedder:
    """Load an encoder: a sentence-transformers name or folder, or `lm:` and a language model's.

    `dtype` is that of the weights; vectors are float32 and of length one. Raises Missing where the
    model cannot be loaded, BadInput.
    """
    if dtype not in DTYPES:
        raise BadInput(f"dtype {dtype!r}: use {', '.join(DTYPES)}")
    keep_few()
    if spec.startswith(_STATES):
        return StatesEncoder(spec.removeprefix(_STATES), device, dtype)
    return SentenceEncoder(spec, device, dtype)


class SentenceEncoder:
    """A sentence-transformers model by name or folder."""

    def __init__(self, name: str, device: str = "cpu", dtype: str = "bfloat16") -> None:
        folder = _folder(name)
        _check_modules(folder)
        try:
            from sentence_transformers import SentenceTransformer
            from transformers.utils import logging
        except ImportError as error:
            raise Missing(
                f"encoder {name!r} needs sentence-transformers: pip install 'uptake[encoders]', "
                "or use --encoder lm:MODEL or --retriever lexical"
            ) from error
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            self._model: Any = SentenceTransformer(
                str(folder),
                device=device,
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": dtype, "use_safetensors": True},
            ).eval()
        except Exception as error:  # the loaders raise many kinds
            raise _cannot(name, error) from error
        check_model(
            getattr(self._model[0], "auto_model", self._model), self._model.tokenizer, f"encoder {name!r}"
        )
        self.spec = _absolute(name)
        self.dtype = dtype
        self.tokenizer: Any = self._model.tokenizer
        self.window = int(self._model.max_seq_length or 8192)  # tokens that are read of a text
        vector = self._model.encode(["a"])[0]
        self.dimensions = len(vector)
        pooling = [
            [type(module).__name__, getattr(module, "pooling_mode", None)] for module in list(self._model)[1:]
        ]
        settings = ["sentence", dtype, self._model.max_seq_length, pooling]
        self.fingerprint = _fingerprint(self._model.parameters(), self._model.tokenizer, settings)

    @property
    def modules(self) -> "list[torch.nn.Module]":
        """The transformer, whose `model` is that of the library transformers, then what pools its states."""
        return list(self._model)

    def in_float32(self) -> "SentenceEncoder":
        """Return the same encoder with a model of its own, read in float32."""
        return SentenceEncoder(self.spec, str(self._model.device), "float32")

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text as the model reads them, at most its window."""
        clean = [storable(text) for text in texts]
        found = self._model.preprocess(clean) if clean else {"input_ids": [], "attention_mask": []}
        rows = zip(found["input_ids"], found["attention_mask"], strict=True)
        return [ids[mask.bool()].tolist() for ids, mask in rows]

    def write(self, folder: Path) -> None:
        """Write it to a new folder, in the form that `make_encoder` reads."""
        self._model.save_pretrained(str(folder), create_model_card=False)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row of length one a text, what exceeds the model's window left out."""
        clean = [storable(text) for text in texts]
        if not clean:
            return np.empty((0, self.dimensions), np.float32)
        # A fixed order, so that the same texts share the same batches whatever order they came in.
        order = sorted(range(len(clean)), key=lambda place: (-len(clean[place]), clean[place]))
        vectors = self._model.encode([clean[place] for place in order], show_progress_bar=False)
        wide = np.asarray(vectors, dtype=np.float32)
        # Normalised here, for the model would do so in the precision of its weights.
        wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
        return wide[np.argsort(order)]


class StatesEncoder:
    """A language model's last hidden states, averaged over a text's tokens."""

    def __init__(self, name: str, device: str = "cpu", dtype: str = "bfloat16") -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        with _language_model(name) as folder:
            try:
                # AutoTokenizer might take a class with its own way of cutting a text, not a GGUF file's.
                kind: Any = PreTrainedTokenizerFast if is_gguf(name) else AutoTokenizer
                self.tokenizer: Any = kind.from_pretrained(folder, trust_remote_code=False)
                model: Any = AutoModel.from_pretrained(
                    folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
                )
            except Exception as error:  # the loaders raise many kinds
                raise _cannot(_STATES + name, error) from error
        config = model.config
        self._model = (model.get_encoder() if config.is_encoder_decoder else model).eval().to(device)
        check_model(self._model, self.tokenizer, f"encoder {_STATES + name!r}")
        # Some tokenizers give a huge number for "no limit", some models have none.
        limits = [getattr(config, "max_position_embeddings", None), self.tokenizer.model_max_length]
        # Tokens that are read of a text.
        self.window = min([limit for limit in limits if limit and limit > 0] + [8192])
        self.spec = _STATES + _absolute(name)
        self.dtype = dtype
        self.dimensions = int(config.hidden_size)
        settings = ["states", dtype, self.window, "mean"]
        self.fingerprint = _fingerprint(self._model.parameters(), self.tokenizer, settings)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row of length one a text, what exceeds the model's window left out."""
        import torch

        vectors = np.zeros((len(texts), self.dimensions), np.float32)
        encoded = [self._ids(text) for text in texts]
        order = sorted(
            (place for place, ids in enumerate(encoded) if ids), key=lambda p: (-len(encoded[p]), encoded[p])
        )
        with torch.inference_mode():
            while order:
                some = order[: max(1, _TOKENS_A_BATCH // len(encoded[order[0]]))]
                vectors[some] = self._pooled([encoded[place] for place in some])
                order = order[len(some) :]
        return vectors

    def _ids(self, text: str) -> list[int]:
        # Text far beyond the window need not be cut into tokens.
        text = storable(text[: 64 * self.window])
        return list(self.tokenizer(text, truncation=True, max_length=self.window)["input_ids"])

    def _pooled(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        import torch

        longest = len(batch[0])
        device = self._model.device
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in batch], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch], device=device)
        states: torch.Tensor = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        # No division by the token counts: only the direction matters.
        pooled = torch.nn.functional.normalize((states * mask[:, :, None]).sum(dim=1), dim=1)
        return np.asarray(pooled.cpu().numpy(), dtype=np.float32)


@contextlib.contextmanager
def _language_model(name: str) -> Iterator[Path]:
    """Around a reading: yield the folder of a language model, or what a GGUF file was dequantised into."""
    if is_gguf(name):
        with dequantised(name) as found:
            yield found.folder
    else:
        yield _folder(name)


def _folder(name: str) -> Path:
    """Return the folder of a model, fetched from the hub if need be, and refuse pickled weights."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or not name:
            raise Missing(f"encoder {name!r}: no such folder; {_CURE}")
        try:
            from huggingface_hub import snapshot_download

            folder = cached_if_silent(name, "encoder") or Path(
                snapshot_download(name, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
            )
        except Missing as error:
            raise Missing(f"{error}; {_CURE}") from None
        except Exception as error:  # the hub client raises many kinds
            raise _cannot(name, error) from error
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*/*.safetensors")):
        raise Missing(
            f"encoder {name!r}: {folder} holds no *.safetensors weights, and .bin is not read; {_CURE}"
        )
    return folder


def _cannot(name: str, error: Exception) -> Missing:
    return Missing(
        f"encoder {name!r} cannot be loaded ({one_line(str(error) or type(error).__name__, 120)}); {_CURE}"
    )


def _check_modules(folder: Path) -> None:
    """Refuse what sentence-transformers would load besides its own modules' safetensors."""
    path = folder / "modules.json"
    if not path.is_file():
        return
    try:
        for module in loads(list[dict[str, Any]], path.read_bytes()):
            part = folder / module["path"]
            if not module["type"].startswith("sentence_transformers."):
                raise BadInput(
                    f"{path}: module {module['type']!r} is foreign code, which is not run; {_CURE}"
                )
            if (part / "pytorch_model.bin").exists() and not (part / "model.safetensors").exists():
                raise BadInput(f"{part}: weights in .bin are not read; convert them to safetensors")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not a list of modules; {_CURE}") from error


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def _fingerprint(parameters: "Iterable[torch.Tensor]", tokenizer: Any, settings: Sequence[object]) -> str:
    """Name what decides the vectors: weights, vocabulary, the tokens of a probe text, settings."""
    import torch

    # Sorted and nameless, for libraries rename their modules from one version to the next.
    weights = sorted(
        hashlib.sha256(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data).hexdigest()
        for tensor in parameters
    )
    vocabulary = sorted(tokenizer.get_vocab().items())
    parts = [weights, vocabulary, list(tokenizer(_PROBE)["input_ids"]), list(settings)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
