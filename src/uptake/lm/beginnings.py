"""Prompts that begin alike: what they share is read once, and only the rest of each once a prompt.

Two levels: a root that all prompts have, such as worked examples, and a beginning that some of them have,
such as a passage that several questions are about. It knows nothing of passages and questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.in_place import InPlace

CLOSE = 2e-3  # nats by which a prompt read in two parts may differ from one read whole,
SHARE = 0.05  # and of 16-bit numbers, whose rare tokens are rounded by more, the probability that may move
_PROBE = 24  # tokens
_COMPACT = 0.7  # of the rows: where fewer go on, moving their keys and values pays


@dataclass
class Beginnings:
    """Keys and values of the root and of the beginnings read lately, in at most `most` bytes."""

    lm: Causal
    root: tuple[int, ...] = ()
    most: int = 1 << 30
    _root: Tensor | None = field(default=None, init=False)
    _kept: dict[tuple[int, ...], Tensor] = field(default_factory=dict, init=False)
    _bytes: int = field(default=0, init=False)

    def open(
        self, texts: Sequence[Sequence[int]], shared: Sequence[int], free: int = 0, last: int = 1
    ) -> "Rows":
        """Read texts side by side, of which the first `shared[i]` tokens may be those of other texts too.

        `free` is how many more tokens a row may be given, `last` at how many places it is told what follows.
        """
        tail = max(last, *(len(text) - count for text, count in zip(texts, shared, strict=True)))
        if tail + free > self.lm.window or max(map(len, texts)) + free > self.lm.window:
            raise BadInput(
                f"a text of {max(map(len, texts)):,} tokens and {free} more do not fit the window of "
                f"{self.lm.window:,}: cut its beginning"
            )
        known = [max(0, len(text) - tail) for text in texts]
        parts = [
            self._parts(tuple(text[:count]), place)
            for text, count, place in zip(texts, shared, known, strict=True)
        ]
        if not any(known):  # nothing is shared: one token shows how keys and values look
            parts[0] = [self._pass(texts[0][:1], None)[..., :0, :]]
        ids = torch.tensor([[0] * (tail - len(text)) + list(text[-tail:]) for text in texts])
        return Rows(self.lm, ids, [len(text) for text in texts], parts, max(map(len, texts)) + free, last)

    def _parts(self, beginning: tuple[int, ...], count: int) -> list[Tensor]:
        """Return keys and values of the first `count` tokens of a beginning, in parts one after another."""
        first = len(self.root)
        if not first or beginning[:first] != self.root:
            return [self._read(beginning, 0)[..., :count, :]] if count else []
        if self._root is None:
            self._root = self._pass(self.root, None)
        if count <= first:
            return [self._root[..., :count, :]]
        return [self._root, self._read(beginning, first)[..., : count - first, :]]

    def _read(self, beginning: tuple[int, ...], first: int) -> Tensor:
        found = self._kept.pop(beginning, None)
        if found is None:
            found = self._pass(beginning[first:], self._root if first else None)
            self._bytes += found.nbytes
        self._kept[beginning] = found
        while self._bytes > self.most and len(self._kept) > 1:
            self._bytes -= self._kept.pop(next(iter(self._kept))).nbytes
        return found

    def _pass(self, ids: Sequence[int], before: Tensor | None) -> Tensor:
        """Return keys and values of tokens after others, [layers, 2, heads, tokens, size]."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(() if before is None else before):
            cache.update(keys[None], values[None], layer)
        with torch.no_grad():
            _, cache = self.lm.read_on(torch.tensor([[*ids]], device=self.lm.device), cache)
        layers: Any = cache.layers
        return torch.stack(
            [torch.stack([each.keys[0], each.values[0]])[..., -len(ids) :, :] for each in layers]
        )


class Rows:
    """Texts that go on side by side; `log_probs` [rows, last, vocabulary] tell what follows."""

    def __init__(
        self,
        lm: Causal,
        ids: Tensor,
        lengths: Sequence[int],
        parts: Sequence[Sequence[Tensor]],
        width: int,
        last: int,
    ) -> None:
        self._lm, self._lengths = lm, torch.tensor([*lengths], device=lm.device)
        self._width, self._rows = width, torch.arange(len(ids), device=lm.device)
        like = next(part for some in parts for part in some)
        layers, two, heads, _, size = like.shape
        # One column more than is ever seen takes what stands left of a short text.
        self._layers = like.new_zeros(layers, two, len(ids), heads, width + 1, size)
        for row, some in enumerate(parts):
            begin = 0
            for part in some:
                self._layers[:, :, row, :, begin : begin + part.shape[3]] = part
                begin += part.shape[3]
        places = self._lengths[:, None] - ids.shape[1] + torch.arange(ids.shape[1], device=lm.device)
        self.log_probs = self._read(ids.to(lm.device), places, last)

    def step(self, tokens: Tensor) -> Tensor:
        """Let every row read a token, [rows], and return what follows, [rows, vocabulary]."""
        # Rows that were left behind read a token too, and nobody looks.
        every = torch.zeros_like(self._lengths)
        every[self._rows] = tokens
        places = self._lengths[:, None].clamp(max=self._width - 1)
        self._lengths = self._lengths + 1
        self.log_probs = self._read(every[:, None], places, 1)[self._rows]
        return self.log_probs[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""
        self._rows, self.log_probs = self._rows[rows], self.log_probs[rows]
        if len(self._rows) <= _COMPACT * len(self._lengths):
            self._lengths, self._layers = self._lengths[self._rows], self._layers[:, :, self._rows]
            self._rows = torch.arange(len(self._rows), device=self._rows.device)

    def _read(self, ids: Tensor, places: Tensor, last: int) -> Tensor:
        columns = torch.where(places < 0, self._width, places)
        seen = torch.arange(self._width + 1, device=ids.device) <= places.clamp(min=0)[..., None]
        barred = torch.zeros(seen.shape, dtype=self._layers.dtype, device=ids.device)
        barred = barred.masked_fill(~seen, torch.finfo(barred.dtype).min)[:, None]
        with torch.no_grad():
            return self._lm.read_on_at(
                ids,
                InPlace(self._layers, columns),
                last,
                position_ids=places.clamp(min=0),
                attention_mask=barred,
            )


def beginnings(lm: LM, root: Sequence[int] = (), most: int = 1 << 30) -> Beginnings | None:
    """Return what reads shared beginnings once, or None for a model that such a pass is not right for.

    A causal model by itself is tried on a text read whole and in parts; others, with a soft prompt, with a
    window that slides, with places counted otherwise, read every prompt whole.
    """
    if not isinstance(lm, Causal) or getattr(lm.module, "reads_in_order", False):
        return None
    ids = [lm.tokenizer.opening, *range(min(_PROBE, lm.window - 1, len(lm.tokenizer)) - 1)]
    third = max(1, len(ids) // 3)
    probe = Beginnings(lm, tuple(ids[:third]), most)
    try:
        rows = probe.open([ids[:-1], ids[third:]], [2 * third, third], free=1)
        told = rows.step(torch.tensor([ids[-1], ids[-1]], device=lm.device))
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return None  # a cache of another kind
    with torch.no_grad():
        for row, whole in zip(told, (ids, [*ids[third:], ids[-1]]), strict=True):
            direct = lm.step(torch.tensor([whole], device=lm.device))[0][0, -1]
            if lm.dtype.itemsize < 4:
                near = (row.double().exp() - direct.double().exp()).abs().sum() / 2 <= SHARE
            else:
                near = (row - direct).abs().max() <= CLOSE
            if not near:
                return None
    return Beginnings(lm, tuple(root), most)
