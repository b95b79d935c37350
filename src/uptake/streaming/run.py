"""Run a stream: every way takes the documents up in order, and is asked at its checkpoints.

A document that cannot be taken up (a loss that is no number, above all) is passed over: the state
before it is kept and the results name it. What is done is kept as it is done, so a run goes on.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from uptake.errors import BadInput, Mismatch
from uptake.lm import LM
from uptake.method import Context, Evidence, State, Way, cpu_seconds
from uptake.streaming.plan import StreamPlan
from uptake.streaming.results import Answered, Drifted, Spent, Stopped
from uptake.tasks.asking import ask, divergence
from uptake.tasks.questions import Question
from uptake.text import Document, Found, Passage, passage_id, stable_hash

BASE = "base"
Progress = Callable[[int, int, str], None]


@dataclass
class Outcome:
    """Rows of a run so far."""

    answers: list[Answered] = field(default_factory=list)
    drift: list[Drifted] = field(default_factory=list)
    costs: list[Spent] = field(default_factory=list)
    stopped: list[Stopped] = field(default_factory=list)


def run(
    lm: LM,
    plan: StreamPlan,
    progress: Progress = lambda done, total, name: None,
) -> Outcome:
    """Let every way of the plan take the stream up, one way after another, and ask it.

    The base is asked first, every question once.
    """
    outcome = Outcome()
    reading = {name: way for name, way in plan.ways.items() if way.method.reads}
    total = len(plan.documents) * len(reading)
    progress(0, total, "")
    asked_ever = {question.id for taken in plan.checkpoints for question in plan.asked(taken)}
    _ask(outcome, lm, plan, BASE, lm, Spent(BASE, 0), [q for q in plan.questions if q.id in asked_ever])
    for number, (name, way) in enumerate(reading.items()):
        before = number * len(plan.documents)
        for taken, document in _follow(outcome, lm, plan, name, way):
            progress(before + taken, total, f"{name} {document.id}")
    return outcome


def _follow(
    outcome: Outcome, lm: LM, plan: StreamPlan, name: str, way: Way
) -> Iterator[tuple[int, Document]]:
    """Let one way take the documents up, yielding each once it is done."""
    state, spent = way.method.init(lm), Spent(name, 0)
    for place, document in enumerate(plan.documents, 1):
        state, spent, failed = take(state, lm, way, plan, document, spent)
        if failed:
            outcome.stopped.append(Stopped(name, document.id, place, failed))
        spent = replace(spent, taken=place)
        if place in plan.checkpoints:
            adapted = way.method.on([state], lm)
            _ask(outcome, lm, plan, name, adapted, spent, plan.asked(place))
        yield place, document


def take(
    state: State, lm: LM, way: Way, plan: StreamPlan, document: Document, spent: Spent
) -> tuple[State, Spent, str]:
    """Return the state after one document, what is spent by then, and why it was passed over, if it was."""
    # Seeded by the document, so that what is random differs from one to the next.
    context = Context(stable_hash(str(plan.seed), "stream", document.id), plan.budget)
    passages = tuple(plan.chunking.passages(document)) if plan.chunking else (_whole(document),)
    none = (0.0,) * len(passages)
    evidence = Evidence(Found(passages, none, none))
    seconds: list[float] = []
    failed = ""
    with cpu_seconds(seconds):
        try:
            (after,) = way.method.take([state], lm, [evidence], context)
            failed = context.ledger(0).stopped
            if not failed and not finite(after):
                failed, after = "the state became infinite or no number", state
        except (BadInput, Mismatch):
            raise
        except Exception as error:  # whatever a network can raise is one document passed over, and named
            failed, after = f"{type(error).__name__}: {error}".splitlines()[0][:300], state
    ledger = context.ledger(0)
    spent = replace(
        spent,
        tokens_trained=spent.tokens_trained + ledger.tokens_trained,
        tokens_read=spent.tokens_read + ledger.tokens_read,
        steps=spent.steps + ledger.steps,
        take_seconds=spent.take_seconds + seconds[0],
    )
    return after, spent, failed


def _whole(document: Document) -> Passage:
    key = passage_id(document.id, 0, document.text)
    return Passage(key, document.text, "", document.id, document.group, 0, document.meta)


def finite(state: Any) -> bool:
    """Whether every number of a state is one; its history holds none."""
    if isinstance(state, Tensor):
        # One number, and infinite or none as soon as any part is; half the time of looking at each.
        return not state.is_floating_point() or bool(torch.isfinite(state.sum(dtype=torch.float64)))
    if dataclasses.is_dataclass(state):
        parts = (getattr(state, part.name) for part in dataclasses.fields(state) if part.name != "history")
        return all(map(finite, parts))
    if isinstance(state, Mapping):
        return all(map(finite, state.values()))
    return all(map(finite, state)) if isinstance(state, tuple | list) else True


def _ask(
    outcome: Outcome,
    lm: LM,
    plan: StreamPlan,
    name: str,
    adapted: LM,
    spent: Spent,
    questions: Sequence[Question],
) -> None:
    """Ask the questions and measure the drift; add both, and what has been spent, to the outcome."""
    seconds: list[float] = []
    with cpu_seconds(seconds):
        found = ask(adapted, questions, plan.asking)
    for question, answer in zip(questions, found, strict=True):
        outcome.answers.append(
            Answered(
                name,
                spent.taken,
                question.id,
                plan.group(question),
                plan.place(question),
                answer.nats,
                answer.tokens,
                answer.said,
                answer.f1,
                answer.exact,
            )
        )
    if name != BASE:
        for text in plan.unrelated:
            nats, tokens = divergence(lm, adapted, text.text)
            outcome.drift.append(Drifted(name, spent.taken, text.id, nats, tokens))
    outcome.costs.append(replace(spent, ask_seconds=seconds[0]))
