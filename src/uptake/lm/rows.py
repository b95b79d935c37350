"""Rows of different length in one batch: padded on the left, or stepped one by one where that cannot be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from uptake.lm.base import LM

# The width of a batch is rounded up to a multiple of this, and is always more than its longest row: so every
# row is masked, and its bits depend on the width and not on who else is padded.
WIDTH = 16
Step = Callable[[int, Tensor, Any], tuple[Tensor, Any]]


def left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, list[int] | None]:
    """Return rows of tokens as `LM.step` takes them: ids [rows, width] and lengths, None for a single row."""
    lengths = [len(row) for row in rows]
    if len(rows) == 1:
        return torch.tensor([[*rows[0]]], device=device), None
    width = (max(lengths) // WIDTH + 1) * WIDTH
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, width - len(row) :] = torch.tensor(row)
    return ids.to(device), lengths


def row_by_row(
    step: Step, ids: Tensor, caches: Sequence[Any], lengths: Sequence[int] | None = None
) -> tuple[Tensor, list[Any]]:
    """Return what `step(row, own ids [1, time], own cache)` returns for each row, as one batch.

    Log-probabilities stand at the right, as the ids do; what is left of a shorter row means nothing.
    """
    parts, after, time = [], [], ids.shape[1]
    for row, cache in enumerate(caches):
        gap = 0 if lengths is None else time - lengths[row]
        log_probs, kept = step(row, ids[row : row + 1, gap:], cache)
        parts.append(functional.pad(log_probs, (0, 0, gap, 0)) if gap else log_probs)
        after.append(kept)
    return torch.cat(parts), after


@dataclass
class RowCaches:
    """The rows of an LM that had to be stepped one by one, and the cache of each."""

    lms: "list[LM]"
    caches: list[Any]


def each_row(
    lm: "LM", ids: Tensor, cache: Any, lengths: Sequence[int] | None = None
) -> tuple[Tensor, RowCaches | None]:
    """Step every row of an LM by itself: for those whose own pass holds rows of one length alone.

    A cache that `lm.start` gave, and that nothing was read into, becomes one a row.
    """
    if isinstance(cache, RowCaches):
        lms, caches = cache.lms, cache.caches
    else:
        lms = [lm.at([row]) for row in range(len(ids))]
        caches = [None if cache is None else each.start() for each in lms]
    log_probs, after = row_by_row(lambda row, own, kept: lms[row].step(own, kept), ids, caches, lengths)
    return log_probs, None if cache is None else RowCaches(lms, after)
