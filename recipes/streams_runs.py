"""What fresh_streams.py runs: a method over a stream, or a window; answers are kept as they are given."""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import streams_data as data
import streams_figures as figures
from online_common import World
from streams_data import WHOLE
from streams_figures import VALID
from streams_methods import Prepared

from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocol import Batch
from uptake.evaluation.protocols.stream import Stream
from uptake.evaluation.records import RecordFile
from uptake.evaluation.runner import Runner
from uptake.methods.contract.method import MethodSpec
from uptake.report.results import BASE
from uptake.report.streamed.rows import Answered, DocumentFailed, Drifted, Spent
from uptake.tasks.answers import normalised
from uptake.tasks.asking import Asking, ask
from uptake.tasks.questions import Question
from uptake.text.types import Document


@dataclass(frozen=True)
class Job:
    """One method at one rate over one stream; `which` says what the stream is for."""

    way: str
    rate: float
    which: str

    @property
    def key(self) -> str:
        return f"{self.way} | {self.rate:g} | {self.which}"


class Journal:
    """What a group has answered so far: one record a job and checkpoint."""

    def __init__(self, args: argparse.Namespace, group: str) -> None:
        self._file = RecordFile(figures.rows_folder(args.work) / f"{group}.jsonl", figures.FORMAT)
        self._records = self._file.start(dict)

    def of(self, job: Job) -> list[dict[str, Any]]:
        """Return what is there of a job: all of it, or nothing."""
        mine = [record for record in self._records if record["job"] == job.key]
        return mine if any(record["last"] for record in mine) else []

    def keep(self, job: Job, taken: int, last: bool, rows: Sequence[Mapping[str, Any]], **more: Any) -> None:
        record = {"job": job.key, **asdict(job), "taken": taken, "last": last, "rows": rows, **more}
        self._records = [r for r in self._records if (r["job"], r["taken"]) != (job.key, taken)]
        self._records.append(json.loads(json.dumps(record)))
        self._file.keep(record)


@dataclass(frozen=True)
class Streams:
    """The streams of every kind, and the checkpoints of the test's."""

    valid: World
    test: World
    filler: Sequence[Document]  # on train facts
    stops: tuple[int, ...]
    facts: data.Facts  # of the test

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Streams":
        of = partial(data.facts, args.data, longest=args.longest)
        every, filler = of("test"), of("train", old=True).documents
        test = every.first(args.documents)
        other = data.unrelated(args.minipile, "test", args.unrelated, 600)
        # What nobody asks for: the test's other documents, those that were learnt from, then long ones, cut.
        rest, cut = every.documents[len(test.documents) :], data.beginnings(args.data, args.longest)
        made = data.stream_of(test, rest, filler, args.length, other, cut)
        valid = of("valid").first(args.valid)
        watched = data.unrelated(args.minipile, "valid", 1, 600)
        whole = len(test.documents), len(made.documents)
        stops = sorted({*whole, *(at for at in args.checkpoints if at < whole[1])})
        return cls(data.stream_of(valid, (), (), 0, watched), made, filler, tuple(stops), test)

    @property
    def known_at(self) -> int:
        """After how many documents all questions can be asked."""
        return len(self.facts.documents)


def answered(
    rows: Sequence[Answered], questions: Mapping[str, Question]
) -> list[dict[str, str | int | float | bool]]:
    """Return answers as they are kept; `held` is whether the right one stands in what was said."""
    return [
        {
            "question": row.question,
            "group": row.group,
            "place": row.place,
            "nats": row.nats,
            "tokens": row.tokens,
            "said": row.said[:80],
            "exact": row.exact,
            "f1": row.f1,
            "held": held(row.said, questions[row.question].answers),
            "failed": row.failed,
        }
        for row in rows
    ]


def held(said: str, answers: Sequence[str]) -> bool:
    words = f" {normalised(said)} "
    return any(f" {normalised(answer)} " in words for answer in answers)


def streamed(
    ready: Prepared, job: Job, method: Any, made: World, stops: Sequence[int], args: Any, journal: Journal
) -> list[dict[str, Any]]:
    """Let a method read a stream; return a record a checkpoint, each on the disk once it is answered."""
    if done := journal.of(job):
        return done
    asking = Asking(tokens=0 if job.which == VALID else args.tokens, batch=args.batch)
    questions = {question.id: question for question in made.questions}
    plan = Plan({job.way: MethodSpec(method)}, Stream((*stops,), asking, save_every=1 << 30))
    units = plan.protocol.units(plan, Inputs(made.documents, made.questions, unrelated=made.unrelated))
    place, unit = next((place, unit) for place, unit in enumerate(units) if unit.id != BASE)
    runner, clock = Runner(ready.base, plan), Clock()
    for part in runner.run(Batch((unit,), (place,))):
        rows = part.rows.get(place, [])
        found = [row for row in rows if isinstance(row, Answered)]
        if not found:
            continue
        drift = [row for row in rows if isinstance(row, Drifted)]
        spent = next((row for row in rows if isinstance(row, Spent)), Spent(job.way, found[0].taken))
        journal.keep(
            job,
            found[0].taken,
            found[0].taken == len(made.documents),
            answered(found, questions),
            drift=[[row.nats, row.tokens] for row in drift],
            steps=spent.steps,
            seconds=spent.adapt_seconds,
            failures=[row.reason for row in rows if isinstance(row, DocumentFailed)],
        )
        clock.say(f"{job.key}: {found[0].taken} documents, {told(found)}")
    return journal.of(job)


class Clock:
    """Says how long something took, since it was made."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def say(self, text: str) -> None:
        print(f"{text} [{time.perf_counter() - self._since:.0f} s]", flush=True)


def told(rows: Sequence[Any]) -> str:
    nats = sum(row.nats for row in rows) / len(rows)
    return f"{nats:.3f} nats an answer, {100 * sum(row.exact for row in rows) / len(rows):.1f} % exact"


def tuned(
    ready: Prepared, way: str, of: Any, streams: Streams, args: argparse.Namespace, journal: Journal
) -> float:
    """Return the rate at which validation facts are answered best, within a divergence on unrelated text."""
    stop = (len(streams.valid.documents),)
    tried = {}
    for rate in args.rates:
        method = of(rate, streams.valid)
        record = streamed(ready, Job(way, rate, VALID), method, streams.valid, stop, args, journal)[-1]
        nats, tokens = (sum(column) for column in zip(*record["drift"], strict=True))
        tried[rate] = sum(row["nats"] for row in record["rows"]), nats / tokens
    within = {rate: nats for rate, (nats, kl) in tried.items() if kl <= args.most_kl}
    return min(within or {min(tried): 0.0}, key=lambda rate: tried[rate][0])


def keep_read(
    ready: Prepared,
    job: Job,
    streams: Streams,
    questions: Sequence[Question],
    before: Sequence[str],
    taken: int,
    args: argparse.Namespace,
    journal: Journal,
) -> None:
    """Ask behind texts, and keep the answers as those after so many documents."""
    clock, by_id = Clock(), {question.id: question for question in questions}
    asking = replace(WHOLE, tokens=args.tokens, batch=max(1, args.batch // 4))
    places = {each.id: number for number, each in enumerate(streams.test.documents, 1)}
    groups = {each.id: each.group or each.id for each in streams.test.documents}
    found = ask(ready.base, data.in_context(questions, before), asking)
    rows = [
        Answered(
            job.way,
            taken,
            question.id,
            groups[question.document],
            places[question.document],
            **asdict(answer),
        )
        for question, answer in zip(questions, found, strict=True)
    ]
    last = job.way != figures.FOUND or taken == streams.stops[-1]
    journal.keep(job, taken, last, answered(rows, by_id), drift=[], steps=0, seconds=0.0, failures=[])
    clock.say(f"{job.key}: {told(rows)}")
