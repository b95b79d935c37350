"""How a learning rate is searched for, by whoever chooses one."""

from collections.abc import Callable


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
