"""What a page of edits shows: the headline, success against drift and by age, and what was said."""

from typing import Any

from uptake.report.calibrated import figures as calibrated
from uptake.report.edited import figures as counting
from uptake.report.edited.rows import Told
from uptake.report.formatting import many, number, percent
from uptake.report.page import chart
from uptake.report.page.layout import Page, Plot, WordsSection, colours
from uptake.report.results import BASE, Results

Figures = dict[str, Any]
_LEGEND = (
    "Success, tight and loose: what the model says by itself after the edit’s own prompt, its rephrases "
    "and looser "
    "ones begins with the target. Forced: each token of the target is the likeliest, given those before it; "
    "likelier: the target is likelier than the old answer. Both flatter: they are there to show the gap. "
    "Same: after neighbours the base’s very words are said; leak: the edit’s target is. KL is in nats a "
    "token of "
    "unrelated text, bits change that of its bits per byte."
)


def page(results: Results, figures: Figures) -> Page:
    """Return the page of edits."""
    plots = (_frontier(figures), _retention(figures), _course(figures))
    return Page(
        headline=headline(figures),
        caution=_caution(figures),
        extent=f"{many(figures['edits'], 'edit', 'edits')}; the base knew {figures['known']:,}",
        legend=_LEGEND,
        measured=(
            "All edits were made first, then everything was asked once: every reply is the model’s own "
            "greedy text up "
            f"to its own stop. Intervals resample whole edits, 10,000 times with seed {figures['seed']}. "
            f"An edit that "
            "could not be made stays unmade and counts as it is; a prompt that could not be asked counts "
            "at the base’s "
            "reply."
        ),
        plots=(*(plot for plot in plots if plot), *calibrated.plot(counting.calibration(figures))),
        sections=(
            *calibrated.section(counting.calibration(figures)),
            *([_words(results, figures)] if results.showcases else ()),
        ),
    )


def _best(figures: Figures) -> str | None:
    told = {
        name: method["success"] - (method["leak"] or 0.0)
        for name, method in figures["methods"].items()
        if method["success"] is not None and method["edit_seconds"] is not None
    }
    return max(told, key=lambda name: told[name], default=None)


def headline(figures: Figures) -> str:
    """Return the result in a plain sentence: the method of the most success, less what leaks."""
    after = f"After {many(figures['edits'], 'edit', 'edits')}"
    best = _best(figures)
    if best is None:
        return f"{after} the base model says {percent(figures['base']['success'], 0)} of the targets."
    told = figures["methods"][best]
    beside = "".join(
        f", {text} {percent(told[key], 0)}"
        for key, text in (("tight", "in other words"), ("leak", "and to neighbours"))
        if told[key] is not None
    )
    return f"{after} {best} says {percent(told['success'], 0)} of the targets{beside}."


def _caution(figures: Figures) -> str:
    best = _best(figures)
    if best is None:
        return ""
    interval = figures["methods"][best]["vs_base"]["success"]["ci"]
    if interval is None:
        return "There is one edit alone, so there is no interval: make more."
    if interval[0] <= 0 <= interval[1]:
        return "The interval of the difference to the base includes zero: this could be chance."
    return ""


def _frontier(figures: Figures) -> Plot | None:
    """Success against drift: one point a method."""
    colour = colours({BASE: None} | figures["methods"])
    series = [
        chart.Series(
            name,
            colour[name],
            (
                chart.Mark(
                    told["kl"],
                    100 * told["success"],
                    [100 * end for end in told["success_ci"]] if told["success_ci"] else None,
                    f"{name}: {percent(told['success'], 0)} at KL {number(told['kl'], 4)}",
                ),
            ),
        )
        for name, told in figures["methods"].items()
        if told["kl"] is not None and told["success"] is not None
    ]
    if not series:
        return None
    base = 100 * (figures["base"]["success"] or 0.0)
    heights = [height for one in series for mark in one.marks for height in (mark.y, *(mark.ends or ()))]
    svg = chart.draw(
        "points",
        series,
        chart.linear("KL on unrelated text", [0.0, *(mark.x for one in series for mark in one.marks)]),
        chart.linear("success, %", [0.0, base, *heights]),
        summary="Success against drift; the JSON report gives the figures.",
        reference=(base, BASE),
    )
    return Plot(
        "Success against drift", "Up and to the left is better: more edits hold, less else changes.", svg
    )


def _retention(figures: Figures) -> Plot | None:
    marks = {
        name: [
            chart.Mark(
                place,
                100 * band["success"],
                None,
                f"{name}, edits {band['from']} to {band['to']}: {percent(band['success'], 0)}",
            )
            for place, band in enumerate(told["retention"])
        ]
        for name, told in figures["methods"].items()
    }
    longest: list[Figures] = max(
        (told["retention"] for told in figures["methods"].values()), key=len, default=[]
    )
    labels = [f"{band['from']}" for band in longest]
    axis = chart.names("edits in the order made, from the", labels)
    caption = "The oldest edits to the left: falling to the left is forgetting."
    return _lines(figures, "What is left, by age", caption, marks, axis)


def _course(figures: Figures) -> Plot | None:
    if all(len(told["at"]) < 2 for told in figures["methods"].values()):
        return None
    marks = {
        name: [
            chart.Mark(
                at["made"],
                100 * at["success"],
                None,
                f"{name}, {at['made']:,} made: {percent(at['success'], 0)}",
            )
            for at in told["at"]
        ]
        for name, told in figures["methods"].items()
        if len(told["at"]) > 1
    }
    axis = chart.counts("edits made", [int(mark.x) for some in marks.values() for mark in some])
    return _lines(figures, "Success as edits grow in number", "Over all edits made by then.", marks, axis)


def _lines(
    figures: Figures, title: str, caption: str, values: dict[str, list[chart.Mark]], x: chart.Axis
) -> Plot | None:
    colour = colours({BASE: None} | figures["methods"])
    series = [
        chart.Series(name, colour[name], tuple(marks)) for name, marks in values.items() if len(marks) > 1
    ]
    if not series:
        return None
    svg = chart.draw(
        "lines", series, x, chart.linear("success, %", [0.0, 100.0]),
        summary=f"{title}; the JSON report gives the figures.",
    )  # fmt: skip
    return Plot(title, caption, svg)


def _words(results: Results, figures: Figures) -> WordsSection:
    """Return what the base and every method said after a few prompts, at the end."""
    names = (BASE, *figures["methods"])
    said = {
        (row.method, row.edit, row.kind, row.number): row.said.strip()
        for row in results.of(Told)
        if row.method == BASE or row.made == figures["edits"]
    }
    return WordsSection(
        "What is said after some of the prompts",
        ("prompt", "of the edit to", "asked as", *names),
        tuple(
            (
                one.prompt,
                one.target,
                one.kind,
                *(said.get((name, one.edit, one.kind, one.number), "") for name in names),
            )
            for one in results.showcases
        ),
        "The edit’s target is right after its own prompt, a rephrase and a loose one, and wrong after a "
        "neighbour, "
        "where it is denied, and where the edit is said before a neighbour.",
    )
