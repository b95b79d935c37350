"""Results on the terminal: the table, fitted to its width, further tables, and the conclusion."""

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
    console.print(fitted(lambda optional: report.table(results, optional), kind.optional_headings, console))
    figures = report.summary(results)
    for lines in kind.details(figures):
        console.print(_details(lines))
    if conclusion := kind.conclusion(figures):
        console.print(conclusion, soft_wrap=True, markup=False)


def fitted(
    make: "Callable[[Sequence[str]], Table]", optional: "Sequence[str]", console: "Console"
) -> "Table":
    """Return the table that fits the screen; as few columns of `optional` are left out as possible."""
    for count in range(len(optional) + 1):
        table = make(optional[:count])
        if table.__rich_measure__(console, console.options.update(max_width=1000)).maximum <= console.width:
            break
    return table


def _details(lines: "Sequence[dict[str, str]]") -> "Table":
    """Return a plain table of lines, where a line may lack headings of others."""
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
