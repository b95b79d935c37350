"""Documents one after another, questions at checkpoints and at the end, closed book; the base beside.

A unit is one method's walk through the whole stream, so methods run side by side in workers. A
document that cannot be read (a loss that is no number, above all) is passed over: the state before
it is kept and the results name it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from uptake.codec import plain, typed
from uptake.errors import BadInput
from uptake.evaluation.failures import finite, reason_of
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.protocol import Batch, Part, Protocol, Unit
from uptake.lm.base import LM
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State
from uptake.report.formatting import many
from uptake.report.results import BASE, Row
from uptake.report.streamed import STREAMED
from uptake.report.streamed.rows import Answered, Asked, Drifted, Spent, Stopped
from uptake.tasks.asking import Asking, ask, divergence
from uptake.tasks.questions import Question
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
    that reads neighbours reads those of each document before it, and may search as it goes.
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
        course = Course(self, inputs)
        course.check()
        if len(plan.ks) > 1:
            raise BadInput(f"k {', '.join(map(str, plan.ks))}: a stream is read once, give one k")
        reading = [name for name, spec in plan.methods.items() if spec.method.reads]
        walks = [Walk(name, len(inputs.documents), course=course) for name in reading]
        return [Walk(BASE, 0, course=course), *walks]

    def searches(self, plan: "Plan") -> bool:
        return max(plan.ks) > 0 and any(spec.searches for spec in plan.methods.values())

    def needs_store(self, plan: "Plan") -> bool:
        return False

    def asked(self, plan: "Plan", spec: MethodSpec) -> tuple[int, ...]:
        return plan.ks if spec.searches and spec.select.hands else (0,)

    def describe(self, inputs: Inputs) -> dict[str, str | int | float]:
        counted = ("documents", "questions", "unrelated", "rehearsal")
        return {
            **{name: len(getattr(inputs, name)) for name in counted},
            "checkpoints": ", ".join(map(str, Course(self, inputs).stops)),
            **asdict(self.asking),
            "chunk_characters": self.chunking.characters if self.chunking else "whole documents",
        }

    def failed(self, unit: Unit, plan: "Plan", reason: str) -> list[Row]:
        course = _walk(unit).course
        questions = course.ever() if unit.id == BASE else course.asked(len(course.inputs.documents))
        taken = 0 if unit.id == BASE else len(course.inputs.documents)
        return [*course.unanswered(unit.id, taken, questions, reason)]

    def run(self, batch: Batch, runner: "Runner") -> Iterator[Part]:
        (unit,), (place,) = batch.units, batch.places
        walk = _walk(unit)
        if walk.id != BASE:
            yield from _follow(walk, place, batch, runner)
            return
        asked = walk.course.ever()
        yield Part.progress(0, f"{BASE} {_asking(asked)}")
        with runner.meter.memory(BASE):
            rows = walk.course.ask(runner, runner.lm, Spent(BASE, 0), asked)
        shown = [Asked(one.id, one.text, one.answers) for one in walk.course.shown(SHOWN)]
        yield Part(rows={place: rows}, showcases={place: list(shown)})


@dataclass(frozen=True)
class Walk(Unit):
    """One method's way through the stream; the base's asks alone."""

    course: "Course" = field(kw_only=True)


def _walk(unit: Unit) -> Walk:
    assert isinstance(unit, Walk)
    return unit


@dataclass(frozen=True)
class Course:
    """Which documents come in which order, and which question is asked when."""

    protocol: Stream
    inputs: Inputs

    def check(self) -> None:
        """Raise BadInput where there is nothing to read or to ask, or a name is there twice."""
        documents, questions = self.inputs.documents, self.inputs.questions
        if not documents:
            raise BadInput("the stream is empty: give at least one document")
        if not questions:
            raise BadInput("no question to ask: give at least one whose document is in the stream")
        _once("document", [document.id for document in documents])
        _once("question", [question.id for question in questions])
        for question in questions:
            if question.document and question.document not in self.places:
                raise BadInput(
                    f"question {question.id!r}: its document {question.document!r} is not in the stream"
                )
        wrong = [count for count in self.protocol.checkpoints if not 1 <= count <= len(documents)]
        if wrong:
            count = len(documents)
            raise BadInput(f"checkpoint {wrong[0]}: the stream has {count} documents, use 1 to {count}")

    @property
    def stops(self) -> list[int]:
        """The numbers of documents after which is asked, the end included."""
        return sorted({*self.protocol.checkpoints, len(self.inputs.documents)})

    @cached_property
    def places(self) -> dict[str, int]:
        """The number of each document in the stream, from 1, by its id."""
        return {document.id: place for place, document in enumerate(self.inputs.documents, 1)}

    def place(self, question: Question) -> int:
        """Return the number of the question's document, 0 where it names none."""
        return self.places[question.document] if question.document else 0

    def group(self, question: Question) -> str:
        """Return the unit of the bootstrap: its document's group, or else document, or else itself."""
        place = self.place(question)
        return (self.inputs.documents[place - 1].group or question.document) if place else question.id

    def asked(self, taken: int) -> list[Question]:
        """Return the questions to ask once so many documents have been read."""
        last = taken == len(self.inputs.documents)
        return [
            question
            for question in self.inputs.questions
            if (0 < self.place(question) <= taken or (last and not question.document))
            # What no document of this stream changes stays right.
            and self.places.get(question.until, taken + 1) > taken
        ]

    def ever(self) -> list[Question]:
        """Return the questions that are asked at all."""
        ids = {question.id for taken in self.stops for question in self.asked(taken)}
        return [question for question in self.inputs.questions if question.id in ids]

    def shown(self, count: int) -> list[Question]:
        """Return a few of the questions asked at the end, evenly spread over them."""
        asked = self.asked(len(self.inputs.documents))
        step = max(1, len(asked) // max(1, count))
        return asked[::step][:count]

    def ask(self, runner: "Runner", adapted: LM, spent: Spent, questions: Sequence[Question]) -> list[Row]:
        """Ask, and measure the drift; return the rows of both, and what had been spent by then."""
        method, taken = spent.method, spent.taken
        seconds: list[float] = []
        with runner.meter.seconds(seconds):
            found = ask(adapted, questions, self.protocol.asking)
        answers = [
            Answered(method, taken, question.id, self.group(question), self.place(question), **asdict(answer))
            for question, answer in zip(questions, found, strict=True)
        ]
        # The base does not differ from itself.
        drift = [
            Drifted(method, taken, text.id, *divergence(runner.lm, adapted, text.text))
            for text in (self.inputs.unrelated if adapted is not runner.lm else ())
        ]
        return [*answers, *drift, replace(spent, ask_seconds=seconds[0])]

    def unanswered(
        self, method: str, taken: int, questions: Sequence[Question], reason: str
    ) -> list[Answered]:
        """Return the rows of questions that could not be asked."""
        return [
            Answered(method, taken, one.id, self.group(one), self.place(one), 0.0, 0, "", 0.0, 0.0, reason)
            for one in questions
        ]


def _once(what: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadInput(f"{what} id {name!r} is there twice: give each an id of its own")
        seen.add(name)


def in_stream(
    documents: Sequence[Document], questions: Sequence[Question]
) -> tuple[tuple[Question, ...], list[str]]:
    """Return the questions whose documents are in the stream, and a line on those left out, if any."""
    there = {document.id for document in documents}
    kept = tuple(question for question in questions if not question.document or question.document in there)
    left = [question for question in questions if question.document and question.document not in there]
    if not left:
        return kept, []
    named = ", ".join(f"{question.id} (document {question.document})" for question in left[:3])
    count = many(len(left), "question", "questions")
    return kept, [f"left out, their documents are not in the stream: {count}, {named}"]


def _follow(walk: Walk, place: int, batch: Batch, runner: "Runner") -> Iterator[Part]:
    """Let one method read the documents that are left, and ask it at its checkpoints."""
    name, course = walk.id, walk.course
    spec, documents, stops = runner.plan.methods[name], course.inputs.documents, set(course.stops)
    state: Any = spec.method.init(runner.lm)
    spent, rows = Spent(name, 0), list[Row]()
    if batch.resume is not None and (left := runner.resume(batch, type(state))) is not None:
        state, spent = left, typed(Spent, batch.resume.data, "spent")
    first = spent.taken == 0
    runner.meter.start()
    for number in range(spent.taken + 1, len(documents) + 1):
        document = documents[number - 1]
        spent = replace(spent, taken=number)
        state, spent, failed = _read_document(state, spec, course, document, spent, runner)
        rows += [Stopped(name, document.id, number, failed)] if failed else []
        label = f"{name} {document.id}"
        if number in stops:
            asked = course.asked(number)
            yield Part.progress(number - 1, f"{name} {_asking(asked)}")
            rows += _ask(state, spec, course, spent, asked, runner)
        if number in stops or number % course.protocol.save_every == 0:
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
    state: Any, spec: MethodSpec, course: Course, spent: Spent, asked: Sequence[Question], runner: "Runner"
) -> list[Row]:
    """Return the rows of a checkpoint, the rehearsal learnt before it; the state stays for the stream."""
    ready, failed = _rehearsed(state, spec, course, runner)
    rows: list[Row] = [Stopped(spent.method, REHEARSAL, spent.taken, failed)] if failed else []
    try:
        return [*rows, *course.ask(runner, spec.method.adapted([ready], runner.lm), spent, asked)]
    except Exception as error:  # whatever a network can raise: these questions count at the base's answers
        unanswered = course.unanswered(spent.method, spent.taken, asked, reason_of(error))
        return [*rows, *unanswered, spent]


def _read_document(
    state: Any, spec: MethodSpec, course: Course, document: Document, spent: Spent, runner: "Runner"
) -> tuple[Any, Spent, str]:
    """Return the state after one document, what is spent by then, and why it was passed over, if it was."""
    plan, chunking = runner.plan, course.protocol.chunking
    # Seeded by the document, so that what is random differs from one to the next.
    context = Context(stable_hash(str(plan.seed), "stream", document.id), plan.budget)
    passages = tuple(chunking.passages(document)) if chunking else (Passage.whole(document),)
    finding, reading = list[float](), list[float]()
    with runner.meter.seconds(finding):
        evidence = _evidence(spec, document, passages, runner)
    with runner.meter.seconds(reading):
        after, failed = _read(state, spec, evidence, context, runner.lm)
    ledger = context.ledger(0)
    spent = replace(
        spent,
        tokens_trained=spent.tokens_trained + ledger.tokens_trained,
        tokens_read=spent.tokens_read + ledger.tokens_read,
        steps=spent.steps + ledger.steps,
        retrieve_seconds=spent.retrieve_seconds + finding[0],
        adapt_seconds=spent.adapt_seconds + reading[0],
    )
    return after, spent, failed


def _evidence(
    spec: MethodSpec, document: Document, passages: tuple[Passage, ...], runner: "Runner"
) -> Evidence:
    """Return a document as evidence, behind its neighbours where there is a store to find some in."""
    own = Found(passages, (0.0,) * len(passages), (0.0,) * len(passages))
    if runner.store is None or not spec.searches:
        return Evidence(own)
    (source,) = runner.sources([(document.text, document)])
    k = max(runner.plan.asked(spec))
    generator = np.random.default_rng(stable_hash(str(runner.plan.seed), "choose", document.id))
    found = spec.select.choose(source, k, generator) if k else Found()
    return Evidence(own.behind(found.passages), source=source)


def _rehearsed(state: Any, spec: MethodSpec, course: Course, runner: "Runner") -> tuple[Any, str]:
    """Return the state after learning the rehearsal, once, and why it was not learnt, if it was not.

    It is `uniform + QA-tune` of Hu et al. (2023).
    """
    if not course.inputs.rehearsal:
        return state, ""
    asking = course.protocol.asking
    passages = tuple(
        Passage(stable_hash("rehearsal", question.id), text, asking.prompt(question))
        for question in course.inputs.rehearsal
        for text in [asking.learnt(question.answers[0])]
    )
    evidence = Evidence(Found(passages, (0.0,) * len(passages), (0.0,) * len(passages)))
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
