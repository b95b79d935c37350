"""Reports of edits: what is said after them, what they changed elsewhere, what is left of the old ones."""

from typing import Any, ClassVar

from uptake.report.edited import figures as counting
from uptake.report.edited.rows import Cost, EditFailed, Elsewhere, ShownEdit, Told
from uptake.report.formatting import many
from uptake.report.kind import Figures, ReportKind, TableLines
from uptake.report.page.layout import Page
from uptake.report.results import Results


class EditsReport(ReportKind):
    """Rows are replies, drift elsewhere, costs and failures; the base's replies stand with `made` 0."""

    rows = (Told, Elsewhere, Cost, EditFailed)
    figure_names = ("edits", "known", "base", "methods", "pairs")
    showcase: ClassVar[Any] = ShownEdit
    optional_headings = (
        "failed",
        "one-off seconds",
        "bytes an edit",
        "CPU s a prompt",
        "KL 99th",
        "loose",
        "likelier",
        "forced",
    )

    def figures(self, results: Results) -> Figures:
        """Return `edits`, `known`, `base`, `methods` and `pairs` of methods: see figures.py."""
        return counting.figures(results)

    def lines(self, figures: Figures) -> TableLines:
        return counting.lines(figures)

    def caption(self, figures: Figures) -> str:
        return counting.caption(figures)

    def details(self, figures: Figures) -> list[TableLines]:
        return counting.details(figures)

    def failures(self, figures: Figures) -> dict[str, tuple[str, list[str]]]:
        return {
            method: (
                f"{many(len(some), 'edit', 'edits')} failed",
                [f"{one['edit']}: {one['reason']}" for one in some],
            )
            for method, told in figures["methods"].items()
            if (some := told["failures"])
        }

    def page(self, results: Results, figures: Figures) -> Page:
        from uptake.report.edited.page import page

        return page(results, figures)


EDITED = EditsReport()
