"""Run a stream: every way takes the documents up in order, and is asked at its checkpoints.

A document that cannot be taken up (a loss that is no number, above all) is passed over: the state
before it is kept and the results name it. What is done is kept as it is done, so a run goes on.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from uptake.errors import Diverged, UptakeError
from uptake.evaluation.streaming.journal import Outcome, StreamJournal
from uptake.evaluation.streaming.plan import StreamPlan
from uptake.evaluation.streaming.results import Answered, Drifted, Spent, Stopped
from uptake.lm.base import LM
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State
from uptake.methods.contract.spending import cpu_seconds
from uptake.report.summary import many
from uptake.tasks.asking import ask, divergence
from uptake.tasks.questions import Question
from uptake.text.types import Document, Found, Passage, stable_hash

BASE = "base"
REHEARSAL = "the rehearsal"  # stands in the place of a document's id
Progress = Callable[[int, int, str], None]


def run(
    lm: LM,
    plan: StreamPlan,
    journal: StreamJournal | None = None,
    progress: Progress = lambda done, total, name: None,
) -> Outcome:
    """Let every way of the plan take the stream up, one way after another, and ask it.

    The base is asked first, every question once. With a journal an interrupted run goes on where it
    was last written down, and ends as an uninterrupted one would, seconds apart.
    """
    journal = journal or StreamJournal()
    outcome = journal.start()
    reading = {name: way for name, way in plan.methods.items() if way.method.reads}
    count = len(plan.documents)
    total = count * len(reading)
    progress(sum(spent.taken for spent in journal.spent.values()), total, "")
    if BASE not in journal.spent:
        ever = {question.id for taken in plan.checkpoints for question in plan.asked(taken)}
        asked = [question for question in plan.questions if question.id in ever]
        progress(0, total, f"{BASE} {_asking(asked)}")
        rows = _ask(lm, plan, lm, Spent(BASE, 0), asked)
        journal.keep(Spent(BASE, 0), rows, None, first=True)
        outcome.add(rows)
    for number, (name, way) in enumerate(reading.items()):
        if (spent := journal.spent.get(name)) is None or spent.taken < count:
            for done, what in _follow(outcome, lm, plan, journal, name, way):
                progress(number * count + done, total, f"{name} {what}")
    return outcome


def _follow(
    outcome: Outcome, lm: LM, plan: StreamPlan, journal: StreamJournal, name: str, way: MethodSpec
) -> Iterator[tuple[int, str]]:
    """Let one way take up the documents that are left; yield how many are done, and what was or is next.

    That is a document once it is done, and the asking, which may take longer than many, before it begins.
    """
    state, spent = journal.resume(name, way.method.init(lm), lm, outcome)
    first, rows = spent.taken == 0, Outcome()
    for place in range(spent.taken + 1, len(plan.documents) + 1):
        document = plan.documents[place - 1]
        state, spent, failed = take(state, lm, way, plan, document, replace(spent, taken=place))
        if failed:
            rows.stopped.append(Stopped(name, document.id, place, failed))
        if place in plan.checkpoints:
            asked = plan.asked(place)
            yield place - 1, _asking(asked)
            ready, failed = rehearsed(state, lm, way, plan)
            if failed:
                rows.stopped.append(Stopped(name, REHEARSAL, place, failed))
            rows.add(_ask(lm, plan, way.method.adapted([ready], lm), spent, asked))
        if place in plan.checkpoints or place % plan.save_every == 0:
            left = state if place < len(plan.documents) else None
            journal.keep(spent, rows, left, first)
            outcome.add(rows)
            first, rows = False, Outcome()
        yield place, document.id


def take(
    state: State, lm: LM, way: MethodSpec, plan: StreamPlan, document: Document, spent: Spent
) -> tuple[State, Spent, str]:
    """Return the state after one document, what is spent by then, and why it was passed over, if it was."""
    # Seeded by the document, so that what is random differs from one to the next.
    context = Context(stable_hash(str(plan.seed), "stream", document.id), plan.budget)
    passages = tuple(plan.chunking.passages(document)) if plan.chunking else (Passage.whole(document),)
    seconds: list[float] = []
    with cpu_seconds(seconds):
        after, failed = _read(state, lm, way, passages, context)
    ledger = context.ledger(0)
    spent = replace(
        spent,
        tokens_trained=spent.tokens_trained + ledger.tokens_trained,
        tokens_read=spent.tokens_read + ledger.tokens_read,
        steps=spent.steps + ledger.steps,
        take_seconds=spent.take_seconds + seconds[0],
    )
    return after, spent, failed


def rehearsed(state: State, lm: LM, way: MethodSpec, plan: StreamPlan) -> tuple[State, str]:
    """Return the state after learning the plan's rehearsal, once; the state given stays for the stream.

    It is `uniform + QA-tune` of Hu et al. (2023). Where it cannot be learnt the state is as it was, and the
    second of the pair says why.
    """
    if not plan.rehearsal:
        return state, ""
    passages = tuple(
        Passage(stable_hash("rehearsal", question.id), text, plan.asking.prompt(question))
        for question in plan.rehearsal
        for text in [plan.asking.learnt(question.answers[0])]
    )
    return _read(state, lm, way, passages, Context(stable_hash(str(plan.seed), "rehearsal")))


def _read(
    state: State, lm: LM, way: MethodSpec, passages: tuple[Passage, ...], context: Context
) -> tuple[State, str]:
    """Return the state after reading passages, and why they were not read, if they were not."""
    none = (0.0,) * len(passages)
    try:
        (after,) = way.method.adapt([state], lm, [Evidence(Found(passages, none, none))], context)
    except Exception as error:  # whatever a network can raise is one document passed over, and named
        if isinstance(error, UptakeError) and not isinstance(error, Diverged):
            raise  # what is wrong with the set-up is wrong for every document
        return state, f"{type(error).__name__}: {error}".splitlines()[0][:300]
    if failed := context.ledger(0).failed:  # the method itself has kept the state before
        return after, failed
    return (after, "") if finite(after) else (state, "the state became infinite or no number")


def finite(state: Any) -> bool:
    """Whether every number of a state is one; its history holds none."""
    if isinstance(state, Tensor):
        # The ends tell of all between, in a tenth of the time of looking at each.
        ends = state.aminmax() if state.is_floating_point() and state.numel() else ()
        return all(map(math.isfinite, ends))
    if dataclasses.is_dataclass(state):
        parts = (getattr(state, part.name) for part in dataclasses.fields(state) if part.name != "history")
        return all(map(finite, parts))
    if isinstance(state, Mapping):
        return all(map(finite, state.values()))
    return all(map(finite, state)) if isinstance(state, tuple | list) else True


def _asking(questions: Sequence[Question]) -> str:
    return f"asking {many(len(questions), 'question', 'questions')}"


def _ask(lm: LM, plan: StreamPlan, adapted: LM, spent: Spent, questions: Sequence[Question]) -> Outcome:
    """Ask the questions and measure the drift; return the rows of both, and what had been spent by then."""
    way, taken = spent.method, spent.taken
    seconds: list[float] = []
    with cpu_seconds(seconds):
        found = ask(adapted, questions, plan.asking)
    answers = [
        Answered(way, taken, question.id, plan.group(question), plan.place(question), **asdict(answer))
        for question, answer in zip(questions, found, strict=True)
    ]
    # The base does not differ from itself.
    drift = [
        Drifted(way, taken, text.id, *divergence(lm, adapted, text.text))
        for text in (plan.unrelated if adapted is not lm else ())
    ]
    return Outcome(answers, drift, [replace(spent, ask_seconds=seconds[0])])
