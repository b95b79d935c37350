"""The pieces of a page: what a kind of report fills in, and the template places."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from uptake.report.results import BASE, CONTROL


@dataclass(frozen=True, slots=True)
class Plot:
    """A chart in its place; `legend` is (name, colour class) where the chart does not name its series."""

    title: str
    caption: str
    svg: str
    legend: tuple[tuple[str, int], ...] = ()
    wide: bool = False


@dataclass(frozen=True, slots=True)
class WordsSection:
    """A table of texts under a title, such as what was said to a question; the first cell heads its row."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class TokensSection:
    """Texts whose tokens are coloured by what a method gained; `texts` are as scored/page.py makes them."""

    title: str
    note: str
    texts: tuple[Mapping[str, Any], ...]
    steps: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """What a kind of report puts on the page, as text; the template escapes it."""

    headline: str
    caution: str  # why the headline may be chance, if it may
    extent: str  # how much was measured
    legend: str  # what the table's headings mean
    measured: str  # how it was measured
    plots: tuple[Plot, ...] = ()
    sections: tuple[WordsSection | TokensSection, ...] = ()
    pictures: Mapping[str, str] = field(default_factory=dict)  # method -> SVG, for the table
    pictured: str = ""  # the heading that the pictures stand behind


def colours(methods: Iterable[str]) -> dict[str, int]:
    """Return the colour class of each method: the base and the control keep theirs in every report."""
    others = [method for method in methods if method not in (BASE, CONTROL)]
    return {BASE: 0, CONTROL: 1} | {method: 2 + place % 6 for place, method in enumerate(others)}
