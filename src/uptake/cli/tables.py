"""A comparison on the terminal: the table, fitted to its width, what each k gave, and the upshot."""

from typing import TYPE_CHECKING, Any

from uptake.cli import screen
from uptake.report import summary as report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console
    from rich.table import Table

    from uptake.report.results import Results

# What goes first where the screen is narrow. All of it is in the JSON report.
_SPARED = ("peak memory", "tokens trained", "helped", "CPU seconds", "vs random")


def show(results: "Results") -> None:
    """Print a comparison on standard output."""
    console = screen.results()
    figures = report.summary(results)
    console.print(fitted(lambda spared: report.table(results, spared), _SPARED, console))
    if any(len(method["by_k"]) > 1 for method in figures["methods"].values()):
        console.print(_by_k(figures))
    console.print(upshot(figures), soft_wrap=True, markup=False)


def fitted(make: "Callable[[Sequence[str]], Table]", spared: "Sequence[str]", console: "Console") -> "Table":
    """Return the table with as few headings left out, in the order of `spared`, as the screen demands."""
    for count in range(len(spared) + 1):
        table = make(spared[:count])
        if table.__rich_measure__(console, console.options.update(max_width=1000)).maximum <= console.width:
            break
    return table


def _by_k(figures: dict[str, Any]) -> "Table":
    """Return the gain of every way at every k."""
    from rich import box
    from rich.table import Table

    ways = {way: {at["k"]: at for at in method["by_k"]} for way, method in figures["methods"].items()}
    ks = sorted({k for by_k in ways.values() for k in by_k} - {0})
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    made.add_column("gain at k", no_wrap=True)
    for k in ks:
        made.add_column(str(k), justify="right", no_wrap=True)
    for way, by_k in ways.items():
        if way != report.BASE and any(by_k):
            made.add_row(way, *(report.percent(by_k[k]["gain"]) if k in by_k else "" for k in ks))
    return made


def upshot(figures: dict[str, Any]) -> str:
    """Return in a sentence which way saved most, and how sure that is."""
    methods = figures["methods"]
    first = next(iter(methods.values()))
    queries = report.many(first["queries"], "query", "queries")
    ways = {
        way: method
        for way, method in methods.items()
        if way not in (report.BASE, report.CONTROL) and method["gain"] is not None
    }
    if not ways:
        return f"{queries} scored; the base needs {report.number(first['base_bits_per_byte'], 3)} bits a byte"
    best = max(ways, key=lambda way: ways[way]["gain"])
    gain, interval = ways[best]["gain"], ways[best]["gain_ci"]
    told = f"{report.percent(abs(gain))} of the base's bits" + (
        f" (95 % interval {report.ends(interval).strip()})" if interval else ""
    )
    if gain <= 0:
        most = "" if len(ways) == 1 else ", as the best of them"
        return (
            f"{queries}: {best} saves nothing and costs {told}{most}"
            if gain
            else f"{queries}: {best} saves nothing"
        )
    unsure = interval is not None and interval[0] <= 0
    doubt = ", which may be chance: the interval holds 0" if unsure else ""
    return f"{queries}: {best} saves {told}{doubt}"
