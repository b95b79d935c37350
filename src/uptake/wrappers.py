"""LMs made of other LMs: a text before the text, a mixture, another model for each row."""

import math
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from uptake.delta import Delta
from uptake.errors import BadInput
from uptake.lm import LM, Cache, Wrapper
from uptake.moves import Moves, Opened


class Prefixed(Wrapper):
    """Row i reads `prefixes[i]`, token ids, before whatever it is given.

    A prefix stands where the opening token would, so it brings its own if it wants one.
    """

    def __init__(self, inner: LM, prefixes: Sequence[Sequence[int]]) -> None:
        super().__init__(inner)
        self.prefixes = [list(prefix) for prefix in prefixes]
        self.rows = len(self.prefixes)
        longest = max(map(len, self.prefixes), default=0)
        if longest >= self.window:
            raise BadInput(
                f"a prefix of {longest} tokens fills the window of {self.window}: leave room for the text"
            )

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.prefixes)

    def at(self, rows: Sequence[int]) -> LM:
        return Prefixed(self.inner.at(rows), [self.prefixes[row] for row in rows])

    def room(self, row: int) -> int:
        return self.inner.room(row) - len(self.prefixes[row])

    def start(self) -> Cache:
        # One cache a row, because prefixes differ in length; empty ones stand for "not yet read".
        return [None] * len(self.prefixes)

    def step(self, ids: Tensor, cache: Cache = None) -> tuple[Tensor, Cache]:
        if cache is not None:
            rows = [self._step_row(row, ids[row : row + 1], cache[row]) for row in range(len(ids))]
            return torch.cat([log_probs for log_probs, _ in rows]), [kept for _, kept in rows]
        time = ids.shape[1]
        whole = [self._join(row, ids[row]) for row in range(len(ids))]
        padded = torch.nn.utils.rnn.pad_sequence(whole, batch_first=True)
        log_probs, _ = self.inner.step(padded)
        return torch.stack(
            [log_probs[row, len(whole[row]) - time : len(whole[row])] for row in range(len(ids))]
        ), None

    def _step_row(self, row: int, ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        inner = self.inner.at([row])
        if cache is not None:
            return inner.step(ids, cache)
        log_probs, cache = inner.step(self._join(row, ids[0])[None], inner.start())
        return log_probs[:, -ids.shape[1] :], cache

    def _join(self, row: int, ids: Tensor) -> Tensor:
        prefix = self.prefixes[row]
        if prefix and ids[0] == self.tokenizer.opening:
            ids = ids[1:]
        return torch.cat([torch.tensor(prefix, dtype=ids.dtype, device=ids.device), ids])


class Mixed(Wrapper):
    """A mixture of LMs over one tokenizer, token by token: log sum_i w_i p_i."""

    def __init__(self, parts: Sequence[LM], weights: Sequence[float]) -> None:
        if len(parts) != len(weights) or not parts or min(weights) < 0 or not math.isclose(sum(weights), 1.0):
            raise BadInput(
                f"mixture weights {list(weights)} for {len(parts)} models: give one each, adding up to 1"
            )
        super().__init__(parts[0])
        self.parts, self.weights = list(parts), list(weights)
        self.rows = next((part.rows for part in parts if part.rows is not None), None)

    def around(self, inner: LM) -> Self:
        return type(self)([inner, *self.parts[1:]], self.weights)

    def overlay(self, delta: Delta) -> LM:
        return Mixed([part.overlay(delta) for part in self.parts], self.weights)

    def open(self, moves: Moves, start: Delta, generator: torch.Generator) -> tuple[LM, Opened]:
        raise BadInput("a mixture has no one set of weights to train: train its parts, then mix them")

    def at(self, rows: Sequence[int]) -> LM:
        return Mixed([part.at(rows) for part in self.parts], self.weights)

    def room(self, row: int) -> int:
        return min(part.room(row) for part in self.parts)

    def start(self) -> Cache:
        return [part.start() for part in self.parts]

    def step(self, ids: Tensor, cache: Cache = None) -> tuple[Tensor, Cache]:
        caches = cache if cache is not None else [None] * len(self.parts)
        stepped = [part.step(ids, kept) for part, kept in zip(self.parts, caches, strict=True)]
        logs = [
            log_probs + math.log(weight)
            for (log_probs, _), weight in zip(stepped, self.weights, strict=True)
            if weight > 0
        ]
        return torch.logsumexp(torch.stack(logs), 0), None if cache is None else [kept for _, kept in stepped]


class Routed(Wrapper):
    """Row i is answered by `parts[i]`: many private models side by side, in one batch."""

    def __init__(self, parts: Sequence[LM]) -> None:
        super().__init__(parts[0])
        self.parts = list(parts)
        self.rows = len(self.parts)

    def around(self, inner: LM) -> Self:
        return type(self)([inner, *self.parts[1:]])

    def at(self, rows: Sequence[int]) -> LM:
        return Routed([self.parts[row] for row in rows])

    def room(self, row: int) -> int:
        return self.parts[row].room(0)

    def overlay(self, delta: Delta) -> LM:
        return Routed([part.overlay(delta) for part in self.parts])

    def open(self, moves: Moves, start: Delta, generator: torch.Generator) -> tuple[LM, Opened]:
        if len(self.parts) != 1:
            raise BadInput(f"{len(self.parts)} rows have no weights in common: pick one row with at()")
        return self.parts[0].open(moves, start, generator)

    def start(self) -> Cache:
        return [part.start() for part in self.parts]

    def step(self, ids: Tensor, cache: Cache = None) -> tuple[Tensor, Cache]:
        caches = cache if cache is not None else [None] * len(self.parts)
        stepped = [
            part.step(ids[row : row + 1], kept)
            for row, (part, kept) in enumerate(zip(self.parts, caches, strict=True))
        ]
        return (
            torch.cat([log_probs for log_probs, _ in stepped]),
            None if cache is None else [kept for _, kept in stepped],
        )
