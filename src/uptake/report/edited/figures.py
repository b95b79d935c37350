"""From replies after edits to figures: success, what leaks, what drifts, and what is left of older edits."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from uptake.report import metrics
from uptake.report.calibrated import figures as calibrated
from uptake.report.calibrated.figures import Calibration, Sure
from uptake.report.edited.rows import Cost, EditFailed, Elsewhere, Told
from uptake.report.formatting import ONE_OFF, ends, filled, many, number, one_off, percent
from uptake.report.results import BASE, Results

Figures = dict[str, Any]
Key = tuple[str, str, int]  # edit, kind, number
_BINS = 10  # of age
_RIGHT: dict[str, str] = {
    "success": "edit", "tight": "rephrase", "loose": "loose", "ripple": "ripple",
    "leak": "neighbour", "denied": "denied", "distracted": "distracted",
}  # fmt: skip
_TOLD = ("edit", "rephrase", "loose", "ripple")  # the kinds of which `right` means that the answer is right
MEASURES = (*_RIGHT, "forced", "likelier", "same")


def figures(results: Results) -> Figures:
    """Return the figures of an evaluation of edits as plain JSON data.

    Shares are of prompts, and their intervals by paired bootstrap over edits. `success`, `tight`, `loose`:
    what was said after an edit's own prompt, its rephrases and its loose ones begins with the target;
    `ripple`: with what follows from it. `forced`: each token of the target is the likeliest, given those
    before it; `likelier`: the target's tokens are likelier on average than the old one's. `same`:
    neighbours after which the base's very words are said; `leak`, `denied`, `distracted`: those after which
    the edit's target is said though it is wrong. `kl` and `kl_99` are nats a token of unrelated text, mean
    and 99th percentile, `bits_change` the relative change of its bits per byte. `retention` is success by
    age, the oldest tenth first; `at` success at every checkpoint. `known`: the base says the old answer by
    itself. `calibration` is of the answers that are to say a target: see calibrated/figures.py. Seconds are
    CPU seconds.
    """
    seed = results.header.seed
    base = {_key(row): row for row in results.of(Told) if row.method == BASE}
    known = {row.edit for row in base.values() if row.kind == "edit" and row.says_old}
    asked: dict[str, dict[int, list[Told]]] = {}
    for row in results.of(Told):
        if row.method != BASE:
            asked.setdefault(row.method, {}).setdefault(row.made, []).append(_settled(row, base))
    ends_at = {name: at[max(at)] for name, at in asked.items()}
    bottom = _columns(list(base.values()), base)
    columns = {BASE: bottom} | {name: _columns(rows, base) for name, rows in ends_at.items()}
    pairs = [(name, other) for place, name in enumerate(ends_at) for other in [*ends_at][:place]]
    shares = _means(
        {(name, measure): columns[name][measure] for name in columns for measure in MEASURES}, seed
    )
    gaps = _means(
        {
            (name, other, measure): _gap(columns[name][measure], columns[other][measure])
            for name, other in [*((name, BASE) for name in ends_at), *pairs]
            for measure in MEASURES
        },
        seed,
    )

    def differences(name: str, other: str) -> Figures:
        told = {measure: gaps[name, other, measure] for measure in MEASURES}
        return {measure: {"difference": mean, "ci": ci} for measure, (mean, ci) in told.items()}

    methods = {}
    for name, at in asked.items():
        methods[name] = {
            **_told(name, shares),
            **_drift([row for row in results.of(Elsewhere) if row.method == name]),
            **_costs([row for row in results.of(Cost) if row.method == name]),
            "vs_base": differences(name, BASE),
            "calibration": _calibration(ends_at[name], base, seed),
            "retention": _retention([row for row in ends_at[name] if row.kind == "edit"]),
            "at": [
                {"made": made, "success": _mean(row.right for row in at[made] if row.kind == "edit")}
                for made in sorted(at)
            ],
            **{
                label: {
                    measure: _mean(value for (edit, *_), value in column.items() if (edit in known) is wanted)
                    for measure, column in columns[name].items()
                }
                for label, wanted in (("known", True), ("unknown", False))
            },
            "failures": [*_unmade(results, name), *_unasked(ends_at[name])],
            "peak_rss_bytes": results.header.peak_rss_bytes.get(name),
            "peak_gpu_bytes": results.header.peak_gpu_bytes.get(name),
        }
    return {
        "edits": len({row.edit for row in base.values()}),
        "known": len(known),
        "base": {**_told(BASE, shares), "calibration": _calibration([*base.values()], None, seed)},
        "methods": methods,
        "pairs": [{"method": name, "less": other, **differences(name, other)} for name, other in pairs],
    }


def _calibration(rows: Sequence[Told], base: Mapping[Key, Told] | None, seed: int) -> Calibration | None:
    """Return the calibration of the answers that are to follow from an edit: right is what begins so."""
    some = [row for row in rows if row.kind in _TOLD and (base is None or _key(row) in base)]
    beside = None if base is None else [_sure(base[_key(row)]) for row in some]
    return calibrated.figures([_sure(row) for row in some], seed, beside)


def _sure(row: Told) -> Sure:
    return Sure(row.said_nats, row.said_tokens, float(row.right), row.edit)


def calibration(figures: Figures) -> dict[str, Calibration | None]:
    """Return the calibration of the base and of each method."""
    return {name: told["calibration"] for name, told in {BASE: figures["base"], **figures["methods"]}.items()}


def _told(name: str, shares: Mapping[tuple[str, ...], tuple[float | None, list[float] | None]]) -> Figures:
    out: Figures = {}
    for measure in MEASURES:
        out[measure], out[f"{measure}_ci"] = shares[name, measure]
    return out


def _gap(mine: Mapping[Key, float], other: Mapping[Key, float]) -> dict[Key, float]:
    return {key: value - other[key] for key, value in mine.items() if key in other}


def _means(
    wanted: Mapping[tuple[str, ...], Mapping[Key, float]], seed: int
) -> dict[tuple[str, ...], tuple[float | None, list[float] | None]]:
    """Return by name the mean of each column and its interval, over edits."""
    columns = []
    for values in wanted.values():
        column: dict[str, tuple[float, int]] = {}
        for (edit, *_), value in values.items():
            total, count = column.get(edit, (0.0, 0))
            column[edit] = total + value, count + 1
        columns.append(column)
    found = metrics.mean_intervals(columns, seed=seed)
    return {
        name: (_mean(values.values()), interval and list(interval))
        for (name, values), interval in zip(wanted.items(), found, strict=True)
    }


def _unmade(results: Results, name: str) -> list[Figures]:
    rows = (row for row in results.of(EditFailed) if row.method == name)
    return [{"edit": row.edit, "place": row.place, "reason": row.reason} for row in rows]


def _key(row: Told) -> Key:
    return row.edit, row.kind, row.number


def _settled(row: Told, base: Mapping[Key, Told]) -> Told:
    """Return a reply as it counts: the base's where it could not be asked."""
    if not row.failed or _key(row) not in base:
        return row
    return replace(base[_key(row)], method=row.method, made=row.made, failed=row.failed)


def _unasked(rows: Iterable[Told]) -> list[dict[str, Any]]:
    counts: dict[str, int] = {}
    for row in rows:
        if row.failed:
            counts[row.failed] = counts.get(row.failed, 0) + 1
    return [
        {"edit": f"the asking of {many(count, 'prompt', 'prompts')}", "place": 0, "reason": why}
        for why, count in counts.items()
    ]


def _columns(rows: Sequence[Told], base: Mapping[Key, Told]) -> dict[str, dict[Key, float]]:
    """Return for each measure its value at each prompt that it is measured at."""
    found: dict[str, dict[Key, float]] = {
        name: {_key(row): float(row.right) for row in rows if row.kind == kind}
        for name, kind in _RIGHT.items()
    }
    found["forced"] = {
        _key(row): float(row.forced) for row in rows if row.kind == "edit" and row.forced is not None
    }
    found["likelier"] = {
        _key(row): float(row.nats < row.old_nats)
        for row in rows
        if row.kind == "edit" and row.nats is not None and row.old_nats is not None
    }
    found["same"] = {
        _key(row): float(row.said.split() == base[_key(row)].said.split())
        for row in rows
        if row.kind == "neighbour" and _key(row) in base
    }
    return found


def _drift(rows: Sequence[Elsewhere]) -> Figures:
    every = np.array([value for row in rows for value in row.kl])
    before, after = sum(row.base_bits for row in rows), sum(row.bits for row in rows)
    whole = bool(len(every)) and before > 0 and math.isfinite(after)
    return {
        "kl": float(every.mean()) if whole else None,
        "kl_99": float(np.quantile(every, 0.99)) if whole else None,
        "bits_change": after / before - 1 if whole else None,
    }


def _costs(rows: Sequence[Cost]) -> Figures:
    last = max(rows, key=lambda row: row.made, default=None)
    seconds, prompts = sum(row.ask_seconds for row in rows), sum(row.asked for row in rows)
    made = last.made if last else 0
    return {
        "edit_seconds": last.edit_seconds / made if last and made else None,
        "query_seconds": seconds / prompts if prompts else None,
        "edit_bytes": last.bytes / made if last and made and last.bytes else None,
        "gpu_seconds": last.gpu_seconds if last else None,
        "tokens_trained": last.tokens_trained if last else None,
        "steps": last.steps if last else None,
        "prepare_seconds": last.prepare_seconds if last else None,
    }


def _retention(rows: Sequence[Told]) -> list[Figures]:
    """Return success by age, the oldest tenth first; of fewer than ten edits, of each."""
    ordered = sorted(rows, key=lambda row: row.place)
    bins = min(_BINS, len(ordered))
    cuts = [len(ordered) * place // bins for place in range(bins + 1)] if bins else []
    return [
        {
            "from": ordered[start].place,
            "to": ordered[end - 1].place,
            "success": fmean(row.right for row in ordered[start:end]),
        }
        for start, end in itertools.pairwise(cuts)
    ]


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return fmean(values) if values else None


def lines(figures: Figures) -> list[dict[str, str]]:
    """Return the summary as lines of text under their headings: the base, then each method at the end."""
    return filled(
        [_line(BASE, figures["base"]), *(_line(name, told) for name, told in figures["methods"].items())]
    )


def _line(name: str, told: Figures) -> dict[str, str]:
    show: Callable[[str], str] = lambda key: percent(told.get(key), 0)  # noqa: E731
    size = told.get("edit_bytes")
    return {
        "method": name,
        "success": show("success") + ends(told.get("success_ci")),
        "tight": show("tight"),
        "loose": show("loose"),
        "forced": show("forced"),
        "likelier": show("likelier"),
        "same": show("same"),
        "leak": show("leak"),
        "ripple": show("ripple"),
        "KL": number(told.get("kl"), 4),
        "KL 99th": number(told.get("kl_99"), 3),
        "bits change": percent(told.get("bits_change"), 2),
        "CPU s an edit": number(told.get("edit_seconds"), 2),
        "CPU s a prompt": number(told.get("query_seconds"), 2),
        "bytes an edit": f"{size:,.0f}" if size else "",
        "one-off seconds": one_off(told.get("prepare_seconds")),
        "failed": str(len(told.get("failures", ())) or ""),
    }


def details(figures: Figures) -> list[list[dict[str, str]]]:
    """Return success by age, after so many edits, and of known facts apart, where there is any."""
    tables = []
    if figures["edits"] > 1 and figures["methods"]:
        tables.append(
            [
                {
                    "success by age, the oldest first": name,
                    **{
                        f"{band['from']}-{band['to']}": percent(band["success"], 0)
                        for band in told["retention"]
                    },
                }
                for name, told in figures["methods"].items()
            ]
        )
    if any(len(told["at"]) > 1 for told in figures["methods"].values()):
        tables.append(
            [
                {
                    "success after edits": name,
                    **{f"{at['made']:,}": percent(at["success"], 0) for at in told["at"]},
                }
                for name, told in figures["methods"].items()
            ]
        )
    if 0 < figures["known"] < figures["edits"]:
        tables.append(
            [
                {
                    "success": name,
                    "base knew": percent(told["known"]["success"], 0),
                    "base did not": percent(told["unknown"]["success"], 0),
                }
                for name, told in figures["methods"].items()
            ]
        )
    return [*tables, *calibrated.tables(calibration(figures))]


def caption(figures: Figures) -> str:
    """Return what stands below the table in a terminal."""
    told = lines(figures)
    drift = any(method["kl"] is not None for method in figures["methods"].values())
    intervals = bool(figures["base"]["success_ci"])
    return (
        f"{many(figures['edits'], 'edit', 'edits')}, all made before anything was asked; the base says "
        f"the old "
        f"answer to {figures['known']:,} of them; success: what is said begins with the target"
        + (" [95 % interval, bootstrap by edit]" if intervals else "")
        + "; same: the base's words after neighbours; leak: the target after neighbours"
        + ("; KL: nats a token of unrelated text" if drift else "")
        + (f"; {sure}" if (sure := calibrated.extent(calibration(figures))) else "")
        + (f"; {ONE_OFF}" if any(line.get("one-off seconds") for line in told) else "")
    )
