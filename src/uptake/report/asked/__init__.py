"""Reports of open questions: marks of answers, what was found, and the passage that an answer rests on."""

from typing import Any, ClassVar

from uptake.report.asked import figures as counting
from uptake.report.asked.rows import Asked, ShownAsked
from uptake.report.calibrated import figures as calibrated
from uptake.report.formatting import many, percent
from uptake.report.kind import Figures, ReportKind, TableLines
from uptake.report.page.layout import Page, WordsSection
from uptake.report.results import Results

_LEGEND = (
    "Exact match and F1 are marked as SQuAD 2.0 does; contains: the answer holds a right one; nats: of the "
    "right answer. Recall and MRR: of the passages read, where the question names its document. Rests on the "
    "right: what was said stands in a passage of that document that was read."
)
_SHOWN = 300  # characters of a passage


class AskedReport(ReportKind):
    """Rows are answers to questions, each by itself."""

    rows = (Asked,)
    showcase: ClassVar[Any] = ShownAsked
    optional_headings = ("failed", "CPU seconds", "nats", "MRR", "contains")

    def figures(self, results: Results) -> Figures:
        return counting.figures(results)

    def lines(self, figures: Figures) -> TableLines:
        return counting.lines(figures)

    def caption(self, figures: Figures) -> str:
        asked = max((one["questions"] for one in figures["methods"].values()), default=0)
        sure = calibrated.extent(_calibration(figures))
        return (
            f"{many(asked, 'question', 'questions')}; [95 % interval, bootstrap by document]. {_LEGEND}"
            + (f" {sure[0].upper()}{sure[1:]}." if sure else "")
        )

    def details(self, figures: Figures) -> list[TableLines]:
        return calibrated.tables(_calibration(figures))

    def page(self, results: Results, figures: Figures) -> Page:
        told = {name: one for name, one in figures["methods"].items() if one["questions"]}
        best = max(told, key=lambda name: told[name]["f1"]["mean"], default="")
        names = list(figures["methods"])
        cells = tuple(
            (
                one.question,
                " / ".join(one.answers),
                *(_cell(one.said.get(name, ""), one.passages.get(name, "")) for name in names),
            )
            for one in results.showcases
        )
        headline = (
            f"{best} answers best: F1 {percent(told[best]['f1']['mean'])}, the base "
            f"{percent(told[best]['f1']['mean'] - told[best]['vs_base']['f1']['mean'])}."
            if best
            else "No question was asked."
        )
        return Page(
            headline=headline,
            caution="",
            extent=self.caption(figures).partition(";")[0],
            legend=_LEGEND,
            measured="Each question searched the store, was answered after what a method made of what it "
            "found, and was forgotten. A question that failed counts at the base’s answer.",
            plots=calibrated.plot(_calibration(figures)),
            sections=(
                *calibrated.section(_calibration(figures)),
                *(
                    [WordsSection("Answers, and what they rest on", ("question", "right", *names), cells)]
                    if cells
                    else ()
                ),
            ),
        )


def _calibration(figures: Figures) -> dict[str, Any]:
    return {name: told["calibration"] for name, told in figures["methods"].items()}


def _cell(said: str, passage: str) -> str:
    return f"{said} — from: {passage[:_SHOWN]}" if passage else said


ASKED = AskedReport()
