"""LMs made of other LMs: a text before the text, another model for each row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable import Trainable, TrainableCopy
from uptake.errors import BadInput
from uptake.lm.base import LM, LMT, Cache, Wrapper
from uptake.lm.examples import Example, padded
from uptake.lm.rows import left_padded, row_by_row


class Prefixed(Wrapper):
    """Row i reads `prefixes[i]`, token ids, before its own text.

    A prefix stands where the opening token would, so it brings its own if it wants one.
    """

    def __init__(self, inner: LM, prefixes: Sequence[Sequence[int]]) -> None:
        super().__init__(inner)
        self.prefixes = [list(prefix) for prefix in prefixes]
        self.rows = len(self.prefixes)
        longest = max(map(len, self.prefixes), default=0)
        if longest >= self.window:
            raise BadInput(
                f"a prefix of {longest} tokens fills the window of {self.window}: use a shorter one"
            )

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.prefixes)

    def at(self, rows: Sequence[int]) -> LM:
        return Prefixed(self.inner.at(rows), [self.prefixes[row] for row in rows])

    def max_input_tokens(self, row: int) -> int:
        return self.inner.max_input_tokens(row) - len(self.prefixes[row])

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        return self.inner.predictions(self._prefixed(examples))

    def token_log_probs(self, examples: Sequence[Example]) -> list[Tensor]:
        return self.inner.token_log_probs(self._prefixed(examples))

    def _prefixed(self, examples: Sequence[Example]) -> list[Example]:
        self._check_rows(len(examples))
        return [
            replace(example, context=tuple(self._joined(row, example.context)))
            for row, example in enumerate(examples)
        ]

    def start(self) -> Cache:
        inner = self.inner.start()
        return None if inner is None else _PrefixCache(inner)

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        if cache is not None and cache.begun:
            log_probs, inner = self.inner.step(ids, cache.inner)
            return log_probs, _PrefixCache(inner, True)
        time, whole = ids.shape[1], self._whole(ids, lengths)
        if cache is not None or lengths is not None:
            joined, known = left_padded(whole, ids.device)
            log_probs, inner = self.inner.step(joined, cache and cache.inner, known)
            missing = max(0, time - joined.shape[1])
            return pad(log_probs[:, -time:], (0, 0, missing, 0)), cache and _PrefixCache(inner, True)
        log_probs, _ = self.inner.step(padded(whole).to(ids.device))
        ends = [len(each) for each in whole]
        return torch.stack([log_probs[row, end - time : end] for row, end in enumerate(ends)]), None

    def read_on(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        if cache is not None and cache.begun:
            log_probs, inner = self.inner.read_on(ids, cache.inner)
            return log_probs, _PrefixCache(inner, True)
        joined, known = left_padded(self._whole(ids, lengths), ids.device)
        log_probs, inner = self.inner.read_on(joined, cache and cache.inner, known)
        return log_probs, cache and _PrefixCache(inner, True)

    def _whole(self, ids: Tensor, lengths: Sequence[int] | None) -> list[list[int]]:
        """Return each row's tokens behind its prefix."""
        time = ids.shape[1]
        gaps = [time - length for length in lengths or [time] * len(ids)]
        return [self._joined(row, ids[row, gap:].tolist()) for row, gap in enumerate(gaps)]

    def _joined(self, row: int, ids: Sequence[int]) -> list[int]:
        prefix = self.prefixes[row]
        return [*prefix, *(ids[1:] if prefix and ids[0] == self.tokenizer.opening else ids)]


@dataclass(frozen=True, slots=True)
class _PrefixCache:
    """The inner LM's cache, and whether the prefixes have been read into it."""

    inner: Cache
    begun: bool = False


class Routed(Wrapper):
    """Row i is answered by `parts[i]`: many private models side by side, in one batch."""

    def __init__(self, parts: Sequence[LM]) -> None:
        super().__init__(parts[0])
        self.parts = list(parts)
        self.rows = len(self.parts)
        self.has_step = all(part.has_step for part in parts)

    def around(self, inner: LM) -> Self:
        return type(self)([inner, *self.parts[1:]])

    def at(self, rows: Sequence[int]) -> LM:
        chosen = [self.parts[row] for row in rows]
        # Rows that are all one model are that model, in one batch.
        alike = all(part is chosen[0] for part in chosen) and chosen[0].rows is None
        return chosen[0] if alike else Routed(chosen)

    def max_input_tokens(self, row: int) -> int:
        return self.parts[row].max_input_tokens(0)

    def overlay(self, delta: Delta) -> LM:
        return Routed([part.overlay(delta) for part in self.parts])

    def trainable_copy(
        self, trainable: Trainable, start: Delta, generator: torch.Generator
    ) -> tuple[LM, TrainableCopy]:
        return self._only.trainable_copy(trainable, start, generator)

    def capable(self, kind: type[LMT]) -> LMT | None:
        return self._only.capable(kind)

    @property
    def _only(self) -> LM:
        if len(self.parts) != 1:
            raise BadInput(f"{len(self.parts)} rows have no weights in common: pick one row with at()")
        return self.parts[0]

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> LM:
        return Routed([part.with_parameters(parameters) for part in self.parts])

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        self._check_rows(len(examples))
        pairs = zip(self.parts, examples, strict=True)
        return [log_probs for part, example in pairs for log_probs in part.predictions([example])]

    def token_log_probs(self, examples: Sequence[Example]) -> list[Tensor]:
        self._check_rows(len(examples))
        pairs = zip(self.parts, examples, strict=True)
        return [log_probs for part, example in pairs for log_probs in part.token_log_probs([example])]

    def start(self) -> Cache:
        return all_or_none([part.start() for part in self.parts])

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        self._check_rows(len(ids))
        caches = cache if cache is not None else [None] * len(self.parts)
        log_probs, after = row_by_row(self._step_row, ids, caches, lengths)
        return log_probs, None if cache is None else after

    def _step_row(self, row: int, ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        return self.parts[row].step(ids, cache)


def all_or_none(caches: list[Cache]) -> list[Cache] | None:
    """Return the caches, or None where one of the LMs keeps none: then all of them read everything again."""
    return None if any(cache is None for cache in caches) else caches
