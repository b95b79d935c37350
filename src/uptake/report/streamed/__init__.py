"""Reports of streams: answers to questions along the stream, drift, and what was passed over."""

from typing import Any, ClassVar

from uptake.report.formatting import many
from uptake.report.kind import Figures, ReportKind, TableLines
from uptake.report.page.layout import Page
from uptake.report.results import Results
from uptake.report.streamed import figures as counting
from uptake.report.streamed.rows import Answered, Claimed, DocumentFailed, Drifted, ShownQuestion, Spent


class StreamReport(ReportKind):
    """Rows are answers, drift, costs and failures; the base's answers stand with `taken` 0, each once."""

    rows = (Answered, Drifted, Spent, DocumentFailed, Claimed)
    figure_names = ("documents", "base", "methods", "pairs")
    showcase: ClassVar[Any] = ShownQuestion
    optional_headings = (
        "failed",
        "GPU memory",
        "one-off seconds",
        "tokens trained",
        "CPU seconds",
        "F1",
        "vs base",
    )

    def figures(self, results: Results) -> Figures:
        """Return `documents`, `base`, `methods` with every checkpoint under `at`, and `pairs` of methods."""
        return counting.figures(results)

    def lines(self, figures: Figures) -> TableLines:
        return counting.lines(figures)

    def caption(self, figures: Figures) -> str:
        return counting.caption(figures)

    def details(self, figures: Figures) -> list[TableLines]:
        return counting.details(figures)

    def failures(self, figures: Figures) -> dict[str, tuple[str, list[str]]]:
        found = {method: told["failures"] for method, told in figures["methods"].items()}
        return {
            method: (
                f"{many(len(some), 'document', 'documents')} passed over",
                [f"{one['document']}: {one['reason']}" for one in some],
            )
            for method, some in found.items()
            if some
        }

    def page(self, results: Results, figures: Figures) -> Page:
        from uptake.report.streamed.page import page

        return page(results, figures)


STREAMED = StreamReport()
