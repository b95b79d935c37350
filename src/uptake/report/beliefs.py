"""Reports of beliefs: which change when one of them is edited by itself, as a graph (Hase et al. 2021)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, ClassVar

from uptake.report import metrics
from uptake.report.formatting import ends, filled, many, number, percent
from uptake.report.kind import Figures, ReportKind, TableLines
from uptake.report.page.layout import Page, Plot, WordsSection, colours
from uptake.report.results import Results, Row

Graph = Mapping[str, list[str]]
_SIZE, _RADIUS, _DOT = 560.0, 220.0, 7.0


@dataclass(frozen=True, slots=True)
class Flipped(Row):
    """One belief edited by itself under one method: whether it holds, and which others are answered anew."""

    belief: str
    made: bool
    others: tuple[str, ...]
    failed: str = ""


@dataclass(frozen=True, slots=True)
class ShownBelief:
    """A belief in words: its prompt, what the base says, and what it was edited to."""

    belief: str
    prompt: str
    said: str
    target: str


class BeliefsReport(ReportKind):
    """Rows are beliefs that were edited alone; the figures of a method hold its whole graph."""

    rows = (Flipped,)
    showcase: ClassVar[Any] = ShownBelief
    optional_headings = ("most in", "most out")

    def figures(self, results: Results) -> Figures:
        names = dict.fromkeys(row.method for row in results.of(Flipped))
        return {"methods": {name: _figures(results, name) for name in names}}

    def lines(self, figures: Figures) -> TableLines:
        return filled(
            {
                "method": name,
                "beliefs": str(told["beliefs"]),
                "made": percent(told["made"]),
                "edges": str(told["edges"]),
                "density": percent(told["density"]) + ends(told["density_ci"]),
                "degree": number(told["degree"], 2),
                "most in": str(told["most_in"]),
                "most out": str(told["most_out"]),
                "transitive": percent(told["transitive"]),
            }
            for name, told in figures["methods"].items()
        )

    def caption(self, figures: Figures) -> str:
        return (
            "an edge leads from a belief that was edited alone to one whose answer then changed; transitive: "
            "share of its grandchildren that are children too"
        )

    def page(self, results: Results, figures: Figures) -> Page:
        shown = {one.belief: one for one in results.showcases}
        told = figures["methods"]
        plots = tuple(
            Plot(
                f"Beliefs under {name}",
                f"{many(own['edges'], 'edge', 'edges')} between {own['beliefs']} beliefs; those that an edit "
                "did not change stand hollow",
                drawn(own["graph"], set(own["unmade"]), shown, colours(told)[name]),
                wide=True,
            )
            for name, own in told.items()
        )
        rows = tuple((one.belief, one.prompt, one.said, one.target) for one in shown.values())
        sections = (WordsSection("The beliefs", ("belief", "prompt", "the base says", "edited to"), rows),)
        return Page(
            headline=_headline(figures),
            caution="",
            extent=many(max((own["beliefs"] for own in told.values()), default=0), "belief", "beliefs"),
            legend=f"{self.caption(figures)[0].upper()}{self.caption(figures)[1:]}.",
            measured=(
                "Each belief was edited by itself, from the base, and all were asked: an answer that is "
                "not the base’s very words has changed. Intervals resample beliefs that were edited."
            ),
            plots=plots,
            sections=sections if rows else (),
        )


def _headline(figures: Figures) -> str:
    told = figures["methods"]
    best = max(
        told, key=lambda name: (told[name]["made"] or 0.0, -(told[name]["density"] or 0.0)), default=None
    )
    if best is None:
        return "No belief was edited."
    own = told[best]
    return (
        f"{best} makes {percent(own['made'], 0)} of the edits, each of which changes "
        f"{percent(own['density'], 0)} of the other answers."
    )


def _figures(results: Results, name: str) -> Figures:
    rows = [row for row in results.of(Flipped) if row.method == name]
    graph = {row.belief: list(row.others) for row in rows}
    count, counts = len(rows), [float(len(row.others)) for row in rows]
    could = [float(count - 1)] * count
    interval = metrics.ratio_interval(counts, could, [row.belief for row in rows]) if count > 1 else None
    incoming = [sum(row.belief in others for others in graph.values()) for row in rows]
    paths = [
        (one, last)
        for one, children in graph.items()
        for child in children
        for last in graph.get(child, ())
        if last != one
    ]
    return {
        "beliefs": count,
        "made": sum(row.made for row in rows) / count if count else None,
        "edges": int(sum(counts)),
        "density": sum(counts) / sum(could) if count > 1 else None,
        "density_ci": interval and list(interval),
        "degree": sum(counts) / count if count else None,
        "most_in": max(incoming, default=0),
        "most_out": int(max(counts, default=0)),
        "transitive": sum(last in graph[one] for one, last in paths) / len(paths) if paths else None,
        "graph": graph,
        "unmade": [row.belief for row in rows if not row.made],
        "failures": [{"belief": row.belief, "reason": row.failed} for row in rows if row.failed],
    }


def drawn(graph: Graph, unmade: set[str], shown: Mapping[str, ShownBelief], colour: int) -> str:
    """Return a graph as SVG: beliefs on a circle, an edge bent towards the middle, its end by an arrow.

    Whatever a belief is called or says is escaped.
    """
    middle, places = _SIZE / 2, {}
    for number_, belief in enumerate(graph):
        angle = 2 * math.pi * number_ / max(1, len(graph)) - math.pi / 2
        places[belief] = (middle + _RADIUS * math.cos(angle), middle + _RADIUS * math.sin(angle))
    lines = [
        _edge(places[one], places[other], middle, f"{one} changes {other}")
        for one, others in graph.items()
        for other in others
        if other in places
    ]
    dots = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_DOT}" '
        f'style="fill:{"none" if belief in unmade else "var(--c)"};stroke:var(--c)">'
        f"<title>{escape(_title(belief, shown))}</title></circle>"
        for belief, (x, y) in places.items()
    ]
    return (
        f'<svg viewBox="0 0 {_SIZE:.0f} {_SIZE:.0f}" role="img" class="s{colour}" '
        f'aria-label="{len(lines)} edges between {len(dots)} beliefs">{"".join(lines)}{"".join(dots)}</svg>'
    )


def _edge(start: tuple[float, float], end: tuple[float, float], middle: float, title: str) -> str:
    (x, y), (u, v) = start, end
    # Bent towards the middle, more at the start, so that there and back are two lines.
    bend_x, bend_y = 0.35 * x + 0.25 * u + 0.4 * middle, 0.35 * y + 0.25 * v + 0.4 * middle
    length = math.hypot(u - bend_x, v - bend_y) or 1.0
    along_x, along_y = (u - bend_x) / length, (v - bend_y) / length
    tip_x, tip_y = u - (_DOT + 1) * along_x, v - (_DOT + 1) * along_y
    left = f"{tip_x - 8 * along_x - 4 * along_y:.1f} {tip_y - 8 * along_y + 4 * along_x:.1f}"
    right = f"{tip_x - 8 * along_x + 4 * along_y:.1f} {tip_y - 8 * along_y - 4 * along_x:.1f}"
    return (
        f'<path d="M{x:.1f} {y:.1f}Q{bend_x:.1f} {bend_y:.1f} {tip_x:.1f} {tip_y:.1f}M{left}L{tip_x:.1f} '
        f'{tip_y:.1f}L{right}" style="fill:none;stroke:var(--c);stroke-opacity:.5">'
        f"<title>{escape(title)}</title></path>"
    )


def _title(belief: str, shown: Mapping[str, ShownBelief]) -> str:
    one = shown.get(belief)
    return belief if one is None else f"{belief}: {one.prompt} {one.said} → {one.target}"


BELIEFS = BeliefsReport()
