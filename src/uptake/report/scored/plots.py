"""Which charts a page of scored text shows: the summary's figures in, SVG with a title and a caption out."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from uptake.report.formatting import ends, many, number, percent
from uptake.report.page import chart
from uptake.report.page.layout import Plot, colours
from uptake.report.results import BASE
from uptake.text.overlap import OVERLAP_BINS

Figures = dict[str, Any]


def plots(methods: Figures) -> list[Plot]:
    """Return the charts there are figures for, from the summary's `methods`."""
    made = (_neighbours(methods), _overlap(methods), _cost(methods))
    return [one for one in made if one]


def strips(methods: Figures) -> dict[str, str]:
    """Return a small picture of each method's gain and interval, all on one scale, for the table."""
    measured = {name: method for name, method in _rivals(methods).items() if method["gain"] is not None}
    reach = [end for method in measured.values() for end in (method["gain"], *(method["gain_ci"] or ()))]
    scale = min(0.0, 0.0, *reach), max(0.0, 0.0, *reach)
    colour = colours(methods)
    return {
        name: chart.strip(method["gain"], method["gain_ci"], scale, colour[name])
        for name, method in measured.items()
    }


def _neighbours(methods: Figures) -> Plot | None:
    """Bits per byte against the number of neighbours; against the methods where each has one number only."""
    rivals = _rivals(methods)
    several = any(len(method["by_k"]) > 1 for method in rivals.values())
    marks = {}
    for place, (name, method) in enumerate(rivals.items()):
        marks[name] = [
            chart.Mark(
                at["k"] if several else place,
                at["bits_per_byte"],
                # The paired interval of the gain, on the scale of bits: what varies is what was saved.
                at["gain_ci"] and [at["base_bits_per_byte"] * (1 - end) for end in at["gain_ci"]],
                f"{_mark_title(name, at)}: {number(at['bits_per_byte'], 3)} bits per byte",
            )
            for at in method["by_k"]
            if at["bits_per_byte"] is not None
        ]
    series = _series(marks, methods)
    base = next((method["base_bits_per_byte"] for method in methods.values()), None)
    if not series or base is None:
        return None
    if several:
        x = chart.counts("neighbours read", [at["k"] for method in rivals.values() for at in method["by_k"]])
    else:
        x = chart.names("", list(rivals))
        series = [replace(one, name="") for one in series]  # the axis names them
    return Plot(
        "Bits per byte against neighbours" if several else "Bits per byte of each method",
        "Lower is better. Dashed: the base model. "
        f"{'Shaded' if several else 'Whiskers'}: the 95 % paired interval of the gain.",
        chart.draw(
            "lines" if several else "points",
            series,
            x,
            chart.linear("bits per byte", [base, *_heights(series)], digits=2),
            summary="Bits per byte of each method; the table gives those at the most neighbours.",
            reference=(base, BASE),
            width=2 * chart.WIDTH,
        ),
        wide=True,
    )


def _overlap(methods: Figures) -> Plot | None:
    """Gain for each degree of overlap between what was read and the text it was read for."""
    met = {found["bin"] for method in _rivals(methods).values() for found in method["overlap_bins"]}
    labels = [label for label in OVERLAP_BINS if label in met]
    marks = {}
    for name, method in _rivals(methods).items():
        marks[name] = [
            chart.Mark(
                labels.index(found["bin"]),
                100 * found["gain"],
                _percents(found),
                f"{name}, {found['bin']}: {_gain(found)}, {many(found['queries'], 'query', 'queries')}",
                note=str(found["queries"]),
            )
            for found in method["overlap_bins"]
            if found["gain"] is not None
        ]
    series = _series(marks, methods)
    if not series:
        return None
    return Plot(
        "Gain against overlap",
        "How much of the gain comes from neighbours that share text with the evaluated document: the largest "
        "13-gram containment of any neighbour read. Under each bar, its number of queries.",
        chart.draw(
            "bars",
            series,
            chart.names("largest overlap of a neighbour read", labels),
            chart.linear("gain", [0.0, *_heights(series)], unit=" %"),
            summary="Gain of each method for each degree of overlap; the JSON report gives the figures.",
        ),
        tuple((one.name, one.colour) for one in series),
    )


def _cost(methods: Figures) -> Plot | None:
    """Gain against CPU seconds a query: one point a method and number of neighbours."""
    marks = {}
    for name, method in methods.items():
        marks[name] = [
            chart.Mark(
                _cpu(at),
                100 * at["gain"],
                None if name == BASE else _percents(at),
                f"{_mark_title(name, at)}: {_gain(at)} for {_cpu(at):.2f} CPU seconds",
            )
            for at in method["by_k"]
            if at["gain"] is not None and _cpu(at) is not None
        ]
    series = _series(marks, methods)
    if not any(one.name != BASE for one in series):
        return None
    costs = [mark.x for one in series for mark in one.marks]
    label = "CPU seconds a query"
    wide = min(costs) > 0 and max(costs) / min(costs) > 5
    series = [
        replace(one, name="") if one.name == BASE else one for one in series
    ]  # the line at 0 has its name
    return Plot(
        "Cost against gain",
        "Up and to the left is better. A line joins one method’s points from few neighbours to many.",
        chart.draw(
            "points",
            series,
            chart.logarithmic(label, costs) if wide else chart.linear(label, [0.0, *costs]),
            chart.linear("gain", [0.0, *_heights(series)], unit=" %"),
            summary="Gain of each method against its cost; the table gives those at the most neighbours.",
            reference=(0.0, BASE),
        ),
    )


def _rivals(methods: Figures) -> Figures:
    return {name: method for name, method in methods.items() if name != BASE}


def _series(marks: Mapping[str, list[chart.Mark]], methods: Figures) -> list[chart.Series]:
    colour = colours(methods)
    return [chart.Series(name, colour[name], tuple(some)) for name, some in marks.items() if some]


def _heights(series: Iterable[chart.Series]) -> list[float]:
    return [value for one in series for mark in one.marks for value in (mark.y, *(mark.ends or ()))]


def _percents(found: Figures) -> list[float] | None:
    return found["gain_ci"] and [100 * end for end in found["gain_ci"]]


def _cpu(at: Figures) -> Any:
    return at["cpu_seconds_per_query"]["total"]


def _mark_title(name: str, at: Figures) -> str:
    return f"{name}, {many(at['k'], 'neighbour', 'neighbours')}" if at["k"] else name


def _gain(found: Figures) -> str:
    return f"gain {percent(found['gain'])}{ends(found['gain_ci'])}"
