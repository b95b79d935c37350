"""An LM that reads passages before its text, and searches for new ones as the text continues."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from uptake.lm.base import LM, Cache, Wrapper
from uptake.lm.examples import Example
from uptake.lm.rows import row_by_row


@dataclass(frozen=True)
class RowPrefix:
    """The passages one row reads: `tokens` first, later what `find` returns for its text so far.

    `known` is how many tokens, the opening one among them, the first passages were found with, and
    `max_tokens` the most tokens that passages may take.
    """

    tokens: list[int]
    known: int
    max_tokens: int
    find: Callable[[str], list[int]] | None


@dataclass
class _RowProgress:
    """The progress of a row: its inputs so far, the passages before them, and where it searches next."""

    ids: list[int]
    tokens: list[int]
    until: int
    cache: Cache = None


class Refreshed(Wrapper):
    """Row i reads `fresh[i]`, anew after every `every` tokens beyond those it was first found with.

    The passages at a place were found with text up to that place at most: a token never depends on a
    later one, and going on from a cache gives what one pass gives. Each search costs a pass over the
    passages and the text so far. A prefix stands where the opening token would.
    """

    def __init__(self, inner: LM, fresh: Sequence[RowPrefix], every: int) -> None:
        super().__init__(inner)
        self.fresh, self.every = list(fresh), every
        self.rows = len(self.fresh)

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.fresh, self.every)

    def at(self, rows: Sequence[int]) -> LM:
        return Refreshed(self.inner.at(rows), [self.fresh[row] for row in rows], self.every)

    def max_input_tokens(self, row: int) -> int:
        return self.inner.max_input_tokens(row) - self.fresh[row].max_tokens - 1

    def start(self) -> Cache:
        return [None] * len(self.fresh)

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        before = cache if cache is not None else self.start()
        log_probs, after = row_by_row(
            lambda row, own, kept: self._row(row, own[0].tolist(), kept), ids, before, lengths
        )
        return log_probs, None if cache is None else after

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        self._check_rows(len(examples))
        # Row by row, each by its own length: what pads a batch is not text to search with.
        rows = [self._row(row, [*example.inputs], None, True)[0] for row, example in enumerate(examples)]
        pairs = zip(rows, examples, strict=True)
        return [found[0, found.shape[1] - len(example.target) :] for found, example in pairs]

    def _row(
        self, row: int, new: list[int], before: _RowProgress | None, ends: bool = False
    ) -> tuple[Tensor, _RowProgress]:
        """Return the log-probabilities after `new`, and how to go on, unless the row `ends` with them."""
        fresh, inner = self.fresh[row], self.inner.at([row])
        # The prediction of the first token beyond the known ones still goes by the first passages.
        kept = before or _RowProgress([], fresh.tokens, fresh.known - 1 + self.every)
        parts = []
        while new:
            if len(kept.ids) >= kept.until and fresh.find is not None:
                text = self.tokenizer.decode([*kept.ids, new[0]][1:])
                kept = _RowProgress(kept.ids, fresh.find(text), kept.until + self.every)
            count = len(new) if fresh.find is None else min(len(new), kept.until - len(kept.ids))
            now, new = new[:count], new[count:]
            ids = [*kept.ids, *now]
            if kept.cache is not None:
                log_probs, cache = inner.step(self._tensor(now), kept.cache)
            else:
                opened = bool(kept.tokens) and ids[0] == self.tokenizer.opening
                whole = [*kept.tokens, *(ids[1:] if opened else ids)]
                if ends:  # what follows the passages need not be predicted: a large vocabulary is dear
                    parts.append(self._last(inner, whole, count)[None])
                    kept = _RowProgress(ids, kept.tokens, kept.until)
                    continue
                log_probs, cache = inner.step(self._tensor(whole), inner.start())
            parts.append(log_probs[:, -count:])
            kept = _RowProgress(ids, kept.tokens, kept.until, cache)
        return torch.cat(parts, 1), kept

    @staticmethod
    def _last(inner: LM, ids: list[int], count: int) -> Tensor:
        """Return the log-probabilities after the last `count` of ids."""
        known = len(ids) - count + 1
        (found,) = inner.predictions([Example(tuple(ids[:known]), (*ids[known:], 0))])
        return found

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self.device)
