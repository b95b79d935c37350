"""Small charts as inline SVG: lines with bands, bars with whiskers, points. Colours come from the page's CSS.

A series is drawn in the class `sN` of its colour and with a marker of its own shape, so that it is
told apart without colour too; every mark says its figures in a title shown on hovering.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, HEIGHT = 560.0, 350.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 100.0, 34.0, 48.0  # the right margin holds the names of the lines,
LETTER = 8.0  # and is wider where one is longer than it: pixels a character, as the page writes names
_NARROW = 7.0  # and as it writes what stands at an axis


@dataclass(frozen=True, slots=True)
class Mark:
    """One figure: where it lies, the interval it may lie in, and its words."""

    x: float
    y: float
    ends: Sequence[float] | None = None
    title: str = ""
    note: str = ""  # written under a bar


@dataclass(frozen=True, slots=True)
class Series:
    """Marks that belong together; `colour` is the number of a CSS class."""

    name: str
    colour: int
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """From values to pixels: `ticks` are (value, label), `warp` bends the scale."""

    label: str
    ticks: tuple[tuple[float, str], ...]
    low: float
    high: float
    warp: Callable[[float], float] = float

    def at(self, value: float, start: float, end: float) -> float:
        """Return where `value` lies between the pixels `start` and `end`."""
        low, high = self.warp(self.low), self.warp(self.high)
        return start + (self.warp(value) - low) / (high - low) * (end - start)


def linear(label: str, values: Iterable[float], digits: int = 0, unit: str = "") -> Axis:
    """Return an axis of round numbers around `values`, `digits` decimals at least."""
    given = list(values) or [0.0, 1.0]
    spread = max(given) - min(given) or abs(given[0]) or 1.0
    power = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(power * times for times in (1, 2, 2.5, 5, 10) if spread / (power * times) <= 5)
    digits = max(digits, -math.floor(math.log10(step) + 1e-9) + (step / power == 2.5))
    first, last = math.floor(min(given) / step + 1e-9), math.ceil(max(given) / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple((n * step, f"{n * step:.{digits}f}{unit}") for n in range(first, last + 1))
    return Axis(label, _signed(ticks), first * step, last * step)


def logarithmic(label: str, values: Iterable[float]) -> Axis:
    """Return an axis of 1, 2 and 5 times powers of ten around positive `values`."""
    given = list(values)
    low, high = min(given) / 1.15, max(given) * 1.15
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    round_ones = [times * 10.0**power for power in powers for times in (1, 2, 5)]
    ticks = tuple((value, f"{value:g}") for value in round_ones if low <= value <= high)
    return Axis(label, ticks, low, high, math.log)


def counts(label: str, values: Iterable[int]) -> Axis:
    """Return an axis of whole numbers from 0, evenly spread as they double."""
    given = sorted({*values, 0})
    high = max(given[-1], 1)
    ticks = tuple((float(value), str(value)) for value in given)
    return Axis(label, ticks, 0.0, high * 1.0, lambda value: math.log2(1 + value))


def names(label: str, labels: Sequence[str]) -> Axis:
    """Return an axis of names, the first at 0, half a step of room at both ends."""
    return Axis(label, tuple((float(n), name) for n, name in enumerate(labels)), -0.5, len(labels) - 0.5)


def draw(
    kind: Literal["lines", "bars", "points"],
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    summary: str,
    reference: tuple[float, str] | None = None,
    width: float = WIDTH,
) -> str:
    """Return the chart as an SVG element that scales to its place; `summary` is read aloud in its stead.

    `reference` is a dashed line across at a value, with its name. Lines and points are named beside
    their last mark.
    """
    labelled = kind != "bars"
    longest = max((len(one.name) for one in series), default=0)
    right = width - (min(max(RIGHT, 14 + LETTER * longest), width / 2) if labelled else 12)
    noted = 16 * any(mark.note for one in series for mark in one.marks)  # a line more below the axis
    foot = HEIGHT - BOTTOM - noted

    def across(value: float) -> float:
        return x.at(value, LEFT, right)

    def up(value: float) -> float:
        return y.at(value, foot, TOP)

    parts = [f'<svg viewBox="0 0 {width:g} {HEIGHT:g}" role="img" aria-label="{escape(summary)}">']
    for value, label in y.ticks:
        parts.append(
            f'<path class="{"zero" if not value else "grid"}" d="M{LEFT} {up(value):.1f}H{right:.1f}"/>'
        )
        parts.append(f'<text class="tick end" x="{LEFT - 8}" y="{up(value) + 4:.1f}">{label}</text>')
    clear, before = -math.inf, -math.inf
    for value, label in x.ticks:
        place = across(value)
        lines = _broken(label, place - before)
        before = place
        if place - clear >= (0 if kind == "bars" else _NARROW * max(map(len, lines)) + 6):
            clear = place
            parts += [
                f'<text class="tick middle" x="{place:.1f}" y="{foot + noted + 18 + 14 * number:g}">'
                f"{escape(line)}</text>"
                for number, line in enumerate(lines)
            ]
    parts.append(
        f'<text class="axis middle" x="{(LEFT + right) / 2:.1f}" y="{HEIGHT - 6}">{escape(x.label)}</text>'
    )
    parts.append(f'<text class="axis" x="0" y="14">{escape(y.label)}</text>')

    beside: list[tuple[float, float, int, str]] = []  # names to write: x, y, colour, text
    if reference:
        parts.append(f'<path class="reference" d="M{LEFT} {up(reference[0]):.1f}H{right:.1f}"/>')
        beside.append((right + 10, up(reference[0]), 0, reference[1]))
    for number, one in enumerate(series):
        parts.append(f'<g class="s{one.colour}">')
        spots = [(across(mark.x), up(mark.y), mark) for mark in one.marks]
        if kind == "bars":
            wide = min((across(1) - across(0)) * 0.8 / len(series), 64)
            shift = (number - (len(series) - 1) / 2) * wide
            parts += [_bar(left + shift, wide, top, up(0), foot, mark, up) for left, top, mark in spots]
        else:
            if kind == "lines" and len(spots) > 1 and all(mark.ends for mark in one.marks):
                parts.append(_band(spots, up))
            elif any(mark.ends for mark in one.marks):
                parts += [_whisker(left, mark, up) for left, _, mark in spots]
            trail = "L".join(f"{left:.1f} {top:.1f}" for left, top, _ in spots)
            parts.append(f'<path class="line {kind}" d="M{trail}"/>')
            parts += [_marker(left, top, one.colour, mark.title) for left, top, mark in spots]
            last = spots[-1]
            spot = (right + 10, last[1]) if kind == "lines" else (last[0] + 8, last[1] - 9)
            beside.append((*spot, one.colour, one.name))
        parts.append("</g>")
    parts += _written(beside)
    return "".join([*parts, "</svg>"])


def _broken(label: str, room: float) -> list[str]:
    """Return a label in lines, the names of methods in it apart, where it takes more than `room` pixels."""
    if _NARROW * len(label) + 6 <= room:
        return [label]
    return re.findall(r"[^/+]+[/+]?", label) or [label]


def strip(value: float, ends: Sequence[float] | None, scale: tuple[float, float], colour: int) -> str:
    """Return a table cell's picture of one figure: a point and its interval beside a line at zero."""
    axis = Axis("", (), scale[0], scale[1] if scale[1] > scale[0] else scale[0] + 1)

    def across(at: float) -> float:
        return axis.at(at, 8, 112)

    parts = [f'<path class="zero" d="M{across(0):.1f} 2V18"/>']
    if ends:
        parts.append(f'<path class="whisker" d="M{across(ends[0]):.1f} 10H{across(ends[1]):.1f}"/>')
    parts.append(_marker(across(value), 10, colour, ""))
    return f'<svg class="strip s{colour}" viewBox="0 0 120 20" aria-hidden="true">{"".join(parts)}</svg>'


def _signed(ticks: Iterable[tuple[float, str]]) -> tuple[tuple[float, str], ...]:
    return tuple((value, label.replace("-", "\N{MINUS SIGN}")) for value, label in ticks)


def _band(spots: Sequence[tuple[float, float, Mark]], up: Callable[[float], float]) -> str:
    edges = [[(left, up(mark.ends[end])) for left, _, mark in spots if mark.ends] for end in (0, 1)]
    around = "L".join(f"{left:.1f} {top:.1f}" for left, top in edges[0] + edges[1][::-1])
    return f'<path class="band" d="M{around}Z"/>'


def _whisker(left: float, mark: Mark, up: Callable[[float], float]) -> str:
    if not mark.ends:
        return ""
    low, high = (up(end) for end in mark.ends)
    caps = "".join(f"M{left - 4:.1f} {end:.1f}h8" for end in (low, high))
    return f'<path class="whisker" d="M{left:.1f} {low:.1f}V{high:.1f}{caps}"/>'


def _bar(
    middle: float, wide: float, top: float, zero: float, foot: float, mark: Mark, up: Callable[[float], float]
) -> str:
    shape = (
        f'<rect class="bar" x="{middle - wide * 0.42:.1f}" y="{min(top, zero):.1f}" '
        f'width="{wide * 0.84:.1f}" height="{max(abs(top - zero), 0.5):.1f}" rx="2"/>'
    )
    note = f'<text class="note middle" x="{middle:.1f}" y="{foot + 15:.1f}">{escape(mark.note)}</text>'
    return f"<g><title>{escape(mark.title)}</title>{shape}{_whisker(middle, mark, up)}{note}</g>"


def _marker(left: float, top: float, colour: int, title: str) -> str:
    shapes = (
        "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0Z",  # circle
        "M-4-4H4V4H-4Z",  # square
        "M0-5.5L5.5 0L0 5.5L-5.5 0Z",  # diamond
        "M0-5L5 4H-5Z",  # triangle
    )
    place = f'transform="translate({left:.1f} {top:.1f})"'
    words = f"<title>{escape(title)}</title>" if title else ""
    # The unseen circle makes a small mark easy to point at.
    return (
        f'<g {place}>{words}<circle class="unseen" r="13"/>'
        f'<path class="marker" d="{shapes[colour % len(shapes)]}"/></g>'
    )


def _written(labels: Iterable[tuple[float, float, int, str]]) -> Iterable[str]:
    """Write names from the top down, each pushed below the last if they would touch."""
    floor = -math.inf
    for left, top, colour, name in sorted(labels, key=lambda label: label[1]):
        if not name:
            continue
        floor = max(top, floor + 15)
        yield f'<text class="name s{colour}" x="{left:.1f}" y="{floor + 4:.1f}">{escape(name)}</text>'
