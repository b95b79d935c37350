"""How a learning rate is searched for, by whoever chooses one."""

import math
from collections.abc import Callable
from dataclasses import dataclass


def climb(measure: Callable[[float], float], start: float, factor: float, most: int) -> None:
    """Measure a gain at `start` and then by factors up, or else down, as long as it grows, `most` times."""
    here = measure(start)
    for step in (factor, 1 / factor):
        rate, best = start, here
        for _ in range(most):
            rate *= step
            found = measure(rate)
            if found <= best:
                break
            best = found
        if best > here:
            # Gain has one peak over the learning rate: what rose on one side falls on the other.
            return


def peak(measure: Callable[[float], float], start: float, factor: float, most: int) -> tuple[float, float]:
    """Return the learning rate of the largest gain, between the rates measured, and the gain expected there.

    A step of Adam is as long as its rate, so that to the second order the gain over the rate is a parabola
    through no gain at rate 0. It is drawn through the best rate measured and its better neighbour, a factor
    away; a rate is measured, at most `most` beside the first, while it may be one of the two. Where
    all do harm, the least harmful of them is returned; a failure is a gain of -infinity.
    """
    gains = {0: measure(start)}

    def at(step: int) -> float:
        return float(start * factor**step)

    while len(gains) <= most and (step := _wanted(gains, at)) is not None:
        gains[step] = measure(at(step))
    best = max(gains, key=lambda step: (gains[step], -step))
    beside = [step for step in (best - 1, best + 1) if step in gains]
    if gains[best] <= 0 or not beside:
        return at(best), gains[best]
    known = max(beside, key=lambda step: gains[step])
    curve = _through(gains, at, best, known)
    if curve is None:
        return at(best), gains[best]
    # Were its top further up, another rate would have been wanted; where that was measured, it has denied it.
    lowest, highest = at(min(best, known)), at(max(best, known)) * (factor + 1 / factor) / 2
    rate = min(max(curve.top, lowest), highest)
    return (rate, curve.of(rate)) if curve.of(rate) > gains[best] else (at(best), gains[best])


@dataclass(frozen=True)
class _Parabola:
    """A gain of rise times the rate, less fall times its square."""

    rise: float
    fall: float

    @property
    def top(self) -> float:
        return self.rise / (2 * self.fall) if self.fall > 0 else math.inf

    def of(self, rate: float) -> float:
        return self.rise * rate - self.fall * rate**2


def _through(gains: dict[int, float], at: Callable[[int], float], one: int, other: int) -> _Parabola | None:
    """Return the parabola through the gains at two rates and through 0; None where one of them failed."""
    if math.inf in (abs(gains[one]), abs(gains[other])):
        return None
    slope, slope_of_other = gains[one] / at(one), gains[other] / at(other)
    fall = (slope - slope_of_other) / (at(other) - at(one))
    return _Parabola(slope + fall * at(one), fall)


def _wanted(gains: dict[int, float], at: Callable[[int], float]) -> int | None:
    """Return the step of the rate to measure next, None where enough are known."""
    best = max(gains, key=lambda step: (gains[step], -step))
    if gains[best] <= 0:
        return min(gains) - 1
    open_ = [step for step in (best + 1, best - 1) if step not in gains]
    if len(open_) != 1:
        return open_[0] if open_ else None
    known = 2 * best - open_[0]
    curve = _through(gains, at, best, known)
    return open_[0] if curve is None or curve.of(at(open_[0])) > gains[known] else None
