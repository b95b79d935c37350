"""Figures of the recipe on counterfactuals: marks and calibration of answers, paired by group."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from retriever_figures import interval

from uptake.report.calibrated import metrics

MARKS = ("exact", "contains", "true")
PAIRS = (
    ("duplicates", "base"), ("counterfactual", "base"), ("counterfactual", "duplicates"),
    ("more", "duplicates"), ("counterfactual", "more"),
)  # fmt: skip
Rows = Sequence[Mapping[str, Any]]


def reading_figures(rows: Mapping[str, Mapping[str, Rows]]) -> dict[str, Any]:
    """Return by set of questions each arm's figures, and the differences of arms, all with intervals."""
    return {
        name: {
            "arms": {arm: own(some) for arm, some in arms.items()},
            "differences": {
                f"{one} - {other}": less(arms[one], arms[other])
                for one, other in PAIRS
                if one in arms and other in arms
            },
        }
        for name, arms in rows.items()
    }


def own(rows: Rows) -> dict[str, Any]:
    """Return an arm's figures: marks, and how sure its answers are."""
    sure, right, groups = columns(rows)
    ends = metrics.intervals((sure, right), groups)
    return {
        **{mark: interval(values(rows, mark), groups) for mark in MARKS},
        "sure": round(float(sure.mean()), 4),
        **{name: told(metrics.value(name, sure, right), ends[name]) for name in metrics.METRICS},
        "error_by_chance": rounded(metrics.floor(sure)),
        "said_nothing": rounded(float(np.mean([not row["text"] for row in rows]))),
        "answers": len(rows),
        "groups": len(set(groups)),
    }


def less(mine: Rows, other: Rows) -> dict[str, Any]:
    """Return the differences of an arm's figures from another's, paired by question."""
    sure, right, groups = columns(mine)
    beside = columns(other)[:2]
    ends = metrics.intervals((sure, right), groups, beside)
    found = {mark: interval(values(mine, mark) - values(other, mark), groups) for mark in MARKS}
    for name in metrics.METRICS:
        one, two = metrics.value(name, sure, right), metrics.value(name, *beside)
        found[name] = told(None if one is None or two is None else one - two, ends[name])
    return found


def told(value: float | None, ends: metrics.Interval | None) -> dict[str, Any]:
    return {"mean": rounded(value), "ci": ends and [round(end, 4) for end in ends]}


def columns(rows: Rows) -> tuple[np.ndarray, np.ndarray, list[str]]:
    sure = np.exp(-values(rows, "nats"))
    return sure, values(rows, "exact"), [str(row["group"]) for row in rows]


def values(rows: Rows, name: str) -> np.ndarray:
    return np.array([float(row[name]) for row in rows])


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def shown(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield lines of all figures."""
    for part, told in found.items():
        yield f"{part}: " + ", ".join(f"{key} {value}" for key, value in told.items() if key != "figures")
        for name, some in told.get("figures", {}).items():
            yield f"  {name}"
            for kind in ("arms", "differences"):
                for arm, figures in some[kind].items():
                    cells = ", ".join(
                        f"{key} {value['mean']} {value['ci']}"
                        if isinstance(value, dict)
                        else f"{key} {value}"
                        for key, value in figures.items()
                    )
                    yield f"    {arm}: {cells}"
