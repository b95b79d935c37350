"""From an evaluation's rows to its figures: a summary, a JSON file, a table for the terminal.

The summary is the one place where rows become figures; the file, the table and the page show it.
"""

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from uptake.codec import plain, read_report, write_whole
from uptake.report import metrics
from uptake.report.results import Results, Row
from uptake.text.overlap import overlap_bin

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "uptake report 1"
BASE, CONTROL = "base", "random"  # the ways every other way is measured against


def summary(results: Results) -> dict[str, Any]:
    """Return the report's figures as plain JSON data: finite numbers, text, lists, dicts and None.

    `methods` holds each way at its largest k; its `by_k` holds every k, smallest first. A query that
    failed, or whose bits are not finite, counts at the base's score. Seconds are CPU seconds.
    """
    header = results.header
    ways: dict[str, dict[int, list[Row]]] = {}
    for row in results.rows:
        ways.setdefault(row.method, {}).setdefault(row.k, []).append(_settled(row))
    control = ways.get(CONTROL, {})
    methods = {}
    for way, by_k in ways.items():
        every = [{"k": k, **_figures(by_k[k], header.seed)} for k in sorted(by_k)]
        largest = max(by_k)
        rows = by_k[largest]
        methods[way] = {
            **every[-1],
            "failures": [{"query": row.query, "reason": row.failed} for row in rows if row.failed],
            "tokens_trained_per_query": _mean(row.tokens_trained for row in rows),
            "tokens_read_per_query": _mean(row.tokens_read for row in rows),
            "neighbours_per_query": _mean(row.neighbours for row in rows),
            "withheld_per_query": _mean(row.withheld for row in rows),
            "peak_rss_bytes": header.peak_rss_bytes.get(way),
            "overlap_bins": _overlap_bins(rows, header.seed),
            "by_k": every,
            "against_random": None if way == CONTROL else _against(rows, control.get(largest), header.seed),
        }
    return {
        "format": FORMAT,
        "methods": methods,
        **{name: plain(getattr(header, name)) for name in _HEADER_FIELDS},
    }


_HEADER_FIELDS = ("seed", "versions", "model", "store", "protocol", "settings", "notes")


def _settled(row: Row) -> Row:
    """Return the row as it counts: at the base's score where the query failed."""
    failed = row.failed or ("" if math.isfinite(row.bits) else f"the loss became {row.bits}")
    return dataclasses.replace(row, failed=failed, bits=row.base_bits if failed else row.bits)


def _gained(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    bits, base_bits = [row.bits for row in rows], [row.base_bits for row in rows]
    interval = metrics.gain_interval(bits, base_bits, [row.document for row in rows], seed=seed)
    return {"gain": _finite(metrics.gain(bits, base_bits)), "gain_ci": interval and list(interval)}


def _figures(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Return what is told of one way at one k."""
    bits, base_bits, sizes = ([getattr(row, name) for row in rows] for name in ("bits", "base_bits", "bytes"))
    seconds = {part: [getattr(row, f"{part}_seconds") for row in rows] for part in _PARTS}
    seconds["total"] = [sum(parts) for parts in zip(*seconds.values(), strict=True)]
    return {
        "bits_per_byte": _finite(metrics.bits_per_byte(bits, sizes)),
        "base_bits_per_byte": _finite(metrics.bits_per_byte(base_bits, sizes)),
        **_gained(rows, seed),
        "share_helped": metrics.share_helped(bits, base_bits),
        "queries": len(rows),
        "failed": sum(bool(row.failed) for row in rows),
        "stopped_early": sum(bool(row.stopped) and not row.failed for row in rows),  # by a budget
        "cpu_seconds_per_query": {part: _mean(values) for part, values in seconds.items()},
    }


_PARTS = ("retrieve", "train", "score")


def _overlap_bins(rows: Sequence[Row], seed: int) -> list[dict[str, Any]]:
    """Return the gain for each degree of overlap that occurs, least first; none where nothing was read."""
    if not any(row.neighbours for row in rows):
        return []
    bins: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.overlap):
        bins.setdefault(overlap_bin(row.overlap), []).append(row)
    return [
        {"bin": name, "queries": len(members), **_gained(members, seed)} for name, members in bins.items()
    ]


def _against(rows: Sequence[Row], control: Sequence[Row] | None, seed: int) -> dict[str, Any] | None:
    """Return how far the gain exceeds the control's at the same k, over the queries both answered."""
    theirs = _by_query(control or ())
    pairs = [(row, theirs[key]) for key, row in _by_query(rows).items() if key in theirs]
    if not pairs:
        return None
    found = metrics.gain_difference(
        [mine.bits for mine, _ in pairs],
        [other.bits for _, other in pairs],
        [mine.base_bits for mine, _ in pairs],
        [mine.document for mine, _ in pairs],
        seed=seed,
    )
    return {"difference": _finite(found.value), "ci": found.interval and list(found.interval)}


def _by_query(rows: Sequence[Row]) -> dict[tuple[str, int], Row]:
    """Key rows by query; a query asked twice is told apart by its turn."""
    turns: Counter[str] = Counter()
    keyed = {}
    for row in rows:
        keyed[row.query, turns[row.query]] = row
        turns[row.query] += 1
    return keyed


def _mean(values: Iterable[float]) -> float | None:
    return _finite(fmean(values))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def write_json(results: Results, path: str | Path) -> None:
    """Write summary, rows, showcases and samples to `path`, whole or not at all. Raises BadInput."""
    whole = {
        **summary(results),
        "peak_rss_bytes": plain(results.header.peak_rss_bytes),
        "rows": plain(results.rows),
        "showcases": plain(results.showcases),
        "samples": plain(results.samples),
    }
    write_whole(path, json.dumps(whole, indent=1, allow_nan=False).encode() + b"\n")


def read_json(path: str | Path) -> Results:
    """Return the Results that `write_json` wrote to `path`, exactly. Raises Missing and BadInput.

    Settings come back as plain data: lists as tuples, objects as their text.
    """
    return read_report(Results, path, FORMAT, "an Uptake report")


# What the table and the page both say, in words.


def lines(figures: dict[str, Any]) -> list[dict[str, str]]:
    """Return the summary as lines of text under their headings, the base first, then one a way.

    A heading under which nothing would stand is left out.
    """
    told = [_line(way, method) for way, method in figures["methods"].items()]
    if told and BASE not in figures["methods"]:
        # Nothing was run as the base, but every way was scored against it.
        reference = next(iter(figures["methods"].values()))["base_bits_per_byte"]
        told.append(dict.fromkeys(told[0], "") | {"way": BASE, "bits per byte": number(reference, 3)})
    said = [heading for heading in told[0] if any(line[heading] for line in told)] if told else []
    told = [{heading: line[heading] for heading in said} for line in told]
    return sorted(told, key=lambda line: line["way"] != BASE)


def _line(way: str, method: dict[str, Any]) -> dict[str, str]:
    against = method["against_random"] or {"difference": None, "ci": None}
    line = {
        "way": way,
        "k": str(method["k"] or ""),
        "bits per byte": number(method["bits_per_byte"], 3),
        "gain": percent(method["gain"]) + ends(method["gain_ci"]),
        "vs random": points(against["difference"]) + ends(against["ci"]),
        "helped": percent(method["share_helped"], 0),
        "CPU seconds": number(method["cpu_seconds_per_query"]["total"], 2),
        "tokens trained": number(method["tokens_trained_per_query"], 0, ","),
        "peak memory": size(method["peak_rss_bytes"]),
    }
    if way == BASE:  # it cannot gain on itself
        line |= dict.fromkeys(("gain", "vs random", "helped"), "")
    return line


def number(value: float | None, digits: int, style: str = "") -> str:
    """Return a number in `digits` decimals with a true minus sign; nothing for None."""
    return "" if value is None else f"{value:{style}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as "8.8 %"; nothing for None."""
    return "" if share is None else f"{number(100 * share, digits)}\N{NO-BREAK SPACE}%"


def points(share: float | None) -> str:
    """Return a difference of shares in percentage points, "+5.1"; nothing for None."""
    return "" if share is None else number(100 * share, 1, "+")


def size(count: int | None) -> str:
    """Return bytes in a unit people read: "1.2 GB"; nothing for None."""
    if count is None:
        return ""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def ends(interval: Sequence[float] | None) -> str:
    """Return an interval of shares as " [6.1, 11.2]", in percent; nothing for None."""
    return f" [{', '.join(number(100 * end, 1) for end in interval)}]" if interval else ""


def many(count: int, one: str, more: str) -> str:
    """Return "1 query" or "1,200 queries"."""
    return f"{count:,} {one if count == 1 else more}"


def table(results: Results, leave_out: Sequence[str] = ()) -> "Table":
    """Return the report as a rich table that fits 100 columns: one line a way, at its largest k.

    `leave_out` names headings to do without on a narrower screen.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    figures = summary(results)
    caption = (
        "gain: share of the base's bits saved [95 % interval, bootstrap by document]; costs are a query's"
    )
    failed = {way: method["failed"] for way, method in figures["methods"].items() if method["failed"]}
    if failed:
        told = ", ".join(f"{count} under {way}" for way, count in failed.items())
        caption += f"\nfailed, and counted at the base's score: {told}"
    early = {name: method["stopped_early"] for name, method in figures["methods"].items()}
    if any(early.values()):
        told = ", ".join(f"{count} under {name}" for name, count in early.items() if count)
        caption += f"\nstopped by the budget before all was read: {told}"
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, caption=Text(caption))
    made.caption_justify = "left"
    for whole in lines(figures):
        line = {heading: text for heading, text in whole.items() if heading not in leave_out}
        if not made.columns:
            made.add_column("way", min_width=10, vertical="bottom", no_wrap=True)
            for heading in list(line)[1:]:
                # Two words take two lines, for the width.
                made.add_column(Text(heading.replace(" ", "\n", 1)), justify="right", no_wrap=True)
        made.add_row(*map(Text, line.values()))
    return made
