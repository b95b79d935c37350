"""Language models and tokenizers from a hub, a folder or a GGUF file.

Weights come from safetensors or GGUF; no code is run.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from uptake.adaptation.by_size import weights_of
from uptake.errors import BadInput, Missing
from uptake.gguf import dequantised, is_gguf
from uptake.hub import cached_if_silent
from uptake.kernels import keep_few
from uptake.lm.causal import Causal
from uptake.lm.nplm import register
from uptake.lm.number_format import AUTO, format_for
from uptake.lm.pretrained import Pretrained
from uptake.lm.seq2seq import Seq2Seq
from uptake.text.tokenizer import Tokenizer

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def load(name: str, device: str = "cpu", dtype: str = "float32") -> Pretrained:
    """Load a language model and its tokenizer by hub name, folder or GGUF file.

    A decoder is a `Causal`, an encoder-decoder, such as T5 or Switch, a `Seq2Seq`. Weights are read from
    safetensors or GGUF only and no code of the repository is run. The dtype `auto` goes by the model's size
    and the device (lm/number_format.py). Raises BadInput or Missing, in one line, where
    there is no usable model.
    """
    if not isinstance(name, str | os.PathLike):
        raise BadInput(f"model: a {type(name).__name__} is no name; give a name, a folder or a GGUF file")
    keep_few()
    check(device, dtype)
    with _readable(name) as (source, quantisation):
        tokenizer = _tokenizer(name, source)
        kind, wrapped = _kind(name, source)
        if dtype == AUTO:
            dtype = format_for(device, _or_missing(name, lambda: _weights(source, kind)))
        module, report = _or_missing(
            name,
            lambda: kind.from_pretrained(
                source,
                dtype=DTYPES[dtype],
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            ),
        )
    # The loader would make weights up at random and say so in a log.
    if lacking := sorted(report["missing_keys"]):
        raise BadInput(
            f"model {name!r}: its files lack {lacking[0]} and {len(lacking) - 1} more of the weights that "
            "config.json promises; give a language model, whole"
        )
    try:
        module = module.to(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise BadInput(f"device {device!r} cannot hold {name!r} in {dtype}: {_first_line(error)}") from error
    return wrapped(module, tokenizer, name, quantisation=quantisation)


def load_causal(name: str, device: str, dtype: str, what: str) -> Causal:
    """Load a model as `load` does for what needs a decoder, `what`. Raises BadInput for another kind."""
    return as_causal(load(name, device, dtype), what)


def as_causal(lm: Pretrained, what: str) -> Causal:
    """Return the model as a decoder. Raises BadInput, in a line that begins with `what`, for another."""
    if not isinstance(lm, Causal):
        raise _no_decoder(lm.name or type(lm.module).__name__, what)
    return lm


def load_causal_tokenizer(name: str, what: str) -> Tokenizer:
    """Load the tokenizer alone, for what needs a decoder, `what`. Raises BadInput for another kind."""
    with _readable(name) as (source, _):
        if _kind(name, source)[1] is not Causal:
            raise _no_decoder(name, what)
        return _tokenizer(name, source)


def _no_decoder(name: str, what: str) -> BadInput:
    return BadInput(
        f"{what} needs a causal model, and {name} is an encoder-decoder: give a decoder, such as SmolLM2"
    )


def _kind(name: str, source: str) -> tuple[Any, type[Causal] | type[Seq2Seq]]:
    """Return what loads a model of this configuration, and what it is here."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    register()
    config = _or_missing(name, lambda: AutoConfig.from_pretrained(source, trust_remote_code=False))
    if getattr(config, "is_encoder_decoder", False):
        return AutoModelForSeq2SeqLM, Seq2Seq
    return AutoModelForCausalLM, Causal


def _weights(source: str, kind: Any) -> int:
    """Return how many weights a model has, by its configuration alone."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    with torch.device("meta"):
        module = kind.from_config(config, trust_remote_code=False)
    return weights_of(module)


def load_tokenizer(name: str) -> Tokenizer:
    """Load a model's tokenizer by hub name, folder or GGUF file. Raises BadInput or Missing, in one line."""
    with _readable(name) as (source, _):
        return _tokenizer(name, source)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[tuple[str, str]]:
    """Around a reading: yield what transformers reads a model from, and how a GGUF file was quantised."""
    if is_gguf(name):
        with dequantised(name) as found:
            yield str(found.folder), found.quantisation
        return
    folder = Path(name)
    if folder.is_dir():
        _check_folder(folder)
    elif folder.exists() or name.startswith((".", "/", "~")):
        raise BadInput(
            f"model {name!r} is no folder: give a folder with config.json and *.safetensors, a GGUF "
            "file or a hub name"
        )
    if folder.is_dir():
        yield name, ""
    else:
        yield str(cached_if_silent(name, "model") or name), ""


def _tokenizer(name: str, source: str) -> Tokenizer:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    register()  # a tokenizer's folder may hold a model of a kind that transformers does not know
    # By a model's kind AutoTokenizer takes a class with its own way of cutting a text, not the file's.
    kind: Any = PreTrainedTokenizerFast if is_gguf(name) else AutoTokenizer
    return Tokenizer(_or_missing(name, lambda: kind.from_pretrained(source, trust_remote_code=False)))


def check(device: str, dtype: str) -> None:
    """Raise BadInput for a number format there is not, or a device that is not here."""
    if dtype not in (AUTO, *DTYPES):
        raise BadInput(f"dtype {dtype!r}: use one of {', '.join((AUTO, *DTYPES))}")
    check_device(device)


def check_device(device: str) -> None:
    """Raise BadInput for a device that cannot hold a number here and give it back."""
    try:
        torch.ones(1, device=device).item()
    except Exception as error:  # every backend fails in a manner of its own
        raise BadInput(
            f"device {device!r} cannot be used here ({_first_line(error)[:80]}): use cpu, cuda, cuda:1 or mps"
        ) from error


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} has no config.json: give the folder that save_pretrained wrote")
    if not any(folder.glob("*.safetensors")):
        cure = (
            "convert pytorch_model.bin to safetensors first"
            if any(folder.glob("*.bin"))
            else "copy its weights"
        )
        raise BadInput(f"{folder} has no *.safetensors weights: {cure}")


def _or_missing(name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:  # the hub client and the loaders raise many kinds
        if "ignore_mismatched_sizes" in str(error):
            raise BadInput(
                f"model {name!r}: its weights are not of the sizes that config.json says; put both back from "
                "one copy"
            ) from error
        raise Missing(
            f"model {name!r} cannot be loaded ({_first_line(error)}): give a folder that holds it"
        ) from error


def _first_line(error: BaseException) -> str:
    first = next(iter(str(error).strip().splitlines()), "").rstrip(" .:")[:200]
    # A bare KeyError is one word and explains nothing.
    return first if " " in first else f"{type(error).__name__} {first}".strip()
