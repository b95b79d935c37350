"""From a stream's rows to its figures: answers against the base's, along the stream, and drift."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from uptake.report import metrics
from uptake.report.calibrated import figures as calibrated
from uptake.report.calibrated.figures import Sure
from uptake.report.formatting import ONE_OFF, filled, many, not_scored, number, one_off, percent, size
from uptake.report.results import BASE, Results
from uptake.report.streamed.rows import Answered, Claimed, DocumentFailed, Drifted, Spent

# What is compared: the column, and what it is shared out over.
MEASURES: Mapping[str, tuple[Callable[[Answered], float], Callable[[Answered], float]]] = {
    "nll": (lambda row: row.nats, lambda row: row.tokens),
    "f1": (lambda row: row.f1, lambda row: 1.0),
    "exact": (lambda row: row.exact, lambda row: 1.0),
}


def figures(results: Results) -> dict[str, Any]:
    """Return the figures of a stream as plain JSON data.

    `methods[name]` holds the figures at the end and `at`, those of every checkpoint. `nll` is in nats a
    token of the right answer, `bits` in bits an answer, `f1` and `exact` are shares of 1, `kl` is
    in nats a token of unrelated text, seconds are CPU seconds. `bands` are the questions on the
    documents between one checkpoint and the next, asked then. `vs_base` and `pairs` are differences,
    of one method less another, with their 95 % intervals by paired bootstrap over groups.
    """
    seed = results.header.seed
    answers = results.of(Answered)
    base = {row.question: row for row in answers if row.method == BASE}
    found: dict[str, dict[int, list[Answered]]] = {}
    for row in answers:
        if row.method != BASE:
            found.setdefault(row.method, {}).setdefault(row.taken, []).append(_settled(row, base))
    stops = sorted({taken for by_taken in found.values() for taken in by_taken})
    methods = {}
    for method, by_taken in found.items():
        every = [_at(results, method, taken, by_taken[taken], base, stops) for taken in sorted(by_taken)]
        methods[method] = {
            **every[-1],
            "calibration": _calibration(by_taken[max(by_taken)], base, seed),
            "at": every,
            "failures": _failures(results, method),
            "privacy": _claim(results, method),
            "peak_rss_bytes": results.header.peak_rss_bytes.get(method),
            "peak_gpu_bytes": results.header.peak_gpu_bytes.get(method),
        }
    last = max(stops, default=0)
    final = {
        method: {row.question: row for row in rows}
        for method, at in found.items()
        if (rows := at.get(last, []))
    }
    asked = next(iter(final.values()), base)
    return {
        "documents": last,
        "base": {
            **_figures([base[key] for key in asked]),
            "asked": _figures(base.values()),
            "calibration": calibrated.figures([_sure(base[key]) for key in asked], seed),
        },
        "methods": methods,
        "pairs": [
            {"method": method, "less": other, **difference(final[method], final[other], seed)}
            for place, method in enumerate(final)
            for other in list(final)[:place]
        ],
    }


def _settled(row: Answered, base: Mapping[str, Answered]) -> Answered:
    """Return an answer as it counts: the base's where the question could not be asked."""
    if not row.failed:
        return row
    right = base[row.question]
    names = (
        *("nats", "tokens", "said", "f1", "exact", "bytes", "bytes_not_scored"),
        *("said_nats", "said_tokens"),
    )
    marks = {name: getattr(right, name) for name in names}
    return replace(row, **marks)


def _calibration(rows: Sequence[Answered], base: Mapping[str, Answered], seed: int) -> dict[str, Any] | None:
    there = [row for row in rows if row.question in base]
    return calibrated.figures(
        [_sure(row) for row in there], seed, [_sure(base[row.question]) for row in there]
    )


def _sure(row: Answered) -> Sure:
    return Sure(row.said_nats, row.said_tokens, row.exact, row.group)


def calibration(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the calibration at the end of the base and of each method."""
    return {name: told["calibration"] for name, told in {BASE: figures["base"], **figures["methods"]}.items()}


def _claim(results: Results, method: str) -> dict[str, Any] | None:
    """Return what a method keeps private at the end, in numbers and as `said`; None for no claim."""
    rows = [row for row in results.of(Claimed) if row.method == method]
    last = max(rows, key=lambda row: row.taken, default=None)
    return None if last is None else {"said": last.said, **last.claim}


def _failures(results: Results, method: str) -> list[dict[str, Any]]:
    """Return what of the stream a method could not read or answer, and why."""
    stopped = [row for row in results.of(DocumentFailed) if row.method == method]
    unasked: dict[tuple[int, str], int] = {}
    for row in results.of(Answered):
        if row.method == method and row.failed:
            unasked[row.taken, row.failed] = unasked.get((row.taken, row.failed), 0) + 1
    return [
        *({"document": row.document, "place": row.place, "reason": row.reason} for row in stopped),
        *(
            {
                "document": f"the asking of {many(count, 'question', 'questions')}",
                "place": taken,
                "reason": why,
            }
            for (taken, why), count in unasked.items()
        ),
    ]


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


_COSTS = (
    "tokens_trained",
    "tokens_read",
    "steps",
    "retrieve_seconds",
    "adapt_seconds",
    "gpu_seconds",
    "ask_seconds",
    "prepare_seconds",
)


def _at(
    results: Results,
    method: str,
    taken: int,
    rows: Sequence[Answered],
    base: Mapping[str, Answered],
    stops: Sequence[int],
) -> dict[str, Any]:
    """Return the figures of one method at one checkpoint."""
    drift = [row for row in results.of(Drifted) if row.method == method and row.taken == taken]
    costs = (row for row in results.of(Spent) if row.method == method and row.taken == taken)
    spent = next(costs, None)
    mine = {row.question: row for row in rows}
    return {
        "taken": taken,
        **_figures(rows),
        "kl": _ratio(sum(row.nats for row in drift), sum(row.tokens for row in drift)),
        **{name: getattr(spent, name) if spent else None for name in _COSTS},
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
        "bytes": sum(row.bytes for row in rows),
        "bytes_not_scored": sum(row.bytes_not_scored for row in rows),
        "nll": _ratio(nats, tokens),
        "bits": _ratio(nats / math.log(2), len(rows)),
        "f1": fmean(row.f1 for row in rows) if rows else None,
        "exact": fmean(row.exact for row in rows) if rows else None,
    }


def _ratio(above: float, below: float) -> float | None:
    return above / below if below and math.isfinite(above) else None


def lines(figures: dict[str, Any]) -> list[dict[str, str]]:
    """Return the summary as lines of text under their headings: the base, then each method at the end.

    A heading under which nothing would stand is left out.
    """
    methods = figures["methods"].items()
    return filled([_line(BASE, figures["base"]), *(_line(name, method) for name, method in methods)])


def _line(name: str, found: dict[str, Any]) -> dict[str, str]:
    gap = found.get("vs_base", {}).get("nll", {"difference": None, "ci": None})
    interval = f" [{', '.join(number(end, 2) for end in gap['ci'])}]" if gap["ci"] else ""
    return {
        "method": name,
        "NLL": number(found["nll"], 3),
        "vs base": number(gap["difference"], 2, "+") + interval,
        "F1": percent(found["f1"]),
        "exact": percent(found["exact"]),
        "KL": number(found.get("kl"), 4),
        "CPU seconds": number(_seconds(found), 1),
        "one-off seconds": one_off(found.get("prepare_seconds")),
        "tokens trained": number(found.get("tokens_trained"), 0, ","),
        # Without a GPU both are empty, and left out.
        "GPU seconds": number(found.get("gpu_seconds") or None, 1),
        "GPU memory": size(found.get("peak_gpu_bytes") or None),
        "failed": str(len(found.get("failures", ())) or ""),
    }


def _seconds(found: dict[str, Any]) -> float | None:
    """Return what reading cost, finding included."""
    adapt: float | None = found.get("adapt_seconds")
    return None if adapt is None else adapt + found["retrieve_seconds"]


def details(figures: dict[str, Any]) -> list[list[dict[str, str]]]:
    """Return each method's NLL less the base's after so many documents, over all and over the first ones."""
    methods = figures["methods"]
    surest = calibrated.tables(calibration(figures))
    if not any(len(method["at"]) > 1 for method in methods.values()):
        return surest
    stops = sorted({at["taken"] for method in methods.values() for at in method["at"]})
    heading, made = "NLL less the base's, after documents", []
    for name, method in methods.items():
        whole, first = {heading: name}, {heading: f"  on the first {stops[0]:,}"}
        for at in method["at"]:
            stop = f"{at['taken']:,}"
            whole[stop] = number(at["vs_base"]["nll"]["difference"], 2, "+")
            band = next((band for band in at["bands"] if band["from"] == 1), None)
            gap = band["nll"] - band["base"]["nll"] if band and band["nll"] is not None else None
            first[stop] = number(gap, 2, "+")
        made += [whole, first]
    return [made, *surest]


def caption(figures: dict[str, Any]) -> str:
    """Return what stands below the table in a terminal."""
    drift = any(method["kl"] is not None for method in figures["methods"].values())
    # Of one group alone there is no interval.
    intervals = any(method["vs_base"]["nll"]["ci"] for method in figures["methods"].values())
    return (
        f"{many(figures['base']['questions'], 'question', 'questions')} after "
        f"{many(figures['documents'], 'document', 'documents')}; NLL: nats a token of "
        "the right answer"
        + (" [95 % interval, bootstrap by group]" if intervals else "")
        + ("; KL: nats a token of unrelated text" if drift else "")
        + (f"; {ONE_OFF}" if any(line.get("one-off seconds") for line in lines(figures)) else "")
        + (f"; {sure}" if (sure := calibrated.extent(calibration(figures))) else "")
        + (f"\n{lost}" if (lost := unscored(figures)) else "")
        + "".join(f"\n{line}" for line in claims(figures))
    )


def claims(figures: dict[str, Any]) -> list[str]:
    """Return a line on each method that claims privacy: what it keeps, and what is not private."""
    found = {name: method.get("privacy") for name, method in figures["methods"].items()}
    return [f"{name}: {claim['said']}" for name, claim in found.items() if claim]


def unscored(figures: dict[str, Any]) -> str:
    """Return the line on bytes of answers that are not scored, if there are any."""
    asked = figures["base"]["asked"]
    return not_scored(asked["bytes_not_scored"], asked["bytes"], " of answers")
