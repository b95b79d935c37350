"""Results on the terminal: the table, fitted to its width, how it came about, and the upshot."""

from typing import TYPE_CHECKING

from uptake.cli import screen
from uptake.report import summary as report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console
    from rich.table import Table

    from uptake.report.results import Results


def show(results: "Results") -> None:
    """Print results on standard output."""
    console, kind = screen.results(), results.kind
    console.print(fitted(lambda spared: report.table(results, spared), kind.spared, console))
    figures = report.summary(results)
    for lines in kind.details(figures):
        console.print(_details(lines))
    if upshot := kind.upshot(figures):
        console.print(upshot, soft_wrap=True, markup=False)


def fitted(make: "Callable[[Sequence[str]], Table]", spared: "Sequence[str]", console: "Console") -> "Table":
    """Return the table with as few headings left out, in the order of `spared`, as the screen demands."""
    for count in range(len(spared) + 1):
        table = make(spared[:count])
        if table.__rich_measure__(console, console.options.update(max_width=1000)).maximum <= console.width:
            break
    return table


def _details(lines: "Sequence[dict[str, str]]") -> "Table":
    """Return a plain table of lines, some of which may lack a heading of others."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    headings = list(dict.fromkeys(heading for line in lines for heading in line))
    for place, heading in enumerate(headings):
        made.add_column(heading, justify="right" if place else "left", no_wrap=True)
    for line in lines:
        made.add_row(*(Text(line.get(heading, "")) for heading in headings))
    return made
