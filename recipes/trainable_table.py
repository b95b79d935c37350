"""The tables of recipes/trainable.py, from the rows that it measured."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uptake.errors import BadInput
from uptake.report.metrics import gain, gain_interval, ratio_interval

Rows = Mapping[str, Any]
LORA = "lora"  # what other kinds are compared with


def table(files: Sequence[Path], out: Path | None) -> None:
    """Print the figures of all rows in these files, and write them to `out`. Raises BadInput for no file."""
    rows: dict[str, Any] = {}
    for file in files:
        if not file.exists():
            raise BadInput(f"{file}: no such file; run ttt, stream or tasks first")
        rows |= json.loads(file.read_text(encoding="utf8"))
    found = {"ttt": ttt(rows), "stream": stream(rows), "tasks": tasks(rows)}
    for name, some in found.items():
        for line in _lines(name, some):
            print(line)
    if out is not None:
        whole = found | {"ttt_tried": tried(rows)}
        out.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf8")


def _under(rows: Rows, prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): row for key, row in rows.items() if key.startswith(prefix)}


def _names(rows: Rows, prefix: str) -> list[str]:
    return list(dict.fromkeys(key.partition("/")[0] for key in _under(rows, prefix)))


def ttt(rows: Rows) -> dict[str, Any]:
    """Return for each kind its gain on test text, its share of LoRA's, and what a query costs."""
    base, found = _under(rows, "ttt/test/base/"), dict[str, Any]()
    lora = _under(rows, f"ttt/test/{LORA}/")
    for name in _names(rows, "ttt/test/"):
        own = _under(rows, f"ttt/test/{name}/")
        ids = [each for each in base if each in own]
        bits, before = (np.array([some[each]["bits"] for each in ids]) for some in (own, base))
        told: dict[str, Any] = {
            "documents": len(ids),
            "gain": gain(bits, before),
            "ci": gain_interval(bits, before, ids),
            **_costs([own[each] for each in ids]),
            **rows.get(f"ttt/about/{name}", {}),
        }
        shared = [each for each in ids if each in lora]
        if name not in ("base", LORA) and shared:
            saved = np.array([base[each]["bits"] - own[each]["bits"] for each in shared])
            theirs = np.array([base[each]["bits"] - lora[each]["bits"] for each in shared])
            told["share_of_lora"] = float(saved.sum() / theirs.sum())
            told["share_of_lora_ci"] = ratio_interval(saved, theirs, shared)
            for cost in ("cpu", "wall"):
                told[f"{cost}_of_lora"] = float(
                    sum(own[each][cost] for each in shared) / sum(lora[each][cost] for each in shared)
                )
        found[name] = told
    return found


def tried(rows: Rows) -> dict[str, Any]:
    """Return what each kind gained on validation text at each rate, and the CPU seconds of a query."""
    runs = _under(rows, "ttt/valid/")
    before = sum(row["bits"] for key, row in runs.items() if key.startswith("base/"))
    found: dict[str, Any] = {}
    for key, row in runs.items():
        name, _, rate = key.partition("/")
        if name != "base":
            found.setdefault(name, {})[rate] = {"gain": 1 - row["bits"] / before, "cpu": row["cpu"]}
    return found


def _costs(rows: Sequence[Rows]) -> dict[str, float]:
    return {
        name: float(np.mean([row[name] for row in rows]))
        for name in ("cpu", "wall", "kl")
        if rows and all(name in row for row in rows)
    } | {
        name: max(row[name] for row in rows if name in row)
        for name in ("gpu_bytes", "peak_bytes")
        if any(name in row for row in rows)
    }


def stream(rows: Rows) -> dict[str, Any]:
    """Return for each kind how many nats of the answers it saves, also against others, and what it costs."""
    runs = _under(rows, "stream/test/")
    found: dict[str, Any] = {}
    for name, row in runs.items() if "base" in runs else ():
        found[name] = {**_compared(row["marks"], runs["base"]["marks"]), **_about(row)}
        for called, other in (("against_lora", LORA), ("against_in_context", "in-context")):
            if name not in ("base", "in-context", other) and other in runs:
                found[name][called] = {"other": other, **_compared(row["marks"], runs[other]["marks"])}
    return found


def _about(row: Rows) -> dict[str, Any]:
    return {
        name: row[name]
        for name in ("rate", "parameters", "bytes", "cpu", "wall", "gpu_bytes", "peak_bytes", "kl")
        if name in row
    }


def _compared(own: Rows, other: Rows, groups: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the share of nats saved against others, with its interval, and how often an answer is said."""
    nats, before = np.array(own["nats"]), np.array(other["nats"])
    names = [str(place) for place in range(len(nats))] if groups is None else groups
    picked = [value for value in own["picked"] if not math.isnan(value)]
    return {
        "answers": len(nats),
        "nll": float(nats.sum() / np.sum(own["tokens"])),
        "saved": gain(nats, before),
        "ci": gain_interval(nats, before, names),
        "said": float(np.mean(own["said"])),
        "picked": float(np.mean(picked)) if picked else None,
    }


def tasks(rows: Rows) -> dict[str, Any]:
    """Return for each method and number of steps how well it answers, against the base and against others."""
    found: dict[str, Any] = {}
    runs = {name: _under(rows, f"tasks/test/{name}/") for name in _names(rows, "tasks/test/")}
    base = runs.pop("base", {})
    by_name: dict[str, dict[str, Any]] = {"base": base, "in-context": runs.pop("in-context", {})}
    for name, own in runs.items():
        for key, row in own.items():
            steps, _, task = key.partition("/")
            often = f"{steps} steps" if int(steps) else "a step an example"
            by_name.setdefault(f"{name}, {often}", {})[task] = row
    for name, own in by_name.items():
        there = [task for task in base if task in own]
        if not there:
            continue
        found[name] = {
            "tasks": len(there),
            **_against(own, base, there),
            **_costs([own[task] for task in there]),
            "bytes": max(own[task].get("bytes", 0) for task in there),
        }
        for called, other in _others(name, by_name):
            both = [task for task in there if task in by_name[other]]
            found[name][called] = {"other": other, **_against(own, by_name[other], both)} if both else None
    return found


def _others(name: str, by_name: Rows) -> Iterator[tuple[str, str]]:
    """Yield what a method is compared with: examples in context, LoRA after as many steps, a best source."""
    method, _, steps = name.rpartition(", ")
    if method and "in-context" in by_name:
        yield "against_in_context", "in-context"
    for called, other in (
        ("against_lora", LORA),
        ("against_best_source", "best source"),
        ("against_lora_by_the_loop", "lora by the same loop"),
    ):
        if method and method != other and f"{other}, {steps}" in by_name:
            yield called, f"{other}, {steps}"


def _against(own: Rows, other: Rows, there: Sequence[str]) -> dict[str, Any]:
    """Return the comparison over tasks; an answer's weight is one over the tokens of its task's answers.

    Tasks are what is drawn again: their answers hang together.
    """

    def joined(some: Rows) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {"nats": [], "tokens": [], "said": [], "picked": []}
        for task in there:
            marks = some[task]["marks"]
            total = sum(marks["tokens"])
            made["nats"] += [value / total for value in marks["nats"]]
            made["tokens"] += [value / total for value in marks["tokens"]]
            made["said"] += marks["said"]
            made["picked"] += marks["picked"]
        return made

    mine = joined(own)
    groups = [task for task in there for _ in own[task]["marks"]["nats"]]
    return _compared(mine, joined(other), groups)


SHOWN: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "gain": ("gain %", lambda value: f"{100 * value:.1f}"),
    "saved": ("saved %", lambda value: f"{100 * value:.1f}"),
    "ci": (
        "interval",
        lambda value: "" if value is None else f"[{100 * value[0]:.1f}, {100 * value[1]:.1f}]",
    ),
    "share_of_lora": ("of LoRA's", lambda value: f"{value:.2f}"),
    "nll": ("nats", lambda value: f"{value:.3f}"),
    "said": ("said %", lambda value: f"{100 * value:.1f}"),
    "picked": ("picked %", lambda value: "" if value is None else f"{100 * value:.1f}"),
    "parameters": ("parameters", lambda value: f"{value:,}"),
    "bytes": ("bytes", lambda value: f"{value:,}"),
    "rate": ("rate", lambda value: f"{value:g}"),
    "cpu": ("CPU s", lambda value: f"{value:.2f}"),
    "wall": ("s", lambda value: f"{value:.2f}"),
    "cpu_of_lora": ("CPU of LoRA's", lambda value: f"{value:.2f}"),
    "wall_of_lora": ("s of LoRA's", lambda value: f"{value:.2f}"),
    "gpu_bytes": ("GPU MB", lambda value: f"{value / 1e6:.0f}" if value else ""),
    "peak_bytes": ("MB", lambda value: f"{value / 1e6:.0f}"),
    "kl": ("KL", lambda value: f"{value:.4f}"),
}


def _lines(title: str, found: Rows) -> Iterator[str]:
    """Yield a table in Markdown, and what methods gain against others than the base."""
    if not found:
        return
    there = [name for name in SHOWN if any(name in row for row in found.values())]
    yield f"\n{title}\n"
    yield f"| | {' | '.join(SHOWN[name][0] for name in there)} |"
    yield "|---" * (len(there) + 1) + "|"
    for called, row in found.items():
        cells = (SHOWN[name][1](row[name]) if name in row else "" for name in there)
        yield f"| {called} | {' | '.join(cells)} |"
    for called, row in found.items():
        for name, other in row.items():
            if name.startswith("against") and other:
                interval = SHOWN["ci"][1](other["ci"])
                yield f"{called} {name.replace('_', ' ')}: saves {100 * other['saved']:.1f} % {interval}"
