"""Tokens that are near to keys, as a search of a store or of a memory returns them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Near:
    """For each of some keys, tokens that are near to it, nearest first; each field is [keys, k].

    `places` are their numbers among the tokens searched, -1 where there are fewer than k; there
    `distances`, which are squared, are infinite and `values`, the tokens themselves, 0.
    """

    places: NDArray[np.int64]
    distances: NDArray[np.floating]
    values: NDArray[np.int64]

    @classmethod
    def joined(cls, some: Sequence["Near"]) -> "Near":
        """Return what is near to the keys of several, which are as wide, one after another."""
        each = ([getattr(one, name) for one in some] for name in ("places", "distances", "values"))
        return cls(*map(np.concatenate, each))

    def at(self, key: int) -> "Near":
        """Return what is near to one of the keys; counted from the end below 0."""
        row = [key]
        return Near(self.places[row], self.distances[row], self.values[row])
