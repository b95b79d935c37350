"""What bench/index.py measured, as a table: each figure, its aim, and whether it was met."""

import statistics
from typing import Any

from rich.console import Console
from rich.table import Table


def show(told: dict[str, Any]) -> None:
    """Print the table."""
    found, added = told["searching"], told["adding"]
    ours, bare = found["uptake"], found["faiss"]
    ratio = found["ratio_median"]
    opened = {key: statistics.median(one[key] for one in told["opening"]) for key in told["opening"][0]}
    table = Table("", "figure", "aim", "", box=None)

    def row(name: str, figure: str, aim: str = "", met: bool | None = None) -> None:
        table.add_row(name, figure, aim, "" if met is None else "met" if met else "missed")

    row("recall@20 against exact search", f"{ours['recall']:.4f}", ">= 0.95", ours["recall"] >= 0.95)
    row("one query, median", f"{ours['median_ms']:.2f} ms", "<= 1.5 ms", ours["median_ms"] <= 1.5)
    row("  95th percentile", f"{ours['p95_ms']:.2f} ms")
    row("  CPU, mean", f"{ours['cpu_ms']:.2f} ms")
    row("  bare FAISS: median; recall", f"{bare['median_ms']:.2f} ms; {bare['recall']:.4f}")
    row("  against bare FAISS", f"{ratio:.2f}x", "<= 1.20x", ratio <= 1.2)
    row("  the same in CPU", f"{found['ratio_cpu']:.2f}x")
    row("opening, median of 5", f"{opened['seconds']:.2f} s", "<= 0.5 s", opened["seconds"] <= 0.5)
    row("  the same in CPU", f"{opened['cpu_seconds']:.2f} s")
    row("  with cold files", f"{told['opening_cold']['seconds']:.2f} s")
    row("  first query", f"{1e3 * opened['first_query_seconds']:.1f} ms")
    for when in ("opened", "searched"):
        own, mapped = opened[f"{when}_own_mib"], opened[f"{when}_mapped_mib"]
        row(f"memory once {when}", f"{own:.0f} MiB own, {mapped:.0f} MiB mapped")
    row(
        f"adding {added['passages']:,}",
        f"{added['adding']['seconds']:.1f} s",
        "no rebuild",
        not added["rebuilt"],
    )
    row("  found at once", f"{100 * added['seen_share']:.1f} %", "all", added["seen_share"] == 1)
    row("  first query after it", f"{1e3 * added['first_query']['seconds']:.0f} ms")
    row("  then one query, median", f"{added['median_ms']:.2f} ms", "<= 1.5 ms", added["median_ms"] <= 1.5)
    row("  the same in CPU, mean", f"{added['cpu_ms']:.2f} ms")
    row("  recall@20 among all", f"{added['recall']:.4f}", ">= 0.95", added["recall"] >= 0.95)
    row("  removing them", f"{added['removing']['seconds']:.1f} s")
    for name, took in told["building"].items():
        row(f"{name} all", f"{took['seconds']:.0f} s; {took['cpu_seconds']:.0f} CPU s")
    if "embedding" in told:
        rate = told["embedding"]
        row("embedding, encoder alone", f"{rate['encoder_per_second']:.1f} passages/s")
        row("  into a store", f"{rate['store_per_second']:.1f} passages/s")
        row("  share of its rate", f"{100 * rate['share']:.1f} %", ">= 95 %", rate["share"] >= 0.95)
        row("  the same in CPU", f"{100 * rate['share_cpu']:.1f} %")
    Console(width=110).print(f"{told['vectors']:,} vectors x {told['dimensions']}, {found['index']}", table)
