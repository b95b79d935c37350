"""BAIT (Ash et al. 2021): which texts together tell most, by the Fisher information of a model's last layer.

Algebra alone: the factors of each text's Fisher information come from whoever has a model.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput

Floats = NDArray[np.float64]


def bait(
    factors: NDArray[np.floating],
    count: int,
    about: NDArray[np.floating] | None = None,
    regularisation: float = 1.0,
    seen: NDArray[np.floating] | None = None,
) -> list[int]:
    """Return `count` of the candidates, in the order they were added; ties go to the first.

    `factors` is [candidates, rows, dimensions]: V with V'V the Fisher information of each. `about`
    [rows, dimensions] is that of what is to be learnt, the mean over all candidates where it is None; `seen`
    [texts, rows, dimensions] those learnt already. It minimises tr(M^-1 F), where M is what was chosen
    and seen and `regularisation` times the identity: adds up to twice as many, each the best, then
    drops the worst one by one. Raises BadInput for numbers that are not finite.
    """
    field = Field(factors, count, about, regularisation, seen)
    free = [*range(len(factors))]
    chosen: list[int] = []
    while free and len(chosen) < 2 * count:
        best = free[int(np.argmax(field.gains(free)))]
        field.add(best)
        free.remove(best)
        chosen.append(best)
    while len(chosen) > count:
        chosen.pop(int(np.argmin(field.losses(chosen))))
    return chosen


class Field:
    """V_i M^-1 V_j' for all pairs of candidates and with what they are about, kept up by Woodbury's identity.

    M itself, dimensions by dimensions, is never made: an update takes the square of the number of rows. It
    only ever adds: taking V'V away again, as the published code does, loses all digits within some
    steps where `regularisation` is small, so what a drop costs is read off the inverse of what is held.
    """

    def __init__(
        self,
        factors: NDArray[np.floating],
        count: int,
        about: NDArray[np.floating] | None = None,
        regularisation: float = 1.0,
        seen: NDArray[np.floating] | None = None,
    ) -> None:
        if not 0 < regularisation < float("inf"):
            raise BadInput(f"regularisation {regularisation}: use a positive number such as 1")
        wide = np.asarray(factors, np.float64)
        candidates, self.rows, dimensions = wide.shape
        known = np.zeros((0, dimensions))
        if seen is not None and len(seen):
            # As published: the mean of what was seen, and the new, each by its share of the whole.
            share = len(seen) / (len(seen) + count)
            known = np.asarray(seen, np.float64).reshape(-1, dimensions) * (share / len(seen)) ** 0.5
            wide = wide * (1 - share) ** 0.5
        own = wide.reshape(-1, dimensions)
        self.about = np.asarray(factors, np.float64).reshape(-1, dimensions) / max(1, candidates) ** 0.5
        if about is not None:
            self.about = np.asarray(about, np.float64)
        whole = np.concatenate([own, self.about, known])
        if not np.isfinite(whole).all():
            raise BadInput(
                "a factor of the Fisher information is not finite: use a model that has not diverged"
            )
        products = whole @ whole.T / regularisation
        first = len(own) + len(self.about)
        if len(known):
            products = _added(products, slice(first, len(whole)))
        self.products: Floats = products[:first, :first]
        self._first, self._own = self.products, len(own)

    def gains(self, some: Sequence[int]) -> Floats:
        """Return by how much tr(M^-1 F) falls when each of these is added."""
        return np.array([self._gain(each) for each in some])

    def add(self, number: int) -> None:
        """Take a candidate into M."""
        self.products = _added(self.products, self._block(number))

    def losses(self, held: Sequence[int]) -> Floats:
        """Return by how much tr(M^-1 F) grows when each of `held` is dropped, M holding just these."""
        places = np.concatenate([np.arange(self._own)[self._block(each)] for each in held])
        left = np.linalg.inv(np.eye(len(places)) + self._first[np.ix_(places, places)])
        across = left @ self._first[places, self._own :]
        return np.array(
            [_weighed(left[block, block], across[block]) for block in map(self._block, range(len(held)))]
        )

    def _gain(self, number: int) -> float:
        block = self._block(number)
        inner = np.eye(self.rows) + self.products[block, block]
        return _weighed(inner, self.products[block, self._own :])

    def _block(self, number: int) -> slice:
        return slice(number * self.rows, (number + 1) * self.rows)


def _weighed(inner: Floats, across: Floats) -> float:
    return float(np.sum(np.linalg.solve(inner, across) * across))


def _added(products: Floats, block: slice) -> Floats:
    """Return the products once V'V of this block's rows is added to M."""
    column = products[:, block]
    inner = np.eye(column.shape[1]) + products[block, block]
    return products - column @ np.linalg.solve(inner, column.T)
