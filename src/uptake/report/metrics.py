"""How much was gained, and how sure that is: bits per byte, gain, and a paired bootstrap by document.

Everything here takes one number a query, in float64, and knows nothing of rows or reports. Bits
are base 2. The queries of one document are not independent, so documents are what is resampled.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uptake.errors import BadInput

RESAMPLES = 10_000
TAILS = (0.025, 0.975)  # of a 95 % interval

Interval = tuple[float, float]


class IntervalEstimate(NamedTuple):
    """A figure and its interval; `interval` is None where there are too few documents for one."""

    value: float
    interval: Interval | None


class OverGroups(NamedTuple):
    """A ratio in several groups: its mean, its standard deviation, and that without the scatter by chance."""

    mean: IntervalEstimate
    spread: IntervalEstimate
    beyond_chance: float | None  # None where a group has one document: its scatter is not known


def finite(value: float) -> float | None:
    """Return the value, None where it is no finite number."""
    return float(value) if np.isfinite(value) else None


def bits_per_byte(bits: ArrayLike, sizes: ArrayLike) -> float:
    """Return total bits / total bytes; `sizes` are UTF-8 bytes a query. NaN where nothing was scored."""
    bits, sizes = _columns(bits, sizes)
    return _ratio(bits, sizes)


def gain(bits: ArrayLike, base_bits: ArrayLike) -> float:
    """Return total bits saved / total base bits: 0.1 is a tenth saved, below 0 is a loss. NaN of nothing."""
    bits, base_bits = _columns(bits, base_bits)
    return _ratio(base_bits - bits, base_bits)


def share_helped(bits: ArrayLike, base_bits: ArrayLike) -> float:
    """Return the share of queries that took fewer bits than the base. NaN of no queries."""
    bits, base_bits = _columns(bits, base_bits)
    return float(np.mean(bits < base_bits)) if bits.size else float("nan")


def gain_interval(
    bits: ArrayLike,
    base_bits: ArrayLike,
    documents: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Return the bootstrap interval of `gain`; `documents` names each query's. None of one document."""
    bits, base_bits = _columns(bits, base_bits)
    return ratio_interval(base_bits - bits, base_bits, documents, seed=seed, resamples=resamples)


def gain_difference(
    bits: ArrayLike,
    other_bits: ArrayLike,
    base_bits: ArrayLike,
    documents: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> IntervalEstimate:
    """Return gain of `bits` less gain of `other_bits`, over the same queries in the same order.

    The two share each resample, so what makes a document hard for both cancels out.
    """
    bits, other_bits, base_bits = _columns(bits, other_bits, base_bits)
    saved = other_bits - bits
    interval = ratio_interval(saved, base_bits, documents, seed=seed, resamples=resamples)
    return IntervalEstimate(_ratio(saved, base_bits), interval)


def ratio_interval(
    above: ArrayLike,
    below: ArrayLike,
    documents: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Return the percentile interval of sum(above) / sum(below), documents drawn with replacement.

    The same seed draws the same documents, so intervals of several methods can be compared. None where
    there are fewer than two documents or the ratio is not finite. Raises BadInput on uneven lengths.
    """
    above, below = _columns(above, below)
    if len(documents) != above.size:
        raise BadInput(f"{len(documents)} documents for {above.size} queries: name one document a query")
    numbers: dict[str, int] = {}
    document = [numbers.setdefault(name, len(numbers)) for name in documents]
    count = len(numbers)
    if count < 2:
        return None
    above = np.bincount(document, weights=above)
    below = np.bincount(document, weights=below)

    generator = np.random.default_rng(abs(seed))
    ratios = np.empty(resamples)
    # A block of about a million draws at a time keeps memory flat however many documents there are.
    block = max(1, 2**20 // count)
    for start in range(0, resamples, block):
        drawn = generator.integers(0, count, size=(min(block, resamples - start), count))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios[start : start + block] = above[drawn].sum(axis=1) / below[drawn].sum(axis=1)
    if not np.isfinite(ratios).all():
        return None
    low, high = np.quantile(ratios, TAILS)
    return float(low), float(high)


def over_groups(
    above: ArrayLike,
    below: ArrayLike,
    documents: Sequence[str],
    groups: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> OverGroups | None:
    """Return how sum(above) / sum(below) differs between groups, each of which counts once.

    Documents are drawn with replacement within their group. `spread` is the standard deviation over groups
    (n - 1); it holds the scatter of the documents too, so `beyond_chance` is the root of its square less the
    mean variance of a group's ratio over the draws, or 0. No intervals where a group has one document; None
    where there are fewer than two groups or a ratio is not finite. Raises BadInput on uneven lengths.
    """
    above, below = _columns(above, below)
    if not len(documents) == len(groups) == above.size:
        raise BadInput(
            f"{len(documents)} documents, {len(groups)} groups for {above.size} queries: name each"
        )
    names = sorted(set(groups))
    ratios, drawn = [], []
    for place, name in enumerate(names):
        inside = [at for at, group in enumerate(groups) if group == name]
        numbers: dict[str, int] = {}
        document = [numbers.setdefault(documents[at], len(numbers)) for at in inside]
        mine, whole = (np.bincount(document, weights=column[inside]) for column in (above, below))
        ratios.append(_ratio(*_columns(mine, whole)))
        generator = np.random.default_rng([abs(seed), place])
        picked = generator.integers(0, len(numbers), size=(resamples, len(numbers)))
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn.append(mine[picked].sum(axis=1) / whole[picked].sum(axis=1))
        if len(numbers) < 2:
            drawn[-1] = np.full(resamples, np.nan)
    if len(names) < 2 or not np.isfinite(ratios).all():
        return None
    draws = np.array(drawn)
    mean, spread = float(np.mean(ratios)), float(np.std(ratios, ddof=1))
    if not np.isfinite(draws).all():
        return OverGroups(IntervalEstimate(mean, None), IntervalEstimate(spread, None), None)

    def ends(values: NDArray[np.float64]) -> Interval:
        low, high = np.quantile(values, TAILS)
        return float(low), float(high)

    return OverGroups(
        IntervalEstimate(mean, ends(draws.mean(axis=0))),
        IntervalEstimate(spread, ends(draws.std(axis=0, ddof=1))),
        float(np.sqrt(max(0.0, spread**2 - draws.var(axis=1).mean()))),
    )


def mean_intervals(
    columns: Sequence[Mapping[str, tuple[float, int]]], *, seed: int = 0, resamples: int = RESAMPLES
) -> list[Interval | None]:
    """Return for each column the percentile interval of its mean, documents drawn with replacement.

    A column gives by document the sum of its values there and how many they are; a document without any
    counts for nothing. All columns share each draw, of all documents that any has: so do many cost little
    more than one. None where fewer than two documents have values, or a draw has none.
    """
    names = sorted({document for column in columns for document in column})
    if not columns or len(names) < 2:
        return [None] * len(columns)
    sums = np.array([[column.get(name, (0.0, 0))[0] for column in columns] for name in names])
    sizes = np.array([[column.get(name, (0.0, 0))[1] for column in columns] for name in names], np.float64)
    count, generator = len(names), np.random.default_rng(abs(seed))
    means = np.empty((resamples, len(columns)))
    block = max(1, 2**20 // count)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(0, count, size=(rows, count)) + np.arange(rows)[:, None] * count
        often = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            means[start : start + rows] = (often @ sums) / (often @ sizes)
    known = np.isfinite(means).all(0) & ((sizes > 0).sum(0) > 1)
    low, high = np.quantile(means, TAILS, axis=0)
    return [
        (float(one), float(other)) if whole else None
        for one, other, whole in zip(low, high, known, strict=True)
    ]


def _columns(*columns: ArrayLike) -> tuple[NDArray[np.float64], ...]:
    arrays = tuple(np.asarray(column, dtype=np.float64) for column in columns)
    shapes = [array.shape for array in arrays]
    if arrays[0].ndim != 1 or len(set(shapes)) > 1:
        raise BadInput(f"columns of shapes {shapes}: give one number a query, the same queries in each")
    return arrays


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> float:
    total = float(below.sum())
    return float(above.sum()) / total if total else float("nan")
