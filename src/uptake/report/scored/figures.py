"""From scored rows to figures: bits per byte, gain beside its interval, what overlapped, what it cost."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from uptake.report import metrics
from uptake.report.formatting import ends, filled, many, not_scored, number, one_off, percent, points, size
from uptake.report.results import BASE, CONTROL, Results
from uptake.report.scored.best import best_within, control_of, rivals, said_within
from uptake.report.scored.groups import group_lines, grouped
from uptake.report.scored.rows import Scored
from uptake.text.overlap import NEAR_TWIN, overlap_bin


def figures(results: Results) -> dict[str, Any]:
    """Return `methods`: each at its largest k; its `by_k` holds every k, smallest first.

    And `near_twins`, and `best`: which saves most within the cost that the header names. A query that failed,
    or whose bits are not finite, counts at the base's score.
    """
    header = results.header
    found: dict[str, dict[int, list[Scored]]] = {}
    for row in results.of(Scored):
        found.setdefault(row.method, {}).setdefault(row.k, []).append(_settled(row))
    # The same queries under every method, or what is left could not be compared.
    twins = {row.query for by_k in found.values() for some in by_k.values() for row in some if row.near_twin}
    methods = {}
    for method, by_k in found.items():
        every = [{"k": k, **_figures(by_k[k], header.seed)} for k in sorted(by_k)]
        largest = max(by_k)
        rows = by_k[largest]
        control = control_of(method, found)
        theirs = found.get(control, {}).get(largest) if control else None
        methods[method] = {
            **every[-1],
            "failures": [{"query": row.query, "reason": row.failed} for row in rows if row.failed],
            "tokens_trained_per_query": _mean(row.tokens_trained for row in rows),
            "tokens_read_per_query": _mean(row.tokens_read for row in rows),
            "neighbours_per_query": _mean(row.neighbours for row in rows),
            "withheld_per_query": _mean(row.withheld for row in rows),
            "peak_rss_bytes": header.peak_rss_bytes.get(method),
            "peak_gpu_bytes": header.peak_gpu_bytes.get(method),
            "preparation_cpu_seconds": metrics.finite(
                sum(row.prepare_seconds for some in by_k.values() for row in some)
            ),
            "gpu_seconds_per_query": _mean(row.gpu_seconds for row in rows),
            "overlap_bins": _overlap_bins(rows, header.seed),
            "near_twins": _near_twins(rows, theirs, twins, header.seed),
            "by_k": every,
            "control": control if theirs else None,
            "against_random": _against(rows, theirs, header.seed),
        }
    every_query = {row.query: row.document for row in results.of(Scored)}
    near_twins = {
        "letters": NEAR_TWIN,
        "queries": len(twins),
        "of": len(every_query),
        "documents": len({every_query[query] for query in twins}),
    }
    return {
        "methods": methods,
        "near_twins": near_twins,
        "best": best_within(methods, header.within),
        "groups": grouped(results, {method: by_k[max(by_k)] for method, by_k in found.items()}),
    }


def _settled(row: Scored) -> Scored:
    """Return the row as it counts: at the base's score where the query failed."""
    failed = row.failed or ("" if math.isfinite(row.bits) else f"the loss became {row.bits}")
    return dataclasses.replace(row, failed=failed, bits=row.base_bits if failed else row.bits)


def _gained(rows: Sequence[Scored], seed: int) -> dict[str, Any]:
    bits, base_bits = [row.bits for row in rows], [row.base_bits for row in rows]
    interval = metrics.gain_interval(bits, base_bits, [row.document for row in rows], seed=seed)
    return {"gain": metrics.finite(metrics.gain(bits, base_bits)), "gain_ci": interval and list(interval)}


def _figures(rows: Sequence[Scored], seed: int) -> dict[str, Any]:
    """Return the figures of one method at one k."""
    bits, base_bits, sizes = ([getattr(row, name) for row in rows] for name in ("bits", "base_bits", "bytes"))
    seconds = {part: [getattr(row, f"{part}_seconds") for row in rows] for part in _PARTS}
    seconds["total"] = [sum(parts) for parts in zip(*seconds.values(), strict=True)]
    return {
        "bits_per_byte": metrics.finite(metrics.bits_per_byte(bits, sizes)),
        "base_bits_per_byte": metrics.finite(metrics.bits_per_byte(base_bits, sizes)),
        **_gained(rows, seed),
        "share_helped": metrics.share_helped(bits, base_bits),
        "queries": len(rows),
        "bytes": sum(sizes),
        "bytes_not_scored": sum(row.bytes_not_scored for row in rows),
        "failed": sum(bool(row.failed) for row in rows),
        "stopped_early": sum(bool(row.stopped) and not row.failed for row in rows),  # by a budget
        "cpu_seconds_per_query": {part: _mean(values) for part, values in seconds.items()},
    }


_PARTS = ("retrieve", "train", "score")


def _overlap_bins(rows: Sequence[Scored], seed: int) -> list[dict[str, Any]]:
    """Return the gain for each degree of overlap that occurs, least first; none where nothing was read."""
    if not any(row.neighbours for row in rows):
        return []
    bins: dict[str, list[Scored]] = {}
    for row in sorted(rows, key=lambda row: row.overlap):
        bins.setdefault(overlap_bin(row.overlap), []).append(row)
    return [
        {"bin": name, "queries": len(members), **_gained(members, seed)} for name, members in bins.items()
    ]


def _near_twins(
    rows: Sequence[Scored], control: Sequence[Scored] | None, twins: set[str], seed: int
) -> dict[str, Any] | None:
    """Return the gain over the queries `with` a near twin and those `without`; None where there is none."""
    if not twins:
        return None
    parts = {
        "with": [row for row in rows if row.query in twins],
        "without": [row for row in rows if row.query not in twins],
    }
    return {
        name: {
            "queries": len(some),
            "bits_per_byte": metrics.finite(
                metrics.bits_per_byte([r.bits for r in some], [r.bytes for r in some])
            ),
            **_gained(some, seed),
            "against_random": _against(some, control, seed),
        }
        for name, some in parts.items()
    }


def _against(rows: Sequence[Scored], control: Sequence[Scored] | None, seed: int) -> dict[str, Any] | None:
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
    return {"difference": metrics.finite(found.value), "ci": found.interval and list(found.interval)}


def _by_query(rows: Sequence[Scored]) -> dict[tuple[str, int], Scored]:
    """Key rows by query; a query asked twice is told apart by its turn."""
    turns: Counter[str] = Counter()
    keyed = {}
    for row in rows:
        keyed[row.query, turns[row.query]] = row
        turns[row.query] += 1
    return keyed


def _mean(values: Iterable[float]) -> float | None:
    try:
        return metrics.finite(fmean(values))
    except OverflowError:
        return None


def lines(figures: dict[str, Any]) -> list[dict[str, str]]:
    """Return the summary as lines of text under their headings, the base first, then one a method.

    A heading under which nothing would stand is left out.
    """
    made = [_line(name, method) for name, method in figures["methods"].items()]
    if made and BASE not in figures["methods"]:
        # Nothing was run as the base, but every method was scored against it.
        reference = next(iter(figures["methods"].values()))["base_bits_per_byte"]
        made.append(dict.fromkeys(made[0], "") | {"method": BASE, "bits per byte": number(reference, 3)})
    return sorted(filled(made), key=lambda line: line["method"] != BASE)


def _line(name: str, method: dict[str, Any]) -> dict[str, str]:
    against = method["against_random"] or {"difference": None, "ci": None}
    line = {
        "method": name,
        "k": str(method["k"] or ""),
        "bits per byte": number(method["bits_per_byte"], 3),
        "gain": percent(method["gain"]) + ends(method["gain_ci"]),
        "vs random": points(against["difference"]) + ends(against["ci"]),
        "helped": percent(method["share_helped"], 0),
        "CPU seconds": number(method["cpu_seconds_per_query"]["total"], 2),
        "one-off seconds": one_off(method["preparation_cpu_seconds"]),
        "tokens trained": number(method["tokens_trained_per_query"], 0, ","),
        "peak memory": size(method["peak_rss_bytes"]),
        # Where there is no GPU nothing stands under these, and they are left out.
        "GPU seconds": number(method["gpu_seconds_per_query"] or None, 3),
        "GPU memory": size(method["peak_gpu_bytes"]),
    }
    if name == BASE:  # it cannot gain on itself
        line |= dict.fromkeys(("gain", "vs random", "helped"), "")
    return line


def unscored(figures: dict[str, Any]) -> str:
    """Return the line on bytes that are not scored, if there are any; they are the same for every method."""
    first = next(iter(figures["methods"].values()), None)
    return not_scored(first["bytes_not_scored"], first["bytes"]) if first else ""


def own_controls(figures: dict[str, Any]) -> str:
    """Return the line on methods that are set against a control of their own, if there are any."""
    own = {name: method["control"] for name, method in figures["methods"].items() if method["control"]}
    told = [f"{name} against {control}" for name, control in own.items() if control != CONTROL]
    return f"vs random: {', '.join(told)}" if told else ""


def twins(figures: dict[str, Any]) -> str:
    """Return the line on queries that read from a near twin, and the gain without them, if there are any."""
    found = figures["near_twins"]
    if not found["queries"]:
        return ""
    read = f"{found['queries']:,} of {many(found['of'], 'query', 'queries')} read from a near twin of"
    read += " its document" if found["queries"] == 1 else " their documents"
    without = [
        f"{name} {percent(left['gain'])}{ends(left['gain_ci'])}"
        for name, method in figures["methods"].items()
        if name != BASE and (left := method["near_twins"]["without"])["gain"] is not None
    ]
    if not without:
        return f"{read}: no query is left without them"
    return f"{read}; gain without {'it' if found['queries'] == 1 else 'them'}: {', '.join(without)}"


def details(figures: dict[str, Any]) -> list[list[dict[str, str]]]:
    """Return the gain by group, where a field was named, and of every method at every k, if several."""
    return [lines for lines in (group_lines(figures["groups"]), _by_k(figures)) if lines]


def _by_k(figures: dict[str, Any]) -> list[dict[str, str]]:
    by_method = {name: {at["k"]: at for at in method["by_k"]} for name, method in figures["methods"].items()}
    if not any(len(by_k) > 1 for by_k in by_method.values()):
        return []
    ks = sorted({k for by_k in by_method.values() for k in by_k} - {0})
    return [
        {"gain at k": name, **{str(k): percent(by_k[k]["gain"]) if k in by_k else "" for k in ks}}
        for name, by_k in by_method.items()
        if name != BASE and any(by_k)
    ]


def conclusion(figures: dict[str, Any]) -> str:
    """Return in a sentence which method saved most, and how sure that is."""
    methods = figures["methods"]
    if not methods:
        return ""
    first = next(iter(methods.values()))
    queries = many(first["queries"], "query", "queries")
    others = rivals(methods)
    if not others:
        return f"{queries} scored; the base needs {number(first['base_bits_per_byte'], 3)} bits a byte"
    best = max(others, key=lambda name: others[name]["gain"])
    gain, interval = others[best]["gain"], others[best]["gain_ci"]
    saved = f"{percent(abs(gain))} of the base's bits" + (
        f" (95 % interval {ends(interval).strip()})" if interval else ""
    )
    if gain <= 0:
        most = "" if len(others) == 1 else ", as the best of them"
        return (
            f"{queries}: {best} saves nothing and costs {saved}{most}"
            if gain
            else f"{queries}: {best} saves nothing"
        )
    unsure = interval is not None and interval[0] <= 0
    doubt = ", which may be chance: the interval includes 0" if unsure else ""
    return f"{queries}: {best} saves {saved}{said_within(methods, best, figures['best'])}{doubt}"
