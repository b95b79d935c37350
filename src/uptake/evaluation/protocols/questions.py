"""Search with a question, read what is found, answer it, forget: open-domain questions, each by itself."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from uptake.errors import BadInput, Diverged
from uptake.evaluation.failures import attempt
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.protocol import Batch, Part, Protocol, Unit
from uptake.lm.base import LM, Segment
from uptake.methods.contract.method import Context, Evidence, MethodSpec
from uptake.report.asked import ASKED
from uptake.report.asked.rows import Asked, ShownAsked
from uptake.report.results import Row
from uptake.tasks import answers
from uptake.tasks.asking import Asking, speak
from uptake.tasks.questions import Question
from uptake.text.types import Document, Found, Source, stable_hash

if TYPE_CHECKING:
    from uptake.evaluation.plan import Plan
    from uptake.evaluation.runner import Runner


@dataclass(frozen=True)
class QuestionUnit(Unit):
    """One question, and the examples that stand before it."""

    question: Question = field(kw_only=True)
    shots: tuple[Question, ...] = field(kw_only=True)


@dataclass
class _Open:
    """A question under way: what the base made of it, and where its passages are."""

    unit: QuestionUnit
    prompt: str
    base: "_Marks"
    source: Source | None = None
    seconds: float = 0.0  # of searching


@dataclass(frozen=True)
class _Marks:
    nats: float
    said: str
    exact: float
    f1: float
    contains: float
    said_nats: float = 0.0
    said_tokens: int = 0


@dataclass(frozen=True)
class Questions(Protocol):
    """Search with a question, read what is found, answer, forget.

    The first `shots` questions of the file are examples: they stand with their answers before each of the
    others, which makes a small model answer in few words, and are not asked. An answer ends with its line, or
    after `answer_tokens`. A question's own document is evidence, and no leak.
    """

    name: ClassVar[str] = "questions"
    report = ASKED
    wants: ClassVar[str] = "questions"
    data: ClassVar[Literal["documents", "edits", "questions"]] = "questions"
    options: ClassVar[Mapping[str, str]] = {"shots": "shots", "answer_tokens": "answer_tokens"}
    shots: int = 3
    answer_tokens: int = 12

    def __post_init__(self) -> None:
        if self.shots < 0 or self.answer_tokens < 1:
            raise BadInput(
                f"shots {self.shots}, answer_tokens {self.answer_tokens}: use 0 or more, and 1 or more"
            )

    def units(self, plan: "Plan", inputs: Inputs) -> list[Unit]:
        shots, asked = inputs.questions[: self.shots], inputs.questions[self.shots :]
        if not asked:
            raise BadInput(
                f"no question to ask: {len(inputs.questions)} were given and {self.shots} of them are "
                "examples; give more, or --shots 0"
            )
        return [QuestionUnit(one.id, question=one, shots=shots) for one in asked]

    def side_by_side(self, plan: "Plan") -> int:
        return plan.batch

    def searches(self, plan: "Plan") -> bool:
        return max(plan.ks) > 0 and any(spec.searches for spec in plan.methods.values())

    def neighbour_counts(self, plan: "Plan", spec: MethodSpec) -> tuple[int, ...]:
        return (max(plan.ks),) if spec.searches and spec.select.gives_passages else (0,)

    def run(self, batch: Batch, runner: "Runner") -> Iterator[Part]:
        units = [unit for unit in batch.units if isinstance(unit, QuestionUnit)]
        asked = self._open(units, runner)
        rows: dict[int, list[Row]] = {place: [] for place in batch.places}
        shown = {
            place: ShownAsked(one.unit.question.text, one.unit.question.answers, {}, {})
            for place, one in zip(batch.places, asked, strict=True)
        }
        for name, spec in runner.plan.methods.items():
            yield Part.progress(0, f"{batch.units[-1].id}: {name}")

            with runner.meter.memory(name):
                made = self._answered(name, spec, asked, runner)
            for place, (row, passage) in zip(batch.places, made, strict=True):
                rows[place].append(row)
                shown[place] = ShownAsked(
                    shown[place].question,
                    shown[place].answers,
                    {**shown[place].said, name: row.said},
                    {**shown[place].passages, name: passage},
                )
        kept = self.shown(runner.plan, batch.places)
        showcases = {place: [one] for place, one in shown.items() if place in kept}
        yield Part(rows=rows, showcases=showcases, done=len(units), label=units[-1].id)

    def failed(self, unit: Unit, plan: "Plan", reason: str) -> list[Row]:
        # Not even the base has answered: it is marked as if nothing had been said.
        assert isinstance(unit, QuestionUnit)
        nothing = _Open(unit, "", _Marks(0.0, "", 0.0, 0.0, 0.0))
        return [_row(name, 0, nothing, nothing.base, Found(), failed=reason) for name in plan.methods]

    def _open(self, units: Sequence[QuestionUnit], runner: "Runner") -> list[_Open]:
        prompts = [self._prompt(unit) for unit in units]
        base = self._marks(runner.lm, [unit.question for unit in units], prompts)
        asked = [_Open(*each) for each in zip(units, prompts, base, strict=True)]
        if runner.store is not None:
            seconds: list[float] = []
            with runner.meter.seconds(seconds):
                texts = [unit.question.text for unit in units]
                sources = runner.sources([(text, Document("", text)) for text in texts])
            for one, source in zip(asked, sources, strict=True):
                one.source, one.seconds = source, seconds[0] / len(asked)
        return asked

    def _prompt(self, unit: QuestionUnit) -> str:
        asking = Asking()
        shown = [f"{asking.prompt(one)} {one.answers[0]}\n\n" for one in unit.shots]
        return "".join(shown) + asking.prompt(unit.question)

    def _answered(
        self, name: str, spec: MethodSpec, asked: Sequence[_Open], runner: "Runner"
    ) -> list[tuple[Asked, str]]:
        """Return what `_answer` does; what fails counts at the base's answer."""

        def do(some: Sequence[_Open]) -> list[tuple[Asked, str]]:
            return self._answer(name, spec, some, runner)

        def failed(one: _Open, reason: str) -> tuple[Asked, str]:
            return _row(name, 0, one, one.base, Found(), failed=reason), ""

        each = 1 if spec.method.separate else len(asked)
        parts = [asked[start : start + each] for start in range(0, len(asked), each)]
        return [made for some in parts for made in attempt(some, do, failed)]

    def _answer(
        self, name: str, spec: MethodSpec, asked: Sequence[_Open], runner: "Runner"
    ) -> list[tuple[Asked, str]]:
        """Read and answer under one method; return each question's row and the passage it rests on."""
        plan, method, lm = runner.plan, spec.method, runner.lm
        if not method.reads:
            return [(_row(name, 0, one, one.base, Found()), "") for one in asked]
        (k,) = self.neighbour_counts(plan, spec)
        found = [_choose(spec, one, k, plan.seed) for one in asked]
        context = Context(plan.seed, plan.budget)
        evidence = [
            Evidence(some, one.prompt, one.source, one.prompt) for some, one in zip(found, asked, strict=True)
        ]
        seconds: list[float] = []
        with context.charging(range(len(asked)), lm.device):
            states = method.adapt([method.init(lm) for _ in asked], lm, evidence, context)
        with runner.meter.seconds(seconds):
            adapted = method.adapted(states, lm)
            marks = self._marks(
                adapted, [one.unit.question for one in asked], [one.prompt for one in asked], rows=True
            )
        made = []
        for place, (one, mine, some) in enumerate(zip(asked, marks, found, strict=True)):
            ledger = context.ledger(place)
            row = _row(
                name,
                k,
                one,
                one.base if ledger.failed else mine,
                some,
                failed=ledger.failed,
                seconds=(one.seconds if k else 0.0, ledger.cpu_seconds, seconds[0] / len(asked)),
            )
            made.append((row, _passage(row.said, some)))
        return made

    def _marks(
        self, lm: LM, questions: Sequence[Question], prompts: Sequence[str], rows: bool = False
    ) -> list[_Marks]:
        asking = Asking()
        segments = [
            Segment(asking.answer(one.answers[0]), prompt)
            for one, prompt in zip(questions, prompts, strict=True)
        ]
        scores = lm.score(segments)
        if bad := next((q.id for q, s in zip(questions, scores, strict=True) if not np.isfinite(s.bits)), ""):
            raise Diverged(f"the answer to question {bad!r} is not finite")
        by = range(len(prompts)) if rows and lm.rows is not None else None
        spoken = speak(lm, prompts, self.answer_tokens, rows=by)
        return [
            _Marks(
                -float(score.scored.sum()),
                said.text,
                answers.exact(said.text, one.answers),
                answers.f1(said.text, one.answers),
                float(answers.holds(said.text, one.answers)),
                said.nats,
                said.tokens,
            )
            for one, score, said in zip(questions, scores, spoken, strict=True)
        ]


def _choose(spec: MethodSpec, one: _Open, k: int, seed: int) -> Found:
    if one.source is None or k == 0:
        return Found()
    generator = np.random.default_rng(stable_hash(str(seed), "choose", one.unit.id))
    return spec.select.choose(one.source, k, generator)


def _passage(said: str, found: Found) -> str:
    """Return the text of the first passage read that holds what was said, "" where none does."""
    place = _holding(said, found)
    return "" if place is None else found.passages[place].text


def _holding(said: str, found: Found) -> int | None:
    return next((i for i, passage in enumerate(found.passages) if answers.holds(passage.text, (said,))), None)


def _row(
    name: str,
    k: int,
    one: _Open,
    mine: _Marks,
    found: Found,
    failed: str = "",
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Asked:
    question, base = one.unit.question, one.base
    read = tuple(passage.document for passage in found.passages)
    right = read.index(question.document) + 1 if question.document in read else 0
    place = _holding(mine.said, found)
    return Asked(
        method=name,
        k=k,
        question=question.id,
        group=question.document or question.id,
        nats=mine.nats,
        said=mine.said,
        exact=mine.exact,
        f1=mine.f1,
        contains=mine.contains,
        base_nats=base.nats,
        base_exact=base.exact,
        base_f1=base.f1,
        base_contains=base.contains,
        said_nats=mine.said_nats,
        said_tokens=mine.said_tokens,
        base_said_nats=base.said_nats,
        base_said_tokens=base.said_tokens,
        read=read,
        right_place=right if question.document else -1,
        rests_on="" if place is None else read[place],
        retrieve_seconds=seconds[0],
        train_seconds=seconds[1],
        ask_seconds=seconds[2],
        failed=failed,
    )
