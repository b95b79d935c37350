"""What a page of a stream shows: the headline, answers along the stream and against drift, the answers."""

from collections.abc import Mapping
from typing import Any

from uptake.report.calibrated import figures as calibrated
from uptake.report.formatting import many, number, percent
from uptake.report.page import chart
from uptake.report.page.layout import Page, Plot, WordsSection, colours
from uptake.report.results import BASE, Results
from uptake.report.streamed import figures as counting
from uptake.report.streamed.rows import Answered

Figures = dict[str, Any]
_LEGEND = (
    "NLL is in nats a token of the right answer, closed book; against the base with the 95 % interval of a "
    "paired bootstrap over groups of documents. F1 and exact match are marked as SQuAD 2.0 does. KL is the "
    "drift: how much the model has changed on unrelated text, in nats a token. CPU "
    "seconds and tokens are those of reading the whole stream."
)


def page(results: Results, figures: Figures) -> Page:
    """Return the page of a stream."""
    return Page(
        headline=headline(figures),
        caution=_caution(figures),
        extent=f"{many(figures['documents'], 'document', 'documents')}, "
        f"{many(figures['base']['questions'], 'question', 'questions')} at the end",
        legend=_LEGEND,
        measured=(
            "Every method read all documents in order, once, and answered without seeing them again. "
            f"Intervals resample whole groups, 10,000 times with seed {figures['seed']}, and pair every "
            "method with the base on the same questions. A document that could not be read was passed over; "
            "a question that could not be asked counts at the base’s answer."
            + (f" {lost[0].upper()}{lost[1:]}." if (lost := counting.unscored(figures)) else "")
            + "".join(f" {line}." for line in counting.claims(figures))
        ),
        plots=(
            *(plot for plot in (_length(figures), _forgetting(figures), _drift(figures)) if plot),
            *calibrated.plot(counting.calibration(figures)),
        ),
        sections=(
            *calibrated.section(counting.calibration(figures)),
            *([_answers(results, figures)] if results.showcases else ()),
        ),
    )


def _answers(results: Results, figures: Figures) -> WordsSection:
    """Return what the base and every method said to a few questions, at the end."""
    names = (BASE, *figures["methods"])
    said = {
        (row.method, row.question): row.said.strip() and row.said
        for row in results.of(Answered)
        if row.method == BASE or row.taken == figures["documents"]
    }
    return WordsSection(
        "Answers to some of the questions",
        ("question", "right", *names),
        tuple(
            (one.text, " / ".join(one.answers), *(said.get((name, one.question), "") for name in names))
            for one in results.showcases
        ),
    )


def _best(figures: Figures) -> str | None:
    known = {name: told["nll"] for name, told in figures["methods"].items() if told["nll"] is not None}
    return min(known, key=lambda name: known[name], default=None)


def headline(figures: Figures) -> str:
    """Return the result in a plain sentence: the method that finds the right answers likeliest."""
    best = _best(figures)
    asked = f"After {many(figures['documents'], 'document', 'documents')}"
    base = figures["base"]
    if best is None:
        return f"{asked} the base model needs {number(base['nll'], 2)} nats a token for the right answers."
    told = figures["methods"][best]
    drift = f", at a drift of {number(told['kl'], 3)} nats a token" if told["kl"] is not None else ""
    return (
        f"{asked} {best} needs {number(told['nll'], 2)} nats a token for the right answers, the base "
        f"{number(base['nll'], 2)}; it answers {percent(told['exact'])} of them, the base "
        f"{percent(base['exact'])}{drift}."
    )


def _caution(figures: Figures) -> str:
    best = _best(figures)
    if best is None:
        return ""
    interval = figures["methods"][best]["vs_base"]["nll"]["ci"]
    if interval is None:
        return "All questions are of one group, so there is no interval: ask about more documents."
    if interval[0] <= 0 <= interval[1]:
        return "The interval of the difference includes zero: on these questions this could be chance."
    return ""


def _lines(figures: Figures, title: str, caption: str, values: Mapping[str, list[chart.Mark]]) -> Plot | None:
    """Return NLL less the base's against the length of the stream, one line a method."""
    colour = colours({BASE: None} | figures["methods"])
    series = [chart.Series(name, colour[name], tuple(marks)) for name, marks in values.items() if marks]
    if not series:
        return None
    heights = [height for one in series for mark in one.marks for height in (mark.y, *(mark.ends or ()))]
    svg = chart.draw(
        "lines",
        series,
        chart.counts("documents read", [int(mark.x) for one in series for mark in one.marks]),
        chart.linear("NLL less the base's", [0.0, *heights], digits=1),
        summary=f"{title}; the JSON report gives the figures.",
        reference=(0.0, BASE),
    )
    return Plot(title, caption, svg)


def _mark_title(name: str, at: Figures, gap: float) -> str:
    return f"{name}, {many(at['taken'], 'document', 'documents')}: {number(gap, 3, '+')}"


def _length(figures: Figures) -> Plot | None:
    marks = {
        name: [
            chart.Mark(at["taken"], gap["difference"], gap["ci"], _mark_title(name, at, gap["difference"]))
            for at in told["at"]
            if (gap := at["vs_base"]["nll"])["difference"] is not None
        ]
        for name, told in figures["methods"].items()
    }
    return _lines(
        figures,
        "Answers against the length of the stream",
        "Lower is better: nats a token of the right answer, less the base's, over all documents read "
        "so far. Shaded: 95 % interval.",
        marks,
    )


def _forgetting(figures: Figures) -> Plot | None:
    """The questions on the documents before the first checkpoint, as the stream goes on."""
    if all(len(told["at"]) < 2 for told in figures["methods"].values()):
        return None
    marks: dict[str, list[chart.Mark]] = {}
    for name, told in figures["methods"].items():
        for at in told["at"]:
            first = next((band for band in at["bands"] if band["from"] == 1), None)
            if first and None not in (first["nll"], first["base"]["nll"]):
                gap = first["nll"] - first["base"]["nll"]
                marks.setdefault(name, []).append(
                    chart.Mark(at["taken"], gap, None, _mark_title(name, at, gap))
                )
    return _lines(
        figures,
        "Forgetting: questions on the first documents",
        "The same over the questions on the documents before the first checkpoint: rising is forgetting.",
        marks,
    )


def _drift(figures: Figures) -> Plot | None:
    """Answers against drift: one point a method and checkpoint."""
    colour = colours({BASE: None} | figures["methods"])
    series = []
    for name, told in figures["methods"].items():
        marks = [
            chart.Mark(at["kl"], gap, None, f"{_mark_title(name, at, gap)} at KL {number(at['kl'], 4)}")
            for at in told["at"]
            if at["kl"] is not None and (gap := at["vs_base"]["nll"]["difference"]) is not None
        ]
        if marks:
            series.append(chart.Series(name, colour[name], tuple(marks)))
    if not series:
        return None
    svg = chart.draw(
        "points",
        series,
        chart.linear("KL on unrelated text", [0.0, *(mark.x for one in series for mark in one.marks)]),
        chart.linear("NLL less the base's", [0.0, *(mark.y for one in series for mark in one.marks)], 1),
        summary="Answers against drift; the JSON report gives the figures.",
        reference=(0.0, BASE),
    )
    return Plot(
        "Answers against drift",
        "Down and to the left is better: right answers likelier, less change elsewhere.",
        svg,
    )
