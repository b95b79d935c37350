"""Rows of an LM in as few passes as can be, each with bits that do not depend on how many others there are.

Rows that one model answers go through it together, and those with low-rank changes of their own side by side.
On a CPU a pass has at least as many rows as it takes for their bits to agree with those of any larger pass;
elsewhere, where kernels go by the exact shape, always as many as the whole batch.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from uptake.adaptation.side_by_side import FEWEST
from uptake.lm.base import LM, Cache, Wrapper
from uptake.lm.side_by_side import SideBySide
from uptake.lm.wrappers import Routed, all_or_none


def in_few_passes(lm: LM, rows: Sequence[int], beside: int) -> LM:
    """Return the LM whose row i is row `rows[i]` of `lm`, for a batch that has `beside` rows in all.

    A row by itself in its batch is `lm.at`. One row of `lm` may stand for many.
    """
    if beside == 1:
        return lm.at(rows)
    slots = FEWEST if lm.device.type == "cpu" else beside
    if lm.rows is None:
        return Filled(lm, len(rows), slots)
    if isinstance(lm, SideBySide):
        return SideBySide(lm.base, [lm.deltas[row] for row in rows], slots)
    own = {row: lm.at([row]) for row in dict.fromkeys(rows)}
    parts = [own[row] for row in rows]
    if any(part.rows is not None for part in parts):
        return Routed(parts)
    return Grouped(parts, slots)


class Filled(Wrapper):
    """One model for all rows, whose every pass has at least `slots` rows, idle ones below the others."""

    def __init__(self, inner: LM, rows: int, slots: int) -> None:
        super().__init__(inner)
        self.rows, self.slots = rows, slots

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.rows or 0, self.slots)

    def at(self, rows: Sequence[int]) -> LM:
        return Filled(self.inner, len(rows), self.slots)

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        self._check_rows(len(ids))
        idle = max(0, self.slots - len(ids))
        whole = None if lengths is None else [*lengths, *[ids.shape[1]] * idle]
        log_probs, cache = self.inner.step(nn.functional.pad(ids, (0, 0, 0, idle)), cache, whole)
        return log_probs[: len(ids)], cache


class Grouped(Wrapper):
    """Row i is answered by `parts[i]`; rows of the same one go through it together, filled up to `slots`."""

    def __init__(self, parts: Sequence[LM], slots: int) -> None:
        super().__init__(parts[0])
        self.parts, self.slots, self.rows = list(parts), slots, len(parts)
        self.has_step = all(part.has_step for part in parts)
        self._groups: dict[int, list[int]] = {}
        for row, part in enumerate(parts):
            self._groups.setdefault(id(part), []).append(row)
        self._lms = [Filled(parts[rows[0]], len(rows), slots) for rows in self._groups.values()]

    def around(self, inner: LM) -> Self:
        return type(self)([inner, *self.parts[1:]], self.slots)

    def at(self, rows: Sequence[int]) -> LM:
        return Grouped([self.parts[row] for row in rows], self.slots)

    def max_input_tokens(self, row: int) -> int:
        return self.parts[row].max_input_tokens(0)

    def start(self) -> Cache:
        return all_or_none([lm.start() for lm in self._lms])

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        self._check_rows(len(ids))
        caches = [None] * len(self._lms) if cache is None else cache
        order, found, after = list[int](), list[Tensor](), list[Cache]()
        for rows, lm, own in zip(self._groups.values(), self._lms, caches, strict=True):
            known = None if lengths is None else [lengths[row] for row in rows]
            log_probs, kept = lm.step(ids[rows], own, known)
            order += rows
            found.append(log_probs)
            after.append(kept)
        back = torch.tensor(order, device=ids.device).argsort()
        return torch.cat(found)[back], None if cache is None else after
