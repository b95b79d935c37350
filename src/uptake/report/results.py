"""What an evaluation writes down: rows as its protocol makes them, and a header once.

Plain data, so that a report can be made from a file long after the run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from uptake.report.kind import ReportKind

RowT = TypeVar("RowT", bound="Row")
BASE, CONTROL = "base", "random"  # the methods every other is measured against


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement under one method; every kind of report derives its own rows from it."""

    method: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A passage that was read, as the report shows it; `place` says where in its source it stands.

    `overlap` and `letters` are the shares of it that stand in the document it was read for, by words and by
    runs of letters.
    """

    document: str
    start: int
    score: float
    overlap: float
    text: str
    place: str = ""
    letters: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One prompt continued by the base model and after reading."""

    prompt: str
    continuations: Mapping[str, str]  # method -> text
    neighbours: tuple[Neighbour, ...] = ()


@dataclass(frozen=True, slots=True)
class Header:
    """What was run, once for the whole report."""

    seed: int
    versions: Mapping[str, str]
    model: Mapping[str, str | int]
    store: Mapping[str, str | int]
    protocol: Mapping[str, str | int | float | bool]
    settings: Mapping[str, Mapping[str, object]]  # method -> every setting of it
    peak_rss_bytes: Mapping[str, int] = field(default_factory=dict)  # method -> most memory held
    peak_gpu_bytes: Mapping[str, int] = field(default_factory=dict)  # the same on a GPU, where there is one
    notes: tuple[str, ...] = ()
    within: str = ""  # the cost that `best` is told within: 3x the base's, or 20s a query
    by: str = ""  # the field of documents that figures are also told by, if one was named
    by_document: Mapping[str, str] = field(default_factory=dict)  # document -> what it has there


@dataclass(frozen=True, slots=True)
class Results:
    """A whole evaluation; `kind` says what its rows are and what is made of them."""

    kind: "ReportKind"
    header: Header
    rows: tuple[Row, ...]
    showcases: tuple[Any, ...] = ()
    samples: tuple[Sample, ...] = ()

    def of(self, kind: type[RowT]) -> list[RowT]:
        """Return the rows of one kind, in order."""
        return [row for row in self.rows if isinstance(row, kind)]
