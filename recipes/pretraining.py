"""What recipes that train networks from scratch share: text as one stream of tokens, and steps that resume.

Several networks are trained in turn on the same batches, so that they have read the same at every point.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

import uptake
from uptake.adaptation.tensors import read_tensors, write_tensors
from uptake.errors import BadInput
from uptake.text.tokenizer import Tokenizer
from uptake.text.types import stable_hash

# Kinds of text of the mini-Pile whose documents share something with one another; novels do not.
DOMAINS = (
    "news_reuters21578", "wikipedia", "textbook_us_history", "python_peps", "stackexchange", "pmc_ccby",
)  # fmt: skip
FORMAT = "uptake-pretraining-1"
PATIENCE = 2.0  # seconds until another try


@dataclass(frozen=True)
class Stream:
    """Documents one after another as tokens, each behind an opening token; `owner[i]` is that of token i."""

    tokens: NDArray[np.int32]
    owner: NDArray[np.int32]
    domains: tuple[str, ...]  # of each document
    bytes: NDArray[np.int64]  # of each document

    def windows(self, size: int) -> NDArray[np.int64]:
        """Return where whole windows of so many tokens begin, one behind another."""
        return np.arange(0, len(self.tokens) - size + 1, size)

    def at(self, starts: Sequence[int] | NDArray[np.int64], size: int) -> NDArray[np.int32]:
        """Return the windows that begin there, [windows, size]."""
        return self.tokens[np.asarray(starts)[:, None] + np.arange(size)]


def stream(files: Sequence[tuple[str, Path]], tokenizer: Tokenizer, most: float = math.inf) -> Stream:
    """Return the documents of (domain, file) pairs, shuffled by a hash, up to so many characters in all."""
    found = [(name, each) for name, path in files for each in uptake.read(path)]
    found.sort(key=lambda pair: stable_hash("stream", pair[1].id))
    kept, size = [], 0
    for pair in found:
        if size < most:
            kept.append(pair)
            size += len(pair[1].text)
    texts = [document.text for _, document in kept]
    backend: Any = tokenizer.inner.backend_tokenizer
    rows = [each.ids for each in backend.encode_batch_fast(texts, add_special_tokens=False)]
    lengths = np.array([1 + len(row) for row in rows])
    tokens = np.concatenate([np.array([tokenizer.opening, *row], np.int32) for row in rows])
    return Stream(
        tokens,
        np.repeat(np.arange(len(rows), dtype=np.int32), lengths),
        tuple(name for name, _ in kept),
        np.array([len(text.encode()) for text in texts]),
    )


def pile(folder: Path, part: str, tokenizer: Tokenizer, most: float = math.inf) -> Stream:
    """Return a part of the mini-Pile, the kinds that are there."""
    return stream(_there(folder, part), tokenizer, most)


def _there(folder: Path, part: str) -> list[tuple[str, Path]]:
    files = [(name, folder / name / f"{part}.jsonl.xz") for name in DOMAINS]
    there = [(name, path) for name, path in files if path.is_file()]
    if not there:
        raise BadInput(f"{folder} has none of {', '.join(DOMAINS)}: give the mini-Pile's folder")
    return there


def learned_tokenizer(pile: Path, size: int, folder: Path, most: float = 5e6) -> Tokenizer:
    """Return byte-level BPE of `size` tokens, learnt from so many characters of training text and kept.

    A small vocabulary makes the last product of a small network cheap: most of its step otherwise.
    """
    if not (folder / "tokenizer.json").exists():
        documents = [each for _, path in _there(pile, "train") for each in uptake.read(path)]
        documents.sort(key=lambda each: stable_hash("tokenizer", each.id))
        before = np.cumsum([0, *(len(each.text) for each in documents[:-1])])
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
        )
        chosen = (each.text for each, start in zip(documents, before, strict=True) if start < most)
        backend.train_from_iterator(chosen, trainer)
        PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token="<end>", eos_token="<end>"
        ).save_pretrained(folder)
    return Tokenizer(PreTrainedTokenizerFast.from_pretrained(folder))


def precision(device: str) -> AbstractContextManager[Any]:
    """Return a context in which products are taken in bfloat16 on a GPU, and as they are on a CPU."""
    return torch.autocast("cuda", torch.bfloat16) if device.startswith("cuda") else nullcontext()


def patiently(call: Callable[[], Any], tries: int = 60) -> Any:
    """Return what a call returns; where others fill the GPU, wait for room, so many times in all."""
    while True:
        try:
            return call()
        except torch.OutOfMemoryError as error:
            tries -= 1
            if not tries:
                raise
            print(f"  no room on the device, trying again: {str(error)[:80]}", flush=True)
        torch.cuda.empty_cache()
        time.sleep(PATIENCE)


@dataclass
class Pupil:
    """A network, its optimizer, how far it has got and what was seen on the way.

    The learning rate warms up, then falls with the square root of the step: no end need be known.
    """

    name: str
    network: nn.Module
    rate: float = 1e-3
    warm_up: int = 100
    steps: int = 0
    seconds: float = 0.0
    course: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.own = dict(self.network.named_parameters())
        wide = [each for each in self.own.values() if each.ndim > 1]
        narrow = [each for each in self.own.values() if each.ndim <= 1]
        groups = [{"params": wide, "weight_decay": 0.05}, {"params": narrow, "weight_decay": 0.0}]
        fused = next(iter(self.own.values())).is_cuda
        self._optimizer = torch.optim.AdamW(groups, self.rate, betas=(0.9, 0.98), fused=fused)

    @property
    def parameters(self) -> int:
        return sum(each.numel() for each in self.own.values())

    def learn(self, loss: Callable[[nn.Module], Tensor], device: str) -> float:
        """Take one step, and return its loss. Raises SystemExit where that is no number."""
        started = time.perf_counter()
        self.network.train()
        found = patiently(lambda: self._backward(loss, device))
        nn.utils.clip_grad_norm_(self.own.values(), 1.0)
        self.steps += 1
        now = min(self.steps / self.warm_up, math.sqrt(self.warm_up / self.steps))
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate * now
        self._optimizer.step()
        value = found.item()  # waits for the device, so that the time is this network's own
        if not math.isfinite(value):
            raise SystemExit(f"{self.name}: the loss is {value} at step {self.steps}: use a smaller --rate")
        self.seconds += time.perf_counter() - started
        return value

    def _backward(self, loss: Callable[[nn.Module], Tensor], device: str) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        with precision(device):
            found = loss(self.network)
        found.backward()
        return found.detach()

    def save(self, folder: Path) -> None:
        """Write everything that going on needs."""
        state = self._optimizer.state
        tensors = {f"network/{name}": each for name, each in self.own.items()}
        for name, each in self.own.items():
            tensors |= {f"{key}/{name}": value for key, value in state.get(each, {}).items()}
        told = {"steps": self.steps, "seconds": self.seconds, "course": self.course}
        write_tensors(self._file(folder), tensors, {"format": FORMAT, "told": json.dumps(told)})

    def resume(self, folder: Path) -> bool:
        """Go on from what `save` wrote, if it did."""
        if not self._file(folder).exists():
            return False
        about, tensors = read_tensors(self._file(folder), "pretraining")
        with torch.no_grad():
            for name, own in self.own.items():
                own.copy_(tensors[f"network/{name}"])
        for name, own in self.own.items():
            keys = ("step", "exp_avg", "exp_avg_sq")
            if f"step/{name}" in tensors:
                self._optimizer.state[own] = {
                    key: tensors[f"{key}/{name}"].to(own.device if key != "step" or own.is_cuda else "cpu")
                    for key in keys
                }
        for key, value in json.loads(about["told"]).items():
            setattr(self, key, value)
        return True

    def _file(self, folder: Path) -> Path:
        return folder / f"{self.name}.training"


SAVE_EVERY = 600.0  # seconds


@dataclass
class Clock:
    """Says when to stop, after so many seconds of this call, and when to save what there is."""

    seconds: float
    started: float = field(default_factory=time.perf_counter)
    saved: float = field(default_factory=time.perf_counter)

    @property
    def over(self) -> bool:
        return time.perf_counter() - self.started > self.seconds

    def save_now(self) -> bool:
        """Whether it is long since this was last true."""
        now = time.perf_counter()
        if now - self.saved < SAVE_EVERY:
            return False
        self.saved = now
        return True


def batches(count: int, size: int, seed: int, done: int) -> Callable[[], NDArray[np.int64]]:
    """Return what gives the next batch of numbers below `count`, pass after pass, `done` batches in."""
    each = count // size
    if not each:
        raise BadInput(f"{count} windows for batches of {size}: give more text, or a smaller --batch")
    state = {"at": done}

    def following() -> NDArray[np.int64]:
        turn, place = divmod(state["at"], each)
        state["at"] += 1
        order = np.random.default_rng([seed, turn]).permutation(count)
        return order[place * size : (place + 1) * size]

    return following


def save(pupils: Sequence[Pupil], folder: Path) -> None:
    for pupil in pupils:
        pupil.save(folder)


def resume(pupils: Sequence[Pupil], folder: Path) -> int:
    """Let all go on from what was saved, and return the steps they have taken. Raises SystemExit."""
    for pupil in pupils:
        pupil.resume(folder)
    steps = {pupil.steps for pupil in pupils}
    if len(steps) > 1:
        raise SystemExit(f"{folder} holds networks of {sorted(steps)} steps: begin in a new folder")
    return steps.pop()


def write(path: Path, told: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n")
