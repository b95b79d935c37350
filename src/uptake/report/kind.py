"""What a kind of report is: the kinds of its rows, and how they become figures, a table and a page.

A protocol names the kind of its rows; whatever writes, reads or shows results asks the kind. A
kind knows rows alone: no model, no store.
"""

from abc import ABC, abstractmethod
from functools import cache
from typing import Any, ClassVar

from cattrs import Converter

from uptake.codec import Malformed, converter, plain
from uptake.report.page.layout import Page
from uptake.report.results import Results, Row

Figures = dict[str, Any]
TableLines = list[dict[str, str]]


class ReportKind(ABC):
    """Figures, table and page of one kind of rows. Final classes have no state."""

    rows: ClassVar[tuple[type[Row], ...]]
    figure_names: ClassVar[tuple[str, ...]] = ("methods",)  # of the figures, which follow from the rest
    showcase: ClassVar[Any] = object  # type of the examples that are shown in full
    optional_headings: ClassVar[tuple[str, ...]] = ()  # left out on a narrow screen, in this order

    @abstractmethod
    def figures(self, results: Results) -> Figures:
        """Return the figures as plain JSON data by `figure_names`.

        `methods` holds each method's, with its `failures`.
        """

    @abstractmethod
    def lines(self, figures: Figures) -> TableLines:
        """Return the table: one line a method under the same headings, the first of them `method`."""

    @abstractmethod
    def caption(self, figures: Figures) -> str:
        """Return what stands below the table in a terminal."""

    @abstractmethod
    def page(self, results: Results, figures: Figures) -> Page:
        """Return what the page shows besides the table, the samples and the header."""

    def details(self, figures: Figures) -> list[TableLines]:
        """Return further tables for a terminal, such as how figures came about; none by default."""
        return []

    def conclusion(self, figures: Figures) -> str:
        """Return the result in a sentence; nothing by default."""
        return ""

    def failures(self, figures: Figures) -> dict[str, tuple[str, list[str]]]:
        """Return for each method with failures how many there were, in words, and a line on each."""
        return {
            method: (f"{len(found)} failed", [": ".join(map(str, one.values())) for one in found])
            for method, values in figures["methods"].items()
            if (found := values["failures"])
        }


class AnyShowcase:
    """Stands for the showcase of a report's kind in the type hints of files about any kind."""


@cache
def reader(report: ReportKind) -> Converter:
    """Return what `load` reads files about such a report by.

    A Row in a type hint is any of its rows, as `tagged` wrote it, and AnyShowcase its showcase.
    """
    made, kinds = converter(str), {tag(kind): kind for kind in report.rows}

    def row(data: Any, _: Any) -> Any:
        name = data.get("row") if isinstance(data, dict) else None
        if not isinstance(name, str) or name not in kinds:
            raise Malformed(f"is {data!r:.60}, no row of {', '.join(kinds)}")
        return made.structure({key: value for key, value in data.items() if key != "row"}, kinds[name])

    made.register_structure_hook_func(lambda kind: kind is Row, row)
    made.register_structure_hook_func(
        lambda kind: kind is AnyShowcase, lambda data, _: made.structure(data, report.showcase)
    )
    return made


def tag(kind: type[Row]) -> str:
    """Return what files call a kind of row."""
    return kind.__name__.lower()


def tagged(row: Row) -> dict[str, Any]:
    """Return a row as JSON data that says which kind it is."""
    return {"row": tag(type(row)), **plain(row)}
