"""From answers with confidences to figures, a table and a chart of selective accuracy.

An answer's confidence is the probability that the model gives to these very words and to ending there: the
product over all tokens, as the probability of the span is for models that extract (Kamath et al. 2020,
Selective Question Answering under Domain Shift). A mean per token is no probability of anything, and
flatters long answers. One is right by the report's own mark.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import fmean
from typing import Any, NamedTuple

from uptake.report.calibrated import metrics
from uptake.report.formatting import ends, many, number, percent, points
from uptake.report.page import chart
from uptake.report.page.layout import Plot, WordsSection, colours
from uptake.report.results import BASE

Calibration = dict[str, Any]
_POINTS = 20  # of a curve
LEGEND = (
    "In percent. Sure: the mean of the probability that the model gives to its answer, the end included. "
    f"ECE: expected calibration error over {metrics.BINS} bins of equal numbers of answers; chance: what it "
    "would be of so few answers though the model were calibrated. Area: mean accuracy over all shares of "
    "questions answered, the surest first; in no order it is the accuracy. Brier: mean of (probability − "
    "right)²"
)


class Sure(NamedTuple):
    """One answer: -log of its probability, how many tokens it took, whether it is right, and its group."""

    nats: float
    tokens: int
    right: float
    group: str

    @property
    def confidence(self) -> float:
        return math.exp(-self.nats)


def figures(mine: Sequence[Sure], seed: int, base: Sequence[Sure] | None = None) -> Calibration | None:
    """Return the calibration of answers as plain JSON data, None where none was generated.

    `error` is None of too few answers; `bins` are (answers, confidence, share right), `curve` (share
    answered, accuracy). `vs_base` has the differences from the base's answers to the same questions, in the
    same order; intervals are by bootstrap over groups.
    """
    # A table, a file and a page each ask for the same.
    return copy.deepcopy(_figures(tuple(mine), seed, None if base is None else tuple(base)))


@lru_cache(maxsize=128)
def _figures(mine: tuple[Sure, ...], seed: int, base: tuple[Sure, ...] | None) -> Calibration | None:
    both = list(zip(mine, mine if base is None else base, strict=True))
    both = [(one, other) for one, other in both if one.tokens and other.tokens]
    if not both:
        return None
    groups = [one.group for one, _ in both]
    own, beside = (
        ([pair[place].confidence for pair in both], [pair[place].right for pair in both]) for place in (0, 1)
    )
    ends_of = metrics.intervals(own, groups, seed=seed)
    told: Calibration = {
        "answers": len(both),
        "confidence": fmean(own[0]),
        "right": fmean(own[1]),
        **{name: metrics.value(name, *own) for name in metrics.METRICS},
        **{f"{name}_ci": _listed(ends_of[name]) for name in metrics.METRICS},
        "error_by_chance": metrics.floor(own[0], seed),
        "best_area": metrics.best_area(own[1]),
        "bins": [list(one) for one in metrics.bins(*own)],
        "curve": _curve(*own),
    }
    if base is not None:
        gaps = metrics.intervals(own, groups, beside, seed=seed)
        told["vs_base"] = {
            name: {
                "difference": None if told[name] is None else told[name] - metrics.value(name, *beside),
                "ci": _listed(gaps[name]),
            }
            for name in metrics.METRICS
        }
    return told


def _listed(found: metrics.Interval | None) -> list[float] | None:
    return None if found is None else list(found)


def _curve(sure: Sequence[float], right: Sequence[float]) -> list[list[float]]:
    shares, accuracy = metrics.selective(sure, right)
    count = len(shares)
    places = sorted({max(0, math.ceil(count * step / _POINTS) - 1) for step in range(1, _POINTS + 1)})
    return [[float(shares[place]), float(accuracy[place])] for place in places]


def lines(found: Mapping[str, Calibration | None]) -> list[dict[str, str]]:
    """Return the table of calibration in percent, a line a method; none where no answer was generated."""
    return [_line(name, told) for name, told in found.items() if told]


def _line(name: str, told: Calibration) -> dict[str, str]:
    gap = told.get("vs_base", {}).get("area", {"difference": None, "ci": None})
    interval = f" [{', '.join(points(end) for end in gap['ci'])}]" if gap["ci"] else ""
    few = f"too few: {told['answers']} < {metrics.LEAST * metrics.BINS}"
    return {
        "calibration": name,
        "right": _hundredths(told["right"]),
        "sure": _hundredths(told["confidence"]),
        "ECE": few if told["error"] is None else _hundredths(told["error"]) + ends(told["error_ci"]),
        "chance": _hundredths(told["error_by_chance"]),
        "area": _hundredths(told["area"]),
        "less the base's": points(gap["difference"]) + interval,
        "Brier": number(told["brier"], 3),
    }


def _hundredths(share: float | None) -> str:
    return "" if share is None else number(100 * share, 1)


def tables(found: Mapping[str, Calibration | None]) -> list[list[dict[str, str]]]:
    """Return the table as further tables for a terminal."""
    return [made] if (made := lines(found)) else []


def extent(found: Mapping[str, Calibration | None]) -> str:
    """Return how many answers were there, and how many a bin; nothing where there was none."""
    told = next((one for one in found.values() if one), None)
    if told is None:
        return ""
    sizes = [size for one in found.values() if one for size, *_ in one["bins"]]
    return (
        f"calibration of {many(told['answers'], 'answer', 'answers')} in {metrics.BINS} bins, of equal "
        f"confidence together: {min(sizes):,} to {max(sizes):,} a bin"
    )


def section(found: Mapping[str, Calibration | None]) -> tuple[WordsSection, ...]:
    """Return the table as a section of a page."""
    made = lines(found)
    if not made:
        return ()
    rows = tuple(tuple(cell or "—" for cell in line.values()) for line in made)
    return (WordsSection("How sure the answers are", tuple(made[0]), rows, f"{LEGEND}; {extent(found)}."),)


def plot(found: Mapping[str, Calibration | None]) -> tuple[Plot, ...]:
    """Return the chart of selective accuracy, each method a line."""
    known = {name: told for name, told in found.items() if told}
    colour = colours({BASE: None} | dict.fromkeys(known))
    series = [
        chart.Series(
            name,
            colour[name],
            tuple(
                chart.Mark(
                    100 * share,
                    100 * right,
                    None,
                    f"{name}: {percent(right, 0)} right of the surest {percent(share, 0)}",
                )
                for share, right in told["curve"]
            ),
        )
        for name, told in known.items()
    ]
    if not series:
        return ()
    heights = [mark.y for one in series for mark in one.marks]
    svg = chart.draw(
        "lines",
        series,
        chart.linear("questions answered, the surest first, %", [0.0, 100.0]),
        chart.linear("right, %", [0.0, *heights]),
        summary="Selective accuracy; the JSON report gives the figures.",
    )
    return (
        Plot(
            "Accuracy where only the surest answers are given",
            "Falling to the right: the model knows what it knows. Flat: its confidence tells nothing.",
            svg,
        ),
    )
