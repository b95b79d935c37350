"""Which of a query's candidates are read: the nearest, or, as a control, any at all.

A selection sees one query's `Source`, which holds the view, the version and the leak filter, so
no selection can let a leak through. One that weighs candidates against each other starts from
`source.search(200)` and `source.vectors`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from uptake.errors import BadInput
from uptake.text import Found, Source


class Select(ABC):
    """A way of choosing passages; subclasses are frozen dataclasses whose fields are the settings."""

    searches: ClassVar[bool] = True  # False: needs no store

    @property
    @abstractmethod
    def name(self) -> str:
        """What reports call it."""

    def choose(self, source: Source, k: int, generator: np.random.Generator) -> Found:
        """Return at most k passages, in the order to be read; BadInput if k is below 1."""
        if k < 1:
            raise BadInput(f"k is {k}: ask for at least 1 neighbour")
        return self._choose(source, k, generator)

    @abstractmethod
    def _choose(self, source: Source, k: int, generator: np.random.Generator) -> Found: ...


@dataclass(frozen=True, slots=True)
class Nearest(Select):
    """The k nearest passages, nearest first."""

    @property
    def name(self) -> str:
        return "nearest"

    def _choose(self, source: Source, k: int, generator: np.random.Generator) -> Found:
        return source.search(k)


@dataclass(frozen=True, slots=True)
class Random(Select):
    """k passages drawn uniformly from the whole store: what reading just any text is worth."""

    @property
    def name(self) -> str:
        return "random"

    def _choose(self, source: Source, k: int, generator: np.random.Generator) -> Found:
        return source.sample(k, generator)


@dataclass(frozen=True, slots=True)
class Nothing(Select):
    """No passage: what is taken up is the query's own text."""

    searches: ClassVar[bool] = False

    @property
    def name(self) -> str:
        return "nothing"

    def _choose(self, source: Source, k: int, generator: np.random.Generator) -> Found:
        return Found()
