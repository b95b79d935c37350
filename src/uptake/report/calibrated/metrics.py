"""How well a model knows what it knows: pure functions of confidences and of which answers are right.

`confidence` is 0 to 1, `right` 0 or 1, one an answer, in any order; answers of equal confidence are never
told apart, so no figure depends on the order that they come in. float64.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from uptake.errors import BadInput

BINS = 10
LEAST = 5  # answers a bin, on average, below which no calibration error is told
RESAMPLES = 1000
TAILS = (0.025, 0.975)
FLOOR_DRAWS = 200

Floats = NDArray[np.float64]
Interval = tuple[float, float]
# Of confidence and right, [answers], and how often each answer counts, [draws, answers]: a figure a draw.
Metric = Callable[[Floats, Floats, Floats], Floats]


class Bin(NamedTuple):
    """Answers of like confidence: how many, how sure they are on average, and the share that is right."""

    answers: int
    confidence: float
    right: float


def bins(confidence: ArrayLike, right: ArrayLike) -> list[Bin]:
    """Return `BINS` bins of about equal numbers of answers, the least sure first; equal ones share a bin."""
    sure, hit = _columns(confidence, right)
    (place,) = _places(sure, np.ones((1, sure.size)))
    return [
        Bin(int(some.sum()), float(sure[some].mean()), float(hit[some].mean()))
        for number in range(BINS)
        if (some := place == number).any()
    ]


def calibration_error(confidence: ArrayLike, right: ArrayLike) -> float | None:
    """Return the expected calibration error: |confidence - share right| of each bin, weighed by its answers.

    Bins hold equal numbers (Nguyen & O'Connor 2015), so none is empty and none holds nearly all. None where
    there are fewer than `LEAST` answers a bin.
    """
    sure, hit = _columns(confidence, right)
    return float(errors(sure, hit, np.ones((1, sure.size)))[0]) if enough(sure.size) else None


def brier(confidence: ArrayLike, right: ArrayLike) -> float:
    """Return the mean of (confidence - right)² (Brier 1950): 0 is best, 0.25 is always saying one half."""
    sure, hit = _columns(confidence, right)
    return float(briers(sure, hit, np.ones((1, sure.size)))[0])


def selective(confidence: ArrayLike, right: ArrayLike) -> tuple[Floats, Floats]:
    """Return the selective accuracy curve: share answered, and accuracy among these, the surest first.

    Point i is at i + 1 answers of all. Answers of equal confidence come in no order: each counts as their
    mean.
    """
    sure, hit = _columns(confidence, right)
    order = np.argsort(-sure, kind="stable")
    sizes = np.diff([*_starts(sure[order]), sure.size])
    level = np.repeat(np.add.reduceat(hit[order], _starts(sure[order])) / sizes, sizes)
    taken = np.arange(1, sure.size + 1)
    return taken / sure.size, np.cumsum(level) / taken


def selective_area(confidence: ArrayLike, right: ArrayLike) -> float:
    """Return the area under the selective accuracy curve: the mean accuracy over all shares answered.

    One less the area under the risk-coverage curve (El-Yaniv & Wiener 2010; for questions Kamath et al.
    2020). Answers in no order, as under one confidence for all, give the accuracy itself.
    """
    sure, hit = _columns(confidence, right)
    return float(areas(sure, hit, np.ones((1, sure.size)))[0])


def best_area(right: ArrayLike) -> float:
    """Return the area that no confidence can beat: all right answers come before all wrong ones."""
    return selective_area(right, right)


def floor(confidence: ArrayLike, seed: int = 0) -> float | None:
    """Return the calibration error that so few answers leave a model of these confidences that is calibrated.

    Its answers are drawn: each is right with the probability that it says. The mean of `FLOOR_DRAWS` draws,
    None where there is no calibration error either.
    """
    (sure,) = _columns(confidence)
    if not enough(sure.size):
        return None
    (place,) = _places(sure, np.ones((1, sure.size)))
    gaps = sure - (np.random.default_rng(abs(seed)).random((FLOOR_DRAWS, sure.size)) < sure)
    sums = np.stack([gaps[:, place == number].sum(1) for number in range(BINS)])
    return float(np.abs(sums).sum(0).mean() / sure.size)


def enough(answers: int) -> bool:
    """Whether there are answers enough for a calibration error."""
    return answers >= LEAST * BINS


def intervals(
    mine: tuple[ArrayLike, ArrayLike],
    groups: Sequence[str],
    less: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Interval | None]:
    """Return by metric the percentile interval of a model's figure, whole groups drawn with replacement.

    Answers are (confidence, right). With `less`, another model's answers to the same questions, those of the
    differences from it: both share each draw. The same seed draws the same groups. None of fewer than two
    groups, and of too few answers for an error.
    """
    sides = [_columns(*one) for one in (mine, *([less] if less else []))]
    size = sides[0][0].size
    if any(sure.size != len(groups) for sure, _ in sides):
        raise BadInput(f"{len(groups)} groups for {size} answers: name one group a question, for both")
    numbers: dict[str, int] = {}
    group = np.array([numbers.setdefault(name, len(numbers)) for name in groups], int)
    count = len(numbers)
    found: dict[str, Interval | None] = dict.fromkeys(METRICS)
    known = {name: one for name, one in METRICS.items() if name != "error" or enough(size)}
    if count < 2:
        return found
    generator = np.random.default_rng(abs(seed))
    values = {name: np.empty(resamples) for name in known}
    block = max(1, 2**20 // size)  # keeps memory flat
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(0, count, size=(rows, count)) + np.arange(rows)[:, None] * count
        often = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        weights = often[:, group].astype(np.float64)
        for name, metric in known.items():
            first, *other = (metric(sure, hit, weights) for sure, hit in sides)
            values[name][start : start + rows] = first - other[0] if other else first
    for name, some in values.items():
        low, high = np.quantile(some, TAILS)
        found[name] = float(low), float(high)
    return found


def errors(sure: Floats, hit: Floats, weights: Floats) -> Floats:
    """Return the calibration error of each draw, whatever the number of answers."""
    place = _places(sure, weights) + BINS * np.arange(len(weights))[:, None]
    gaps = np.bincount(place.ravel(), (weights * (sure - hit)).ravel(), minlength=BINS * len(weights))
    total: Floats = np.abs(gaps.reshape(-1, BINS)).sum(1) / weights.sum(1)
    return total


def briers(sure: Floats, hit: Floats, weights: Floats) -> Floats:
    """Return the Brier score of each draw."""
    found: Floats = weights @ (sure - hit) ** 2 / weights.sum(1)
    return found


def areas(sure: Floats, hit: Floats, weights: Floats) -> Floats:
    """Return the selective area of each draw; weights are whole numbers.

    Answers that are equally sure take places s + 1 to e, after S right ones: each counts as their mean m, and
    the accuracies there add up to m (e - s) + (S - s m) (H(e) - H(s)), H the harmonic numbers.
    """
    order = np.argsort(-sure, kind="stable")
    starts = _starts(sure[order])
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)
    hits = np.add.reduceat((weights * hit)[:, order], starts, axis=1)
    ends, rights = np.cumsum(sizes, 1), np.cumsum(hits, 1)
    means = np.divide(hits, sizes, out=np.zeros_like(hits), where=sizes > 0)
    harmonic = np.r_[0.0, np.cumsum(1 / np.arange(1, int(ends[:, -1].max()) + 1))]
    before = ends - sizes
    spans = harmonic[ends.astype(int)] - harmonic[before.astype(int)]
    sums: Floats = (hits + (rights - hits - before * means) * spans).sum(1) / ends[:, -1]
    return sums


METRICS: Mapping[str, Metric] = {"error": errors, "area": areas, "brier": briers}


def value(name: str, sure: ArrayLike, right: ArrayLike) -> float | None:
    """Return a metric of `METRICS` by its name, None of too few answers for an error."""
    if name == "error":
        return calibration_error(sure, right)
    return selective_area(sure, right) if name == "area" else brier(sure, right)


def _places(sure: Floats, weights: Floats) -> NDArray[np.int64]:
    """Return each answer's bin, [draws, answers]: that of the first one, by confidence, that is as sure."""
    order = np.argsort(sure, kind="stable")
    first = np.searchsorted(sure[order], sure, "left")
    ordered = weights[:, order]
    before = (np.cumsum(ordered, 1) - ordered)[:, first]
    found: NDArray[np.int64] = np.minimum(before * BINS // weights.sum(1, keepdims=True), BINS - 1).astype(
        int
    )
    return found


def _starts(ordered: Floats) -> NDArray[np.int64]:
    """Return where each run of equal values begins."""
    return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])


def _columns(*columns: ArrayLike) -> tuple[Floats, ...]:
    arrays = tuple(np.asarray(column, dtype=np.float64) for column in columns)
    shapes = [array.shape for array in arrays]
    if arrays[0].ndim != 1 or len(set(shapes)) > 1 or not arrays[0].size:
        raise BadInput(f"columns of shapes {shapes}: give one number an answer, at least one")
    if any(not ((array >= 0) & (array <= 1)).all() for array in arrays):
        raise BadInput("a confidence or a mark is outside 0 to 1: give probabilities, and 0 or 1 for right")
    return arrays
