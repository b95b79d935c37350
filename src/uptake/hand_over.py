"""An adapter handed over to a program that serves models: loaded there, and asked whether it really answers.

A server that loads an adapter and matches none of its layers, or keeps an older one of the same name, answers
as if nothing were wrong. So what it answers is compared with what the adapted model and its base answer here.
This file knows no method and no store.
"""

import hashlib
import http.client
import json
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uptake.errors import BadInput, Mismatch

if TYPE_CHECKING:  # who names a target, such as the door of a server, needs no PyTorch
    from torch import Tensor

    from uptake.lm.base import LM

SECONDS = 60.0  # that a server may take for one answer
RIVALS = 5  # likeliest tokens that are compared
PROBES, PROBE_TOKENS = 4, 48
CLOSER = 4  # times nearer to the adapted model than that is to the base
LEAST = 0.02  # nats between adapted and base that a probe can tell from rounding
_OUTSIDE = (OSError, http.client.HTTPException, ValueError, KeyError, IndexError, TypeError)


@dataclass(frozen=True)
class Target(ABC):
    """A server elsewhere, at the address where its API begins."""

    url: str

    @abstractmethod
    def load(self, name: str, folder: Path) -> None:
        """Let the server load an adapter, from a folder that it sees under the same path."""

    @abstractmethod
    def unload(self, name: str) -> None:
        """Let the server drop it."""

    @abstractmethod
    def likeliest(self, name: str, ids: Sequence[int]) -> dict[int, float]:
        """Return the log-probabilities of the likeliest tokens that follow `ids`, under the adapter."""

    def call(self, path: str, body: Any = None) -> Any:
        """Return what an endpoint answers. Raises OSError and its like where it does not."""
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(
            self.url.rstrip("/") + path, data, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=SECONDS) as found:
            raw = found.read()
        return json.loads(raw) if raw[:1] in (b"{", b"[") else raw.decode("utf8", "replace")


class VLLM(Target):
    """vLLM, started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1."""

    def load(self, name: str, folder: Path) -> None:
        self.call("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    def unload(self, name: str) -> None:
        self.call("/v1/unload_lora_adapter", {"lora_name": name})

    def likeliest(self, name: str, ids: Sequence[int]) -> dict[int, float]:
        body = {"model": name, "prompt": list(ids), "max_tokens": 1, "temperature": 0, "logprobs": RIVALS}
        found = self.call("/v1/completions", {**body, "return_tokens_as_token_ids": True})
        (best,) = found["choices"][0]["logprobs"]["top_logprobs"]
        return {int(token.removeprefix("token_id:")): float(value) for token, value in best.items()}


class SGLang(Target):
    """SGLang, started with --enable-lora."""

    def load(self, name: str, folder: Path) -> None:
        told = self.call("/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if not told["success"]:
            raise OSError(str(told.get("error_message", "it refuses the adapter")))

    def unload(self, name: str) -> None:
        self.call("/unload_lora_adapter", {"lora_name": name})

    def likeliest(self, name: str, ids: Sequence[int]) -> dict[int, float]:
        body = {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0},
            "return_logprob": True,
            "top_logprobs_num": RIVALS,
            "lora_path": name,
        }
        (best,) = self.call("/generate", body)["meta_info"]["output_top_logprobs"]
        return {int(token): float(value) for value, token, *_ in best}


class LlamaCpp(Target):
    """llama.cpp's server, which loads adapters as GGUF files at its start alone."""

    def load(self, name: str, folder: Path) -> None:
        self._id(name)

    def unload(self, name: str) -> None:
        """Do nothing: an adapter works in requests that ask for it, and leaves with the process."""

    def likeliest(self, name: str, ids: Sequence[int]) -> dict[int, float]:
        own = self._id(name)
        # Every adapter's scale is sent: those left out keep what an earlier request gave them.
        scales = [{"id": each, "scale": float(each == own)} for each in self._ids().values()]
        body = {"prompt": list(ids), "n_predict": 1, "n_probs": RIVALS, "cache_prompt": False, "lora": scales}
        best = self.call("/completion", body)["completion_probabilities"][0]["top_logprobs"]
        return {int(each["id"]): float(each["logprob"]) for each in best}

    def _ids(self) -> dict[str, int]:
        return {Path(each["path"]).stem: int(each["id"]) for each in self.call("/lora-adapters")}

    def _id(self, name: str) -> int:
        found = self._ids()
        if name not in found:
            raise BadInput(
                f"llama.cpp at {self.url} has no adapter {name}: convert the folder with its "
                f"convert_lora_to_gguf.py to {name}.gguf, and start it with --lora {name}.gguf "
                "--lora-init-without-apply"
            )
        return found[name]


KINDS: dict[str, type[Target]] = {"vllm": VLLM, "sglang": SGLang, "llamacpp": LlamaCpp}


def target(text: str) -> Target:
    """Return what `KIND=URL` names. Raises BadInput."""
    kind, _, url = text.partition("=")
    if kind not in KINDS or not url.startswith(("http://", "https://")):
        raise BadInput(f"{text!r}: write KIND=URL, KIND being one of {', '.join(KINDS)}")
    return KINDS[kind](url)


def adapter_name(folder: Path) -> str:
    """Return the name of an adapter: its content decides, so one name never means two adapters."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        raw = path.read_bytes()
        found.update(f"{path.name}:{len(raw)}:".encode() + raw)
    return f"uptake-{found.hexdigest()[:16]}"


@dataclass(frozen=True)
class Handed:
    """An adapter that answers elsewhere: its name there, and how far what it says is from ours, in nats."""

    name: str
    from_adapted: float
    from_base: float


def hand_over(to: Target, folder: Path, adapted: "LM", base: "LM", texts: Sequence[str]) -> Handed:
    """Let a server load an exported adapter, and make sure that it answers with it.

    `texts` are what the adapter has read: what follows their beginnings is asked for. An adapter that
    answers otherwise than `adapted`, or as `base`, is unloaded again. Raises Mismatch then, BadInput
    where the server does not do what it is asked, or where adapted and base are too alike to be told apart.
    """
    prompts = [tuple(base.tokenizer.opened(text)[:PROBE_TOKENS]) for text in texts[:PROBES] if text]
    if not prompts:
        raise BadInput("no text to probe the adapter with: give one that it has read")
    ours, plain = _next(adapted, prompts), _next(base, prompts)
    name, folder = adapter_name(folder), folder.resolve()
    kind = type(to).__name__
    try:
        to.load(name, folder)
    except _OUTSIDE as error:
        raise BadInput(f"{kind} at {to.url} did not load {folder}: {_why(error)}") from None
    try:
        found = _measured(name, to, prompts, ours, plain)
    except BaseException as error:
        _dropped(to, name)
        if isinstance(error, _OUTSIDE):
            told = f"{kind} at {to.url} did not answer a probe: {_why(error)}; the adapter was unloaded there"
            raise BadInput(told) from None
        raise
    return found


def _measured(
    name: str, to: Target, prompts: Sequence[tuple[int, ...]], ours: "list[Tensor]", plain: "list[Tensor]"
) -> Handed:
    near, far, between, count = 0.0, 0.0, 0.0, 0
    for ids, adapted, base in zip(prompts, ours, plain, strict=True):
        for token, value in to.likeliest(name, ids).items():
            near += abs(value - float(adapted[token]))
            far += abs(value - float(base[token]))
            between += abs(float(adapted[token]) - float(base[token]))
            count += 1
    found = Handed(name, near / count if count else float("nan"), far / count if count else float("nan"))
    if count and between / count < LEAST:
        raise BadInput(
            f"adapted and base differ by {between / count:.3f} nats, which is too little for a probe: "
            "adapt further, with a larger learning rate or more passages"
        )
    # No number at all is no answer: written so that NaN fails.
    if not CLOSER * found.from_adapted < min(found.from_base, between / max(1, count)):
        raise Mismatch(
            f"{type(to).__name__} at {to.url} does not answer with the adapter: its log-probabilities are "
            f"{found.from_adapted:.3f} nats from the adapted model's, {found.from_base:.3f} from the base's; "
            "it was unloaded there. See that it serves the same base, and its log for layers left out"
        )
    return found


def _next(lm: "LM", prompts: Sequence[tuple[int, ...]]) -> "list[Tensor]":
    """Return the log-probabilities of every token after each prompt."""
    import torch

    from uptake.lm.examples import Example

    with torch.no_grad():
        return [lm.predictions([Example(ids, (0,))])[0][0].double().cpu() for ids in prompts]


def _dropped(to: Target, name: str) -> None:
    try:
        to.unload(name)
    except _OUTSIDE as error:
        raise BadInput(
            f"{type(to).__name__} at {to.url} has an adapter {name} that does not answer, and did not unload "
            f"it: {_why(error)}; unload it by hand"
        ) from None


def _why(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.read(200).decode('utf8', 'replace')}".replace("\n", " ").strip()
    return (str(error) or type(error).__name__).partition("\n")[0][:200]
