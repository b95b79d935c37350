"""What a model makes of the data set before anything is adapted: bits per byte, and answers to facts.

Both go on after an interruption: a row is on the disk once it is measured.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import uptake
from uptake.codec import load
from uptake.errors import Missing
from uptake.evaluation.records import RecordFile
from uptake.lm.base import LM, Segment
from uptake.report.metrics import bits_per_byte, ratio_interval
from uptake.tasks.answers import normalised
from uptake.tasks.asking import SLOT, Asking, ask
from uptake.tasks.questions import Question, read_questions
from uptake.text.types import Document, stable_hash

FRESH = {
    "fresh": "test.jsonl",
    "older packages, before": "before.jsonl",
    "older packages, after": "after.jsonl",
}
LEAST = 1_000  # characters that a document has, to be scored
READINGS = ("nothing", "another passage", "its passage")  # what stands before a question
LN2 = 0.6931471805599453


@dataclass(frozen=True, slots=True)
class Scored:
    """How many bits the base model needed for the first characters of one document."""

    part: str
    document: str
    twin: bool
    bits: float
    bytes: int


@dataclass(frozen=True, slots=True)
class Answered:
    """One question, asked with one thing to read before it."""

    fact: str
    kind: str
    read: str  # one of READINGS
    nats: float
    said: str
    exact: float
    f1: float
    held: bool  # the answer stands in what was said
    guess: bool  # the guess of one who knows all other facts is right


def base_bits(model: str, data: Path, minipile: Path, documents: int, characters: int) -> list[Scored]:
    """Score the first `characters` of so many documents of each part, by a hash; rows in that order.

    Raises Missing where there is no data set or no mini-Pile.
    """
    parts = {part: data / name for part, name in FRESH.items()}
    parts |= {path.parent.name: path for path in sorted(minipile.glob("*/test.jsonl.xz"))}
    _there([*parts.values(), minipile])
    lm = uptake.load(model)
    journal = _journal(data, "bits", lm.fingerprint, str(characters))
    rows = {(row.part, row.document): row for row in journal.start(lambda data: load(Scored, data))}
    wanted = [(part, each) for part, path in parts.items() for each in _drawn(path, documents, LEAST)]
    for part, document in wanted:
        if (part, document.id) not in rows:
            text = document.text[:characters]
            (found,) = lm.score([Segment(text)])
            bits = -float(found.log_probs.sum()) / LN2
            row = Scored(part, document.id, bool(document.meta.get("twin")), bits, len(text.encode("utf8")))
            journal.keep(row)
            rows[part, document.id] = row
    return [rows[part, document.id] for part, document in wanted]


def _journal(data: Path, name: str, *key: str) -> RecordFile:
    """Return the file of what was measured with this model, these settings and this build of the data set."""
    manifest = data / "manifest.json"
    built = manifest.read_text() if manifest.exists() else ""
    whole = " ".join(key)
    return RecordFile(data / "measured" / f"{name}-{stable_hash(whole, built):016x}.jsonl", whole)


def _there(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.exists():
            raise Missing(f"{path} is not there: make the data set with `python recipes/fresh.py build`")


def _drawn(path: Path, most: int, least: int) -> list[Document]:
    every = [each for each in uptake.read(path) if len(each.text) >= least]
    return sorted(every, key=lambda each: stable_hash("drawn", each.id))[:most]


def bits_table(rows: Sequence[Scored]) -> str:
    """Return the table of base bits per byte, with intervals by document."""
    lines = ["| text | documents | base, bits per byte |", "|---|---|---|"]
    groups: dict[str, list[Scored]] = {}
    for row in rows:
        groups.setdefault(row.part, []).append(row)
    if fresh := groups.get("fresh"):
        groups["fresh, no near twin"] = [row for row in fresh if not row.twin]
    groups["mini-Pile, all"] = [row for row in rows if row.part not in FRESH]
    for part, mine in groups.items():
        if mine:
            bits, sizes = [row.bits for row in mine], [row.bytes for row in mine]
            interval = ratio_interval(bits, sizes, [row.document for row in mine])
            said = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
            lines.append(f"| {part} | {len(mine)} | {bits_per_byte(bits, sizes):.3f}{said} |")
    return "\n".join(lines)


def answered(model: str, data: Path, count: int) -> list[Answered]:
    """Ask so many questions on fresh facts of the test part, by a hash, after reading this or that."""
    folder = data / "facts" / "test"
    _there([folder / "questions.jsonl", folder / "passages.jsonl"])
    every = [
        each for each in read_questions(folder / "questions.jsonl").questions if each.meta["part"] != "after"
    ]
    order = sorted(every, key=lambda each: stable_hash("drawn", each.id))
    asked = order[:count]
    passages = {each.id: each.text for each in uptake.read(folder / "passages.jsonl")}
    lm = uptake.load(model)
    journal = _journal(data, "answers", lm.fingerprint)
    rows = {(row.fact, row.read): row for row in journal.start(lambda data: load(Answered, data))}
    for place, question in enumerate(asked):
        other = order[(place + 1) % len(order)]  # the same, whatever the count
        for read, text in _readings(passages, question, other):
            if (question.id, read) not in rows:
                rows[question.id, read] = row = _asked(lm, question, read, text)
                journal.keep(row)
    return [rows[question.id, read] for question in asked for read in READINGS]


def _readings(passages: dict[str, str], question: Question, other: Question) -> Iterator[tuple[str, str]]:
    yield from zip(READINGS, ("", passages[other.document], passages[question.document]), strict=True)


def _asked(lm: LM, question: Question, read: str, text: str) -> Answered:
    # What stands in a passage is no slot for a question.
    before = f"{text}\n\n".replace(SLOT, "") if text else ""
    (found,) = ask(lm, [question], Asking(f"{before}Question: {SLOT}\nAnswer:", tokens=24))
    said = f" {normalised(found.said)} "
    held = any(f" {normalised(answer)} " in said for answer in question.answers)
    guess = question.meta["guess"] in question.answers
    return Answered(
        question.id, question.meta["kind"], read, found.nats, found.said, found.exact, found.f1, held, guess
    )


def answers_table(rows: Sequence[Answered]) -> str:
    """Return the table of answers, a row for each thing that was read before the question."""
    lines = [
        "| read before | facts | exact | answer within | F1 | nats of the answer |",
        "|---|---|---|---|---|---|",
    ]
    for read in dict.fromkeys(row.read for row in rows):
        mine = [row for row in rows if row.read == read]
        exact, held, f1, nats = (
            fmean(column)
            for column in zip(*((r.exact, float(r.held), r.f1, r.nats) for r in mine), strict=True)
        )
        lines.append(f"| {read} | {len(mine)} | {exact:.3f} | {held:.3f} | {f1:.3f} | {nats:.2f} |")
    unread = [row for row in rows if row.read == "nothing"]
    if unread:
        lines.append(
            f"| (the guess, no model) | {len(unread)} | {fmean(row.guess for row in unread):.3f} | | | |"
        )
    return "\n".join(lines)


def as_json(rows: Sequence[Scored | Answered]) -> list[dict[str, object]]:
    """Return rows as JSON data."""
    return [asdict(row) for row in rows]
