"""What noise buys: epsilon of Poisson-sampled steps with Gaussian noise, and the noise that an epsilon needs.

By the privacy loss distribution (Gopi et al. 2021, arXiv 2106.02848) as the package opacus keeps it: an upper
bound, for data sets that differ by one unit, added or removed.
"""

import math
import warnings
from functools import cache

from uptake.errors import BadInput, Missing

_ERROR = 0.01  # in epsilon: what the bound may be too large by
LEAST = 25.0  # of (rate * square root of steps) / noise: there epsilon is about its square over two
_SMALL = 1e-10  # of delta: floating point dominates somewhere below
_CLOSE = 5e-3  # relative, of the noise multiplier that is solved for


def epsilon_of(noise: float, rate: float, steps: int, delta: float) -> float:
    """Return epsilon after `steps` steps, each with every unit at probability `rate`.

    `noise` is the standard deviation of the noise over the largest norm of a unit's gradient. Infinite
    without noise, and with so little that epsilon would be in the hundreds: that keeps nothing, and what
    computes it takes memory as epsilon grows.
    """
    if noise == 0 or rate * math.sqrt(steps) / noise > LEAST:
        return math.inf
    return _epsilon(noise, rate, steps, delta)


def noise_for(epsilon: float, rate: float, steps: int, delta: float, most: float) -> float:
    """Return the least noise multiplier that keeps `epsilon`, up to rounding on the safe side.

    Raises BadInput where it would be more than `most`, with the epsilon that can be kept.
    """
    if epsilon_of(most, rate, steps, delta) > epsilon:
        least = epsilon_of(most, rate, steps, delta)
        raise BadInput(
            f"epsilon {epsilon:g} over {steps:,} steps needs noise of more than {most:g} times the clip, "
            "more than a whole batch can sum to: take fewer steps, a larger batch, more documents"
            + (f", or epsilon {math.ceil(least * 100) / 100:g} or more" if math.isfinite(least) else "")
        )
    high = min(1.0, most)
    while epsilon_of(high, rate, steps, delta) > epsilon:
        high = min(2 * high, most)
    low = high / 2
    while low > 1e-2 and epsilon_of(low, rate, steps, delta) <= epsilon:
        low, high = low / 2, low
    while high / low > 1 + _CLOSE:
        middle = math.sqrt(low * high)
        if epsilon_of(middle, rate, steps, delta) > epsilon:
            low = middle
        else:
            high = middle
    return high


@cache
def _epsilon(noise: float, rate: float, steps: int, delta: float) -> float:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from opacus.accountants import PRVAccountant
    except ImportError:
        raise Missing("epsilon needs the package opacus: pip install 'uptake[privacy]'") from None
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a logarithm of zero that is not used, a start that is too wide
        try:
            return float(accountant.get_epsilon(delta, eps_error=_ERROR))
        except (ValueError, RuntimeError) as error:
            if delta > _SMALL:
                raise
            raise BadInput(
                f"delta {delta:g} is too small to reckon with: use a larger one, such as {_SMALL:g}"
            ) from error
