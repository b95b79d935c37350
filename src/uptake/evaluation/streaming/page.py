"""A stream's report as one HTML file: results in, words and charts out; page/ places and colours them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uptake.codec import plain, write_whole
from uptake.evaluation.streaming.report import BASE, lines, summary
from uptake.evaluation.streaming.results import StreamResults
from uptake.report.page import chart, render
from uptake.report.page.plots import Plot, colours
from uptake.report.summary import many, number, percent

Figures = dict[str, Any]


def write_page(results: StreamResults, path: str | Path) -> None:
    """Write the results as one self-contained HTML file. Raises BadInput where `path` cannot be written."""
    write_whole(path, page(results).encode())


def page(results: StreamResults) -> str:
    """Return the HTML of the results; any text in them is shown, none of it is markup."""
    return render("stream.html.jinja", _view(results))


def _view(results: StreamResults) -> Figures:
    figures = summary(results)
    ways = figures["ways"]
    last = {
        (row.method, row.question): row.said for row in results.answers if row.taken == figures["documents"]
    }
    last |= {(row.method, row.question): row.said for row in results.answers if row.method == BASE}
    return {
        "model": str(results.header.model.get("name", "the model")),
        "headline": headline(figures),
        "caution": _caution(figures),
        "extent": f"{many(figures['documents'], 'document', 'documents')}, "
        f"{many(figures['base']['questions'], 'question', 'questions')} at the end",
        "lines": lines(figures),
        "colours": colours({BASE: None} | ways),
        "plots": [plot for plot in (_length(figures), _kept(figures), _drift(figures)) if plot],
        "ways": [BASE, *ways],
        "shown": [
            {
                "text": one.text,
                "right": " / ".join(one.answers),
                "said": [last.get((way, one.question), "") for way in (BASE, *ways)],
            }
            for one in results.shown
        ],
        "facts": {name.capitalize(): figures[name] for name in ("protocol", "model", "versions")},
        "seed": figures["seed"],
        "settings": {way: plain(values) for way, values in figures["settings"].items()},
        "notes": figures["notes"],
        "stopped": {way: told["stopped"] for way, told in ways.items() if told["stopped"]},
        "figures": figures,
    }


def _best(figures: Figures) -> str | None:
    known = {way: told["nll"] for way, told in figures["ways"].items() if told["nll"] is not None}
    return min(known, key=lambda way: known[way], default=None)


def headline(figures: Figures) -> str:
    """Return the result in a plain sentence: the way that finds the right answers likeliest."""
    best = _best(figures)
    asked = f"After {many(figures['documents'], 'document', 'documents')}"
    base = figures["base"]
    if best is None:
        return f"{asked} the base model needs {number(base['nll'], 2)} nats a token for the right answers."
    told = figures["ways"][best]
    drift = f", at a drift of {number(told['kl'], 3)} nats a token" if told["kl"] is not None else ""
    return (
        f"{asked} {best} needs {number(told['nll'], 2)} nats a token for the right answers, the base "
        f"{number(base['nll'], 2)}; it says {percent(told['exact'])} of them, the base "
        f"{percent(base['exact'])}{drift}."
    )


def _caution(figures: Figures) -> str:
    best = _best(figures)
    if best is None:
        return ""
    interval = figures["ways"][best]["vs_base"]["nll"]["ci"]
    if interval is None:
        return "All questions are of one group, so there is no interval: ask about more documents."
    if interval[0] <= 0 <= interval[1]:
        return "The interval of the difference includes zero: on these questions this could be chance."
    return ""


def _lines(figures: Figures, title: str, caption: str, values: Mapping[str, list[chart.Mark]]) -> Plot | None:
    """Return NLL less the base's against the length of the stream, one line a way."""
    colour = colours({BASE: None} | figures["ways"])
    series = [chart.Series(way, colour[way], tuple(marks)) for way, marks in values.items() if marks]
    if not series:
        return None
    heights = [height for one in series for mark in one.marks for height in (mark.y, *(mark.ends or ()))]
    svg = chart.draw(
        "lines",
        series,
        chart.counts("documents taken up", [int(mark.x) for one in series for mark in one.marks]),
        chart.linear("NLL less the base's", [0.0, *heights], digits=1),
        summary=f"{title}; the JSON report gives the figures.",
        reference=(0.0, BASE),
    )
    return Plot(title, caption, svg)


def _told(way: str, at: Figures, gap: float) -> str:
    return f"{way}, {many(at['taken'], 'document', 'documents')}: {number(gap, 3, '+')}"


def _length(figures: Figures) -> Plot | None:
    marks = {
        way: [
            chart.Mark(at["taken"], gap["difference"], gap["ci"], _told(way, at, gap["difference"]))
            for at in told["at"]
            if (gap := at["vs_base"]["nll"])["difference"] is not None
        ]
        for way, told in figures["ways"].items()
    }
    return _lines(
        figures,
        "Answers against the length of the stream",
        "Lower is better: nats a token of the right answer, less the base's, over all documents taken "
        "so far. Shaded: 95 % interval.",
        marks,
    )


def _kept(figures: Figures) -> Plot | None:
    """The questions on the documents before the first checkpoint, as the stream goes on."""
    if all(len(told["at"]) < 2 for told in figures["ways"].values()):
        return None
    marks: dict[str, list[chart.Mark]] = {}
    for way, told in figures["ways"].items():
        for at in told["at"]:
            first = next((band for band in at["bands"] if band["from"] == 1), None)
            if first and None not in (first["nll"], first["base"]["nll"]):
                gap = first["nll"] - first["base"]["nll"]
                marks.setdefault(way, []).append(chart.Mark(at["taken"], gap, None, _told(way, at, gap)))
    return _lines(
        figures,
        "What is kept of the first documents",
        "The same over the questions on the documents before the first checkpoint: rising is forgetting.",
        marks,
    )


def _drift(figures: Figures) -> Plot | None:
    """Answers against drift: one point a way and checkpoint."""
    colour = colours({BASE: None} | figures["ways"])
    series = []
    for way, told in figures["ways"].items():
        marks = [
            chart.Mark(at["kl"], gap, None, f"{_told(way, at, gap)} at KL {number(at['kl'], 4)}")
            for at in told["at"]
            if at["kl"] is not None and (gap := at["vs_base"]["nll"]["difference"]) is not None
        ]
        if marks:
            series.append(chart.Series(way, colour[way], tuple(marks)))
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
        "Down and to the left is better: right answers likelier, the rest of the model as it was.",
        svg,
    )
