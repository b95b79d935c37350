"""The figures of fresh_streams.py: what is answered at each checkpoint, beside the bare model and controls.

Questions that the bare model answers right are left out. Intervals are a paired bootstrap by file.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fresh_common import difference

from uptake.errors import Missing
from uptake.evaluation.records import RecordFile
from uptake.report.metrics import bits_per_byte, gain, gain_difference, gain_interval, ratio_interval

FORMAT = "fresh streams recipe 1"
BARE, OWN, ANOTHER = "no update", "its document in the window", "another document in the window"
FOUND = "the document found by search, in the window"
UNIFORM = "uniform"
TEST, VALID, CONTROL = "test", "valid", "other documents"
LN2 = math.log(2)
Row = Mapping[str, Any]


def rows_folder(work: Path) -> Path:
    """Return the folder of what was answered, a file a group of methods."""
    return Path(work) / "rows"


def records(work: Path) -> list[dict[str, Any]]:
    """Return every record, of one job and checkpoint the newest. Raises Missing where there is none."""
    found = {}
    for path in sorted(rows_folder(work).glob("*.jsonl")):
        for record in RecordFile(path, FORMAT).start(dict):
            found[record["job"], record["taken"]] = record
    if not found:
        raise Missing(f"nothing was answered in {rows_folder(work)}: run the groups first")
    return [*found.values()]


def figures(work: Path) -> dict[str, Any]:
    """Return the figures of what is finished; raises Missing where the bare model was not asked."""
    every = records(work)
    bare = next((record for record in every if record["way"] == BARE), None)
    if bare is None:
        raise Missing(f"the bare model was not asked in {rows_folder(work)}: run the group reading first")
    base = {row["question"]: row for row in bare["rows"]}
    asked = {key: row for key, row in base.items() if not row["exact"]}
    tests = [record for record in every if record["which"] == TEST]
    first = min(record["taken"] for record in tests)
    end = max(row["place"] for row in base.values())
    of = {(record["way"], record["taken"]): _settled(record, asked) for record in tests}
    told = [_told(record, asked, of[record["way"], record["taken"]], first) for record in tests]
    for record in every:
        if record["which"] == CONTROL and (mine := of.get((record["way"], record["taken"]))):
            other = _settled(record, asked)
            told.append({**_told(record, asked, other, first), "way": f"{record['way']}, {CONTROL}"})
            for row in told:
                if (row["way"], row["taken"]) == (record["way"], record["taken"]):
                    row["beyond_control"] = _less(mine, other, asked)
    for row in told:
        plain = of.get((UNIFORM, row["taken"]))
        mine = of.get((row["way"], row["taken"]))
        if plain and mine and row["way"] != UNIFORM:
            row["beyond_uniform"] = _less(mine, plain, asked)
        # What reading on has changed of what was kept: on the questions that were asked at both checkpoints.
        early = of.get((row["way"], first))
        if mine and early and row["taken"] > first:
            row["beyond_first"] = _less(mine, early, asked)
    valid = [_valid(record) for record in every if record["which"] == VALID]
    order = [*dict.fromkeys(row["way"] for row in told)]
    told.sort(key=lambda row: (order.index(row["way"]), row["taken"]))
    return {
        "questions": len(base),
        "known": len(base) - len(asked),
        "files": len({row["group"] for row in asked.values()}),
        "documents_asked": end,
        "first": first,
        "rows": told,
        "valid": valid,
    }


def _settled(record: Row, asked: Mapping[str, Row]) -> list[Row]:
    """Return the answers to the questions that count; one that could not be asked is the bare model's."""
    return [
        asked[row["question"]] if row["failed"] else row for row in record["rows"] if row["question"] in asked
    ]


def _told(record: Row, asked: Mapping[str, Row], rows: Sequence[Row], first: int) -> dict[str, Any]:
    early = [row for row in rows if row["place"] <= first]
    nats, tokens = (
        (sum(column) for column in zip(*record["drift"], strict=True)) if record["drift"] else (0, 0)
    )
    return {
        "way": record["way"],
        "rate": record["rate"],
        "taken": record["taken"],
        "questions": len(rows),
        **_answers(rows, asked),
        "first": {"questions": len(early), **_answers(early, asked)},
        "kl": nats / tokens if tokens else 0.0,
        "steps": record["steps"],
        "seconds": record["seconds"],
        "failed_documents": len(record["failures"]),
        "failed_questions": sum(bool(row["failed"]) for row in record["rows"]),
    }


def _answers(rows: Sequence[Row], asked: Mapping[str, Row]) -> dict[str, Any]:
    """Return bits an answer, the share saved of the bare model's, and the marks, each with its interval."""
    before = [asked[row["question"]] for row in rows]
    groups = [row["group"] for row in rows]
    bits, base_bits = (_column(some, "nats") for some in (rows, before))
    ones = [1.0] * len(rows)
    return {
        "bits": bits_per_byte(bits, ones),
        "base_bits": bits_per_byte(base_bits, ones),
        "gain": gain(bits, base_bits),
        "gain_ci": gain_interval(bits, base_bits, groups),
        **{mark: bits_per_byte(_column(rows, mark), ones) for mark in ("exact", "held", "f1")},
        **{
            f"{mark}_more": [
                bits_per_byte(more, ones),
                ratio_interval(more, ones, groups),
            ]
            for mark in ("exact", "held", "f1")
            for more in [[a - b for a, b in zip(_column(rows, mark), _column(before, mark), strict=True)]]
        },
    }


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [float(row[name]) / (LN2 if name == "nats" else 1) for row in rows]


def _less(mine: Sequence[Row], other: Sequence[Row], asked: Mapping[str, Row]) -> Any:
    """Return the gain of some answers less that of others, and its interval, on the questions of both."""
    there = {row["question"]: row for row in other}
    mine = [row for row in mine if row["question"] in there]
    theirs = [there[row["question"]] for row in mine]
    base = [asked[row["question"]] for row in mine]
    columns = [_column(rows, "nats") for rows in (mine, theirs, base)]
    found = gain_difference(*columns, [row["group"] for row in mine])
    return [found.value, found.interval]


def _valid(record: Row) -> dict[str, Any]:
    bits = _column(record["rows"], "nats")
    nats, tokens = (sum(column) for column in zip(*record["drift"], strict=True))
    return {
        "way": record["way"],
        "rate": record["rate"],
        "bits": sum(bits) / len(bits),
        "kl": nats / tokens,
    }


def shown(found: Mapping[str, Any]) -> str:
    """Return the tables: all questions at each checkpoint, and those on the first documents along it."""
    lines = [
        f"{found['questions']} questions; left out, answered right without an update: {found['known']}",
        "",
        "| method | documents read | rate | bits an answer | saved [95 %] | beyond its control "
        "| beyond uniform | exact % | answer within % | F1 % | KL | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        marks = (f"{100 * row[mark]:.1f}{_interval(row[f'{mark}_more'])}" for mark in ("exact", "held", "f1"))
        cells = (
            row["way"],
            row["taken"],
            f"{row['rate']:g}" if row["rate"] else "",
            f"{row['bits']:.2f}",
            _percent([row["gain"], row["gain_ci"]]),
            *(_percent(row.get(name)) for name in ("beyond_control", "beyond_uniform")),
            *marks,
            f"{row['kl']:.3f}",
            f"{row['seconds']:.0f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        f"The questions on the first {found['first']} documents, along the stream",
        "",
        f"| method | documents read | saved | more than after {found['first']} | within |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        early = row["first"]
        if early["questions"]:
            cells = (
                row["way"],
                row["taken"],
                _percent([early["gain"], early["gain_ci"]]),
                _percent(row.get("beyond_first")),
                f"{100 * early['held']:.1f}",
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _percent(value: Any) -> str:
    if value is None:
        return ""
    if value[1] is None:
        return f"{100 * value[0]:.1f}"
    return difference(value)


def _interval(more: Any) -> str:
    """Return by how many points a mark is above the bare model's, in an interval."""
    if more[1] is None:
        return ""
    low, high = more[1]
    return f" ({100 * more[0]:+.1f} [{100 * low:.1f}, {100 * high:.1f}])"
