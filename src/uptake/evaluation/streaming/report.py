"""From a stream's rows to its figures: a summary, a JSON file, a table for the terminal.

The summary is the one place where rows become figures; the file, the table and the page show it.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from uptake.codec import plain, read_report, write_whole
from uptake.evaluation.streaming.results import Answered, Stopped, StreamResults
from uptake.report import metrics
from uptake.report.summary import many, number, percent

if TYPE_CHECKING:
    from rich.table import Table

FORMAT = "uptake stream report 1"
BASE = "base"
# What is compared: the column, and what it is shared out over.
MEASURES: Mapping[str, tuple[Callable[[Answered], float], Callable[[Answered], float]]] = {
    "nll": (lambda row: row.nats, lambda row: row.tokens),
    "f1": (lambda row: row.f1, lambda row: 1.0),
    "exact": (lambda row: row.exact, lambda row: 1.0),
}


def summary(results: StreamResults) -> dict[str, Any]:
    """Return the figures as plain JSON data: finite numbers, text, lists, dicts and None.

    `ways[way]` holds the figures at the end and `at`, those of every checkpoint. `nll` is in nats a
    token of the right answer, `bits` in bits an answer, `f1` and `exact` are shares of 1, `kl` is
    in nats a token of unrelated text, seconds are CPU seconds. `bands` are the questions on the
    documents between one checkpoint and the next, asked then. `vs_base` and `pairs` are differences,
    of one way less another, with their 95 % intervals by paired bootstrap over groups.
    """
    seed = results.header.seed
    ways: dict[str, dict[int, list[Answered]]] = {}
    for row in results.answers:
        ways.setdefault(row.method, {}).setdefault(row.taken, []).append(row)
    base = {row.question: row for row in ways.pop(BASE, {}).get(0, [])}
    stops = sorted({taken for by_taken in ways.values() for taken in by_taken})
    told = {}
    for way, by_taken in ways.items():
        every = [_at(results, way, taken, by_taken[taken], base, stops) for taken in sorted(by_taken)]
        stopped = [row for row in results.stopped if row.method == way]
        told[way] = {**every[-1], "at": every, "stopped": plain(stopped)}
    last = max(stops, default=0)
    final = {
        way: {row.question: row for row in rows} for way, at in ways.items() if (rows := at.get(last, []))
    }
    asked = next(iter(final.values()), base)
    return {
        "format": FORMAT,
        "documents": last,
        "base": {**_figures([base[key] for key in asked]), "asked": _figures(base.values())},
        "ways": told,
        "pairs": [
            {"way": way, "less": other, **difference(final[way], final[other], seed)}
            for place, way in enumerate(final)
            for other in list(final)[:place]
        ],
        **{
            name: plain(getattr(results.header, name))
            for name in ("seed", "versions", "model", "protocol", "settings", "notes")
        },
    }


def difference(
    mine: Mapping[str, Answered], other: Mapping[str, Answered], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Return for each measure mine less the other's, with its interval, over the questions of both."""
    both = [key for key in mine if key in other]
    out = {}
    for name, (above, below) in MEASURES.items():
        gap = [above(mine[key]) - above(other[key]) for key in both]
        share = [below(mine[key]) for key in both]
        groups = [mine[key].group for key in both]
        out[name] = {
            "difference": _ratio(sum(gap), sum(share)),
            "ci": _interval(gap, share, groups, seed),
        }
    return out


def _interval(
    gap: Sequence[float], share: Sequence[float], groups: Sequence[str], seed: int
) -> list[float] | None:
    found = metrics.ratio_interval(gap, share, groups, seed=seed)
    return found and list(found)


def _at(
    results: StreamResults,
    way: str,
    taken: int,
    rows: Sequence[Answered],
    base: Mapping[str, Answered],
    stops: Sequence[int],
) -> dict[str, Any]:
    """Return what is told of one way at one checkpoint."""
    drift = [row for row in results.drift if row.method == way and row.taken == taken]
    spent = next((row for row in results.costs if row.method == way and row.taken == taken), None)
    mine = {row.question: row for row in rows}
    return {
        "taken": taken,
        **_figures(rows),
        "kl": _ratio(sum(row.nats for row in drift), sum(row.tokens for row in drift)),
        "tokens_trained": spent.tokens_trained if spent else None,
        "tokens_read": spent.tokens_read if spent else None,
        "steps": spent.steps if spent else None,
        "take_seconds": spent.take_seconds if spent else None,
        "ask_seconds": spent.ask_seconds if spent else None,
        "vs_base": difference(mine, base, results.header.seed),
        "bands": _bands(rows, base, taken, stops),
    }


def _bands(
    rows: Sequence[Answered], base: Mapping[str, Answered], taken: int, stops: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the figures of the questions on each stretch of the stream, the first documents first."""
    ends = [end for end in stops if end <= taken]
    bands = []
    for start, end in zip([0, *ends], ends, strict=False):
        some = [row for row in rows if start < row.place <= end]
        if some:
            before = _figures([base[row.question] for row in some if row.question in base])
            bands.append({"from": start + 1, "to": end, **_figures(some), "base": before})
    return bands


def _figures(rows: Iterable[Answered]) -> dict[str, Any]:
    rows = list(rows)
    nats, tokens = sum(row.nats for row in rows), sum(row.tokens for row in rows)
    return {
        "questions": len(rows),
        "nll": _ratio(nats, tokens),
        "bits": _ratio(nats / math.log(2), len(rows)),
        "f1": fmean(row.f1 for row in rows) if rows else None,
        "exact": fmean(row.exact for row in rows) if rows else None,
    }


def _ratio(above: float, below: float) -> float | None:
    return above / below if below and math.isfinite(above) else None


def write_json(results: StreamResults, path: str | Path) -> None:
    """Write summary and rows to `path`, whole or not at all. Raises BadInput where it cannot be written."""
    rows = {name: plain(getattr(results, name)) for name in ("answers", "drift", "costs", "stopped", "shown")}
    peaks = plain(results.header.peak_rss_bytes)
    whole = {**summary(results), "peak_rss_bytes": peaks, "store": {}, **rows}
    write_whole(path, json.dumps(whole, indent=1, allow_nan=False).encode() + b"\n")


def read_json(path: str | Path) -> StreamResults:
    """Return the results that `write_json` wrote to `path`, exactly. Raises Missing and BadInput."""
    return read_report(StreamResults, path, FORMAT, "a report of a stream")


def lines(figures: dict[str, Any]) -> list[dict[str, str]]:
    """Return the summary as lines of text under their headings: the base, then each way at the end.

    A heading under which nothing would stand is left out.
    """
    told = [_line(BASE, figures["base"])]
    told += [_line(way, found) for way, found in figures["ways"].items()]
    said = [heading for heading in told[0] if any(line[heading] for line in told)]
    return [{heading: line[heading] for heading in said} for line in told]


def _line(way: str, found: dict[str, Any]) -> dict[str, str]:
    gap = found.get("vs_base", {}).get("nll", {"difference": None, "ci": None})
    interval = f" [{', '.join(number(end, 2) for end in gap['ci'])}]" if gap["ci"] else ""
    return {
        "way": way,
        "NLL": number(found["nll"], 3),
        "vs base": number(gap["difference"], 2, "+") + interval,
        "F1": percent(found["f1"]),
        "exact": percent(found["exact"]),
        "KL": number(found.get("kl"), 4),
        "CPU seconds": number(found.get("take_seconds"), 1),
        "tokens trained": number(found.get("tokens_trained"), 0, ","),
        "passed over": str(len(found.get("stopped", ())) or ""),
    }


def passed_over(results: StreamResults) -> list[str]:
    """Return a line for each way that passed documents over: how many, and the first with its reason."""
    ways: dict[str, list[Stopped]] = {}
    for row in results.stopped:
        ways.setdefault(row.method, []).append(row)
    return [
        f"{way} passed over {many(len(rows), 'document', 'documents')}, "
        f"first {rows[0].document}: {rows[0].reason}"
        for way, rows in ways.items()
    ]


def table(results: StreamResults, leave_out: Sequence[str] = ()) -> "Table":
    """Return the figures at the end as a rich table that fits 100 columns; `leave_out` names headings."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    figures = summary(results)
    told = lines(figures)
    caption = (
        f"{many(figures['base']['questions'], 'question', 'questions')} after "
        f"{many(figures['documents'], 'document', 'documents')}; NLL: nats a token of "
        "the right answer [95 % interval, bootstrap by group]"
        + ("; KL: nats a token of unrelated text" if "KL" in told[0] else "")
    )
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False, caption=Text(caption))
    made.caption_justify = "left"
    for whole in told:
        line = {heading: text for heading, text in whole.items() if heading not in leave_out}
        if not made.columns:
            made.add_column("way", min_width=10, vertical="bottom", no_wrap=True)
            for heading in list(line)[1:]:
                made.add_column(Text(heading.replace(" ", "\n", 1)), justify="right", no_wrap=True)
        made.add_row(*map(Text, line.values()))
    return made
