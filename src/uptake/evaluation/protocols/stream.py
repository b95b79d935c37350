"""Documents one after another, questions at checkpoints and at the end, closed book; the base beside.

A unit is one method's run through the whole stream, so methods run side by side in workers. A
document that cannot be read (a loss that is no number, above all) is passed over: the state before
it is kept and the results name it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from uptake.codec import load, plain
from uptake.errors import BadInput, Diverged
from uptake.evaluation.failures import finite, reason_of
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.protocol import Batch, Part, Protocol, Unit
from uptake.evaluation.schedule import Schedule
from uptake.lm.base import LM
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State
from uptake.methods.contract.private import check_blocks
from uptake.report.formatting import many
from uptake.report.results import BASE, Row
from uptake.report.streamed import STREAMED
from uptake.report.streamed.rows import Claimed, DocumentFailed, ShownQuestion, Spent
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question
from uptake.text.round_trip import Losses
from uptake.text.types import Chunking, Document, Found, Passage, stable_hash

if TYPE_CHECKING:
    from uptake.evaluation.plan import Plan
    from uptake.evaluation.runner import Runner

REHEARSAL = "the rehearsal"  # stands in the place of a document's id
SHOWN = 12  # questions that are shown in words


@dataclass(frozen=True)
class Stream(Protocol):
    """Each method reads all documents, in order, by itself; the base is asked the same.

    At each of `checkpoints`, numbers of documents read, the questions are asked whose document has
    been read and whose `until` has not; at the end all but those outdated. `chunking` cuts documents
    into passages; left out, a document is one. A plan's budget is a document's. With a store a method
    that reads neighbours reads those of each document before it, and may search as it goes. A private method
    gets all documents up to the next checkpoint at once.
    """

    name: ClassVar[str] = "stream"
    report = STREAMED
    wants: ClassVar[str] = "documents, and questions on them"
    checkpoints: tuple[int, ...] = ()
    asking: Asking = field(default_factory=Asking)
    chunking: Chunking | None = None
    save_every: int = 100  # documents from one keeping of the state to the next

    def __post_init__(self) -> None:
        if self.save_every < 1:
            raise BadInput(f"save every {self.save_every} documents: use 1 or more")

    def units(self, plan: "Plan", inputs: Inputs) -> list[Unit]:
        schedule = Schedule(self.checkpoints, self.asking, inputs)
        schedule.check()
        if len(plan.ks) > 1:
            raise BadInput(f"k {', '.join(map(str, plan.ks))}: a stream is read once, give one k")
        reading = [name for name, spec in plan.methods.items() if spec.method.reads]
        if inputs.rehearsal and (private := [name for name in reading if plan.methods[name].method.private]):
            raise BadInput(
                f"{private[0]} under privacy, and a rehearsal: its questions would be learnt without any; "
                "leave out one of them"
            )
        ends = schedule.stops
        blocks = [inputs.documents[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        for name in reading:
            check_blocks(name, plan.methods[name].method, blocks)
        runs = [StreamRun(name, len(inputs.documents), schedule=schedule) for name in reading]
        return [StreamRun(BASE, 0, schedule=schedule), *runs]

    def check(self, units: Sequence[Unit], lm: LM) -> None:
        losses, schedule = Losses(lm.tokenizer), _stream_run(units[0]).schedule
        for question in schedule.all_questions():
            losses.add(question.id, schedule.asking.answer(question.answers[0]))
        losses.check()

    def charge(self, part: Part, once: dict[str, float]) -> None:
        for rows in part.rows.values():
            for place, row in enumerate(rows):
                # What is spent is told as a sum at every checkpoint.
                if isinstance(row, Spent) and (more := once.get(row.method, 0.0)):
                    rows[place] = replace(row, prepare_seconds=row.prepare_seconds + more)

    def searches(self, plan: "Plan") -> bool:
        return max(plan.ks) > 0 and any(spec.searches for spec in plan.methods.values())

    def needs_store(self, plan: "Plan") -> bool:
        return False

    def neighbour_counts(self, plan: "Plan", spec: MethodSpec) -> tuple[int, ...]:
        return plan.ks if spec.searches and spec.select.gives_passages else (0,)

    def describe(self, inputs: Inputs) -> dict[str, str | int | float]:
        counted = ("documents", "questions", "unrelated", "rehearsal")
        return {
            **{name: len(getattr(inputs, name)) for name in counted},
            "checkpoints": ", ".join(map(str, Schedule(self.checkpoints, self.asking, inputs).stops)),
            **asdict(self.asking),
            "chunk_characters": self.chunking.characters if self.chunking else "whole documents",
        }

    def failed(self, unit: Unit, plan: "Plan", reason: str) -> list[Row]:
        schedule = _stream_run(unit).schedule
        questions = (
            schedule.all_questions()
            if unit.id == BASE
            else schedule.questions_after(len(schedule.inputs.documents))
        )
        taken = 0 if unit.id == BASE else len(schedule.inputs.documents)
        return [*schedule.unanswered(unit.id, taken, questions, reason)]

    def run(self, batch: Batch, runner: "Runner") -> Iterator[Part]:
        (unit,), (place,) = batch.units, batch.places
        run = _stream_run(unit)
        if run.id != BASE:
            yield from _run_method(run, place, batch, runner)
            return
        asked = run.schedule.all_questions()
        yield Part.progress(0, f"{BASE} {_asking(asked)}")
        with runner.meter.memory(BASE):
            try:
                rows = run.schedule.ask(runner, runner.lm, Spent(BASE, 0), asked)
            except Diverged as error:  # nothing could be compared with it
                raise BadInput(f"the base model: {error}") from error
        shown = [ShownQuestion(one.id, one.text, one.answers) for one in run.schedule.shown(SHOWN)]
        yield Part(rows={place: rows}, showcases={place: list(shown)})


@dataclass(frozen=True)
class StreamRun(Unit):
    """One method's way through the stream; the base's asks alone."""

    schedule: Schedule = field(kw_only=True)


def _stream_run(unit: Unit) -> StreamRun:
    assert isinstance(unit, StreamRun)
    return unit


def _protocol(runner: "Runner") -> Stream:
    assert isinstance(runner.plan.protocol, Stream)
    return runner.plan.protocol


def _run_method(run: StreamRun, place: int, batch: Batch, runner: "Runner") -> Iterator[Part]:
    """Let one method read the documents that are left, and ask it at its checkpoints."""
    name, schedule = run.id, run.schedule
    spec, documents, stops = runner.plan.methods[name], schedule.inputs.documents, set(schedule.stops)
    state: Any = spec.method.init(runner.lm)
    spent, rows = Spent(name, 0), list[Row]()
    if batch.resume is not None and (left := runner.resume(batch, type(state))) is not None:
        state, spent = left, load(Spent, batch.resume.data)
    first, save_every = spent.taken == 0, _protocol(runner).save_every
    runner.meter.start()
    for number in range(spent.taken + 1, len(documents) + 1):
        document = documents[number - 1]
        label = f"{name} {document.id}"
        if spec.method.private and number not in stops:
            yield Part.progress(number - 1, label)
            continue
        together = documents[spent.taken : number] if spec.method.private else [document]
        spent = replace(spent, taken=number)
        state, spent, failed = _read_documents(state, spec, together, spent, runner)
        called = document.id if len(together) == 1 else f"{together[0].id} to {document.id}"
        rows += [DocumentFailed(name, called, number, failed)] if failed else []
        if (claim := getattr(state, "claim", None)) is not None:
            rows.append(Claimed(name, number, claim.said(), plain(claim)))
        if number in stops:
            asked = schedule.questions_after(number)
            yield Part.progress(number - 1, f"{name} {_asking(asked)}")
            rows += _ask(state, spec, schedule, spent, asked, runner)
        if number in stops or number % save_every == 0:
            end = number == len(documents)
            runner.meter.note(name)
            yield Part(
                rows={place: rows},
                done=number,
                label=label,
                finished=end,
                first=first,
                state=None if end else state,
                data={} if end else plain(spent),
            )
            first, rows = False, []
        else:
            yield Part.progress(number, label)


def _asking(questions: Sequence[Question]) -> str:
    return f"asking {many(len(questions), 'question', 'questions')}"


def _ask(
    state: Any,
    spec: MethodSpec,
    schedule: Schedule,
    spent: Spent,
    asked: Sequence[Question],
    runner: "Runner",
) -> list[Row]:
    """Return the rows of a checkpoint, the rehearsal learnt before it; the state stays for the stream."""
    ready, failed = _rehearsed(state, spec, schedule, runner)
    rows: list[Row] = [DocumentFailed(spent.method, REHEARSAL, spent.taken, failed)] if failed else []
    try:
        return [*rows, *schedule.ask(runner, spec.method.adapted([ready], runner.lm), spent, asked)]
    except Exception as error:  # whatever a network can raise: these questions count at the base's answers
        unanswered = schedule.unanswered(spent.method, spent.taken, asked, reason_of(error))
        return [*rows, *unanswered, spent]


def _read_documents(
    state: Any, spec: MethodSpec, documents: Sequence[Document], spent: Spent, runner: "Runner"
) -> tuple[Any, Spent, str]:
    """Return the state after one document, what is spent by then, and why it was passed over, if it was.

    Of a private method it is that after several documents, which it reads together.
    """
    plan, chunking = runner.plan, _protocol(runner).chunking
    document = documents[-1]
    # Seeded by the document, so that what is random differs from one to the next.
    context = Context(stable_hash(str(plan.seed), "stream", document.id), plan.budget)
    passages = tuple(
        passage
        for each in documents
        for passage in (chunking.passages(each) if chunking else (Passage.whole(each),))
    )
    finding, reading, gpu, once = list[float](), list[float](), list[float](), list[float]()
    with runner.meter.preparation(once):
        with runner.meter.seconds(finding):
            evidence, short = _evidence(spec, document, passages, runner)
        with runner.meter.seconds(reading, gpu):
            after, failed = _read(state, spec, evidence, context, runner.lm)
    ledger = context.ledger(0)
    spent = replace(
        spent,
        tokens_trained=spent.tokens_trained + ledger.tokens_trained,
        tokens_read=spent.tokens_read + ledger.tokens_read,
        steps=spent.steps + ledger.steps,
        retrieve_seconds=spent.retrieve_seconds + finding[0],
        adapt_seconds=spent.adapt_seconds + reading[0],
        gpu_seconds=spent.gpu_seconds + gpu[0],
        short=spent.short + short,
        prepare_seconds=spent.prepare_seconds + once[0],
    )
    return after, spent, failed


def _evidence(
    spec: MethodSpec, document: Document, passages: tuple[Passage, ...], runner: "Runner"
) -> tuple[Evidence, bool]:
    """Return a document as evidence, behind its neighbours if there is a store; and whether some lacked."""
    zeros = (0.0,) * len(passages)
    own = Found(passages, zeros, zeros, zeros)
    if runner.store is None or not spec.searches:
        return Evidence(own), False
    (source,) = runner.sources([(document.text, document)])
    k = max(runner.plan.neighbour_counts(spec))
    generator = np.random.default_rng(stable_hash(str(runner.plan.seed), "choose", document.id))
    found = spec.choose(runner.lm, source, k, generator) if k else Found()
    # A selection may want fewer; a store that has no more, for this document or at all, is to be told of.
    ended = found.withheld > 0 or k > runner.store.count or runner.store.layout.retriever == "lexical"
    return Evidence(own.behind(found.passages), source=source), len(found.passages) < k and ended


def _rehearsed(state: Any, spec: MethodSpec, schedule: Schedule, runner: "Runner") -> tuple[Any, str]:
    """Return the state after learning the rehearsal, once, and why it was not learnt, if it was not.

    It is `uniform + QA-tune` of Hu et al. (2023).
    """
    if not schedule.inputs.rehearsal:
        return state, ""
    asking = schedule.asking
    passages = tuple(
        Passage(stable_hash("rehearsal", question.id), text, asking.prompt(question))
        for question in schedule.inputs.rehearsal
        for text in [asking.learnt(question.answers[0])]
    )
    zeros = (0.0,) * len(passages)
    evidence = Evidence(Found(passages, zeros, zeros, zeros))
    context = Context(stable_hash(str(runner.plan.seed), "rehearsal"))
    return _read(state, spec, evidence, context, runner.lm)


def _read(state: Any, spec: MethodSpec, evidence: Evidence, context: Context, lm: LM) -> tuple[State, str]:
    """Return the state after reading, and why nothing was read, if nothing was."""
    try:
        (after,) = spec.method.adapt([state], lm, [evidence], context)
    except Exception as error:  # whatever a network can raise is one document passed over, and named
        return state, reason_of(error)
    if failed := context.ledger(0).failed:  # the method itself has kept the state before
        return after, failed
    return (after, "") if finite(after) else (state, "the state became infinite or no number")
