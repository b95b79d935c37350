"""Which of a query's candidates are read: the nearest, the most informative together, or random ones.

A selection sees one query's `Source`, which holds the view, the version and the leak filter, so
no selection can let a leak through. One that weighs candidates against each other starts from
`source.search(200)` and `source.vectors`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput
from uptake.text.types import Found, Source


class Select(ABC):
    """A choice of passages; subclasses are frozen dataclasses whose fields are the settings."""

    searches: ClassVar[bool] = True  # False: needs no store
    ranks: ClassVar[bool] = True  # False: does not depend on which passages are near
    gives_passages: ClassVar[bool] = True  # False: the method searches the store itself

    @property
    @abstractmethod
    def name(self) -> str:
        """What reports call it."""

    def choose(self, source: Source, k: int, generator: np.random.Generator) -> Found:
        """Return at most k passages, in the order to be read; BadInput if k is below 1."""
        if k < 1:
            raise BadInput(f"k is {k}: use at least 1 neighbour")
        return self._choose(source, k, generator)

    def check(self, source: Source, k: int) -> None:  # noqa: B027
        """Raise BadInput where it cannot choose k passages of this store; asked before the first query."""

    def for_model(self, model: object) -> "Select":
        """Return this selection as it chooses for the model that will learn; itself, if that is all one."""
        return self

    @abstractmethod
    def _choose(self, source: Source, k: int, generator: np.random.Generator) -> Found: ...


@dataclass(frozen=True, slots=True)
class Nearest(Select):
    """The k nearest passages, nearest first; with `least` those that score at least that share of the best.

    A neighbour that is found far behind the best promises less than it costs.
    """

    least: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise BadInput(f"least {self.least}: use a share of the best score, from 0, for all, to 1")

    @property
    def name(self) -> str:
        return "nearest"

    def _choose(self, source: Source, k: int, generator: np.random.Generator) -> Found:
        found = source.search(k)
        if not self.least or not found.scores:
            return found
        if found.scores[0] <= 0:
            raise BadInput(
                f"least {self.least}: the best score is {found.scores[0]:.4g}, whose share means nothing: "
                "use a store by words or by metric cosine"
            )
        enough = self.least * found.scores[0]
        return found.part(0, sum(score >= enough for score in found.scores))


@dataclass(frozen=True, slots=True)
class Random(Select):
    """k passages drawn uniformly from the whole store: the gain of reading any text at all."""

    ranks: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "random"

    def _choose(self, source: Source, k: int, generator: np.random.Generator) -> Found:
        return source.sample(k, generator)


@dataclass(frozen=True, slots=True)
class Everywhere(Select):
    """No passage, for the method itself searches the whole store as it goes."""

    ranks: ClassVar[bool] = False
    gives_passages: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "everywhere"

    def _choose(self, source: Source, k: int, generator: np.random.Generator) -> Found:
        return Found()


@dataclass(frozen=True, slots=True)
class Nothing(Select):
    """No passage: what is read is the query's own text."""

    searches: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "nothing"

    def _choose(self, source: Source, k: int, generator: np.random.Generator) -> Found:
        return Found()


@dataclass(frozen=True, slots=True)
class Sift(Select):
    """SIFT (Hübotter et al. 2024): of the nearest, those that together are most informative about the query.

    Greedy: each choice lowers most the variance that a Gaussian process with a linear kernel on
    normalised vectors, and noise of variance `regularisation`, still has at the query. A text that
    says again what was chosen lowers it little, so the same fact is not read over and over.

    With `alpha` it ends after the n-th choice once the standard deviation at the query is above
    1 / (alpha n): more texts are read where they are more informative. As in the published code, one text may
    be chosen again where reading it twice helps more than any other; `repeats=false` forbids it.
    """

    candidates: int = 200  # the nearest among which it chooses
    regularisation: float = 0.01
    alpha: float | None = None
    repeats: bool = True

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise BadInput(f"candidates {self.candidates}: use 1 or more")
        if not 0 < self.regularisation < float("inf"):
            raise BadInput(f"regularisation {self.regularisation}: use a positive number such as 0.01")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise BadInput(f"alpha {self.alpha}: use a positive number, or none to read all k")

    @property
    def name(self) -> str:
        return "sift"

    def check(self, source: Source, k: int) -> None:
        if k > self.candidates:
            # Candidates beyond that number would make the first few depend on k.
            raise BadInput(
                f"k is {k} and SIFT has {self.candidates} candidates: set candidates to {k} or more"
            )
        source.query_vector()

    def _choose(self, source: Source, k: int, generator: np.random.Generator) -> Found:
        self.check(source, k)
        query = source.query_vector()
        found = source.search(self.candidates)
        vectors = source.vectors([passage.id for passage in found.passages])
        order = sift(vectors, query, k, self.regularisation, self.alpha, self.repeats)
        return found.at(order)


def sift(
    vectors: NDArray[np.floating],
    query: NDArray[np.floating],
    count: int,
    regularisation: float = 0.01,
    alpha: float | None = None,
    repeats: bool = True,
) -> list[int]:
    """Return at most `count` rows of `vectors`, in the order SIFT chooses them; ties go to the first.

    `vectors` is [candidates, dimensions], `query` [dimensions]; both are normalised here. Ends
    early where no candidate is left, none is informative about the query, or `alpha` says so. After n
    choices a step takes O(candidates * (dimensions + n)).
    """
    points, target = _unit(vectors), _unit(query)
    if not len(points):
        return []
    # What is left, given the choices so far: covariance with the query, and variance, of each candidate.
    with_query = points @ target
    variance = np.einsum("ij,ij->i", points, points)
    left = float(target @ target)
    free = np.ones(len(points), bool)
    chosen: list[int] = []
    # Columns of the Cholesky factor of what the choices explain: covariance given them is K - F F^T.
    factor = np.empty((len(points), count))
    while len(chosen) < count and free.any():
        gains = np.where(free, with_query**2 / (variance + regularisation), -1.0)
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            break
        known, scale = factor[:, : len(chosen)], np.sqrt(variance[best] + regularisation)
        column = (points @ points[best] - known @ known[best]) / scale
        factor[:, len(chosen)] = column
        left -= float(gains[best])
        with_query = with_query - column * (with_query[best] / scale)
        variance = np.maximum(variance - column**2, 0.0)
        chosen.append(best)
        free[best] = repeats
        if alpha is not None and max(left, 0.0) ** 0.5 > 1 / (alpha * len(chosen)):
            break
    return chosen


def _unit(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the vectors in float64 with length one; one of zeros stays as it is."""
    wide = np.asarray(vectors, np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    return wide / np.where(length > 0, length, 1.0)
