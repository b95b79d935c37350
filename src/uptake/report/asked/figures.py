"""From rows of open questions to figures: marks of answers against the base's, recall, and provenance."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from uptake.report import metrics
from uptake.report.asked.rows import Asked
from uptake.report.calibrated import figures as calibrated
from uptake.report.calibrated.figures import Sure
from uptake.report.formatting import filled, number, percent, points
from uptake.report.results import Results

MARKS = ("exact", "f1", "contains", "nats")
DEPTHS = (1, 5, 20)


def figures(results: Results) -> dict[str, Any]:
    """Return the figures of each method as plain JSON data.

    `exact`, `f1` and `contains` are shares of 1, `nats` those of the first right answer, each with its 95 %
    interval and its difference from the base's, by a bootstrap over the documents that answer. `recall` and
    `mrr` are over the questions that name their document; `rests_on_right` is the share of these whose answer
    stands in a passage of it that was read. `calibration`: see calibrated/figures.py.
    """
    seed = results.header.seed
    methods = {}
    for name in results.header.settings:
        rows = [row for row in results.of(Asked) if row.method == name]
        methods[name] = (
            _figures(rows, seed) if rows else {"questions": 0, "failures": [], "calibration": None}
        )
    return {"methods": methods}


def _figures(rows: Sequence[Asked], seed: int) -> dict[str, Any]:
    groups = [row.group for row in rows]
    known = [row for row in rows if row.right_place >= 0 and row.k]
    most = max(row.k for row in rows)

    def mean(values: Sequence[float]) -> dict[str, Any]:
        ci = metrics.ratio_interval(values, [1.0] * len(values), groups, seed=seed)
        return {"mean": fmean(values), "ci": None if ci is None else list(ci)}

    return {
        "questions": len(rows),
        "k": most,
        **{mark: mean([getattr(row, mark) for row in rows]) for mark in MARKS},
        "vs_base": {
            mark: mean([getattr(row, mark) - getattr(row, f"base_{mark}") for row in rows]) for mark in MARKS
        },
        "recall": {
            str(depth): fmean(0 < row.right_place <= depth for row in known)
            for depth in DEPTHS
            if known and depth <= most
        },
        "mrr": fmean(1 / row.right_place if row.right_place else 0.0 for row in known) if known else None,
        "rests_on_right": fmean(row.rests_on == row.group for row in known) if known else None,
        **{
            name: fmean(getattr(row, name) for row in rows)
            for name in ("retrieve_seconds", "train_seconds", "ask_seconds")
        },
        "calibration": calibrated.figures(
            [Sure(row.said_nats, row.said_tokens, row.exact, row.group) for row in rows],
            seed,
            [Sure(row.base_said_nats, row.base_said_tokens, row.base_exact, row.group) for row in rows],
        ),
        "failures": [{"question": row.question, "reason": row.failed} for row in rows if row.failed],
    }


def lines(found: dict[str, Any]) -> list[dict[str, str]]:
    """Return the table, one line a method."""
    return filled(_line(name, one) for name, one in found["methods"].items())


def _line(name: str, one: dict[str, Any]) -> dict[str, str]:
    if not one["questions"]:
        return {"method": name}
    gap = one["vs_base"]["f1"]
    interval = f" [{', '.join(points(end) for end in gap['ci'])}]" if gap["ci"] else ""
    return {
        "method": name,
        "exact": percent(one["exact"]["mean"]),
        "F1": percent(one["f1"]["mean"]),
        "F1 less the base's": points(gap["mean"]) + interval,
        "contains": percent(one["contains"]["mean"]),
        "nats": number(one["nats"]["mean"], 2),
        "recall at 1": percent(one["recall"].get("1")),
        "MRR": number(one["mrr"], 3) if one["k"] > 1 else "",
        "rests on the right": percent(one["rests_on_right"]),
        "CPU seconds": number(one["retrieve_seconds"] + one["train_seconds"] + one["ask_seconds"], 2),
        "failed": str(len(one["failures"]) or ""),
    }
