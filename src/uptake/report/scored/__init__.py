"""Reports of protocols that score text: bits per byte and gain over the base, at every k."""

from typing import Any, ClassVar

from uptake.report.formatting import ONE_OFF, many
from uptake.report.kind import Figures, ReportKind, TableLines
from uptake.report.page.layout import Page
from uptake.report.results import Results
from uptake.report.scored import figures as counting
from uptake.report.scored.groups import group_note
from uptake.report.scored.rows import Scored, Showcase


class ScoredReport(ReportKind):
    """Rows are `Scored`: queries, each paired with the base."""

    rows = (Scored,)
    figure_names = ("methods", "near_twins", "best", "groups")
    showcase: ClassVar[Any] = Showcase
    optional_headings = (
        "peak memory",
        "one-off seconds",
        "tokens trained",
        "helped",
        "CPU seconds",
        "vs random",
    )

    def figures(self, results: Results) -> Figures:
        """Return `methods`, each at its largest k and `by_k`; `near_twins`, `best` and `groups`."""
        return counting.figures(results)

    def lines(self, figures: Figures) -> TableLines:
        return counting.lines(figures)

    def caption(self, figures: Figures) -> str:
        gain = "gain: share of the base's bits saved"
        if any(method["gain_ci"] for method in figures["methods"].values()):
            gain += " [95 % interval, bootstrap by document]"
        failed = any(method["failures"] for method in figures["methods"].values())
        early = {name: method["stopped_early"] for name, method in figures["methods"].items()}
        stopped = ", ".join(f"{count} under {name}" for name, count in early.items() if count)
        return (
            f"{gain}; costs are a query's"
            + (f", {ONE_OFF}" if any(line.get("one-off seconds") for line in self.lines(figures)) else "")
            + ("; what failed counts at the base's score" if failed else "")
            + (f"\nstopped by the budget before all was read: {stopped}" if stopped else "")
            + (f"\n{own}" if (own := counting.own_controls(figures)) else "")
            + (f"\n{read}" if (read := counting.twins(figures)) else "")
            + (f"\n{lost}" if (lost := counting.unscored(figures)) else "")
            + (f"\n{note}" if (note := group_note(figures["groups"])) else "")
        )

    def details(self, figures: Figures) -> list[TableLines]:
        return counting.details(figures)

    def conclusion(self, figures: Figures) -> str:
        return counting.conclusion(figures)

    def failures(self, figures: Figures) -> dict[str, tuple[str, list[str]]]:
        return {
            method: (f"{many(len(lines), 'query', 'queries')} failed", lines)
            for method, (_, lines) in super().failures(figures).items()
        }

    def page(self, results: Results, figures: Figures) -> Page:
        from uptake.report.scored.page import page

        return page(results, figures)


SCORED = ScoredReport()
