"""Mixtures of the best few passages against the best one alone, where that is the right one and where not."""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from retriever_asking import Answers
from retriever_figures import figures, marks
from retriever_worlds import World

from uptake.retrievers.reader import Said
from uptake.retrievers.table import Entry, ReaderTable
from uptake.tasks.questions import Question
from uptake.text.types import Passage

MARGINALS = ("sequence", "token")
PRIORS = (1.0, 2.0, 4.0, 8.0, 16.0)  # temperatures of a mixture's prior, chosen on validation questions
TOGETHER = 16  # questions asked in every way in turn: what was read of their passages is still there

Scores = np.ndarray  # [questions, passages of the whole store]


@dataclass(frozen=True)
class Mix:
    """The passages that a mixture reads for each question, their scores, and the prior's temperature."""

    read: list[list[Passage]]
    scores: list[torch.Tensor]
    temperature: float

    @property
    def priors(self) -> list[torch.Tensor]:
        return [each / self.temperature for each in self.scores]

    def entries(self, questions: Sequence[Question], places: Iterable[int]) -> list[Entry]:
        """Return the right answers after each passage, of the questions at these places."""
        return [
            Entry(questions[place].text, passage.text, questions[place].answers[0])
            for place in places
            for passage in self.read[place]
        ]


def ask_together(
    world: World,
    answers: Answers,
    table: ReaderTable,
    mix: Mix,
    right: Sequence[Passage],
    given: argparse.Namespace,
    note: Callable[[str], None],
) -> None:
    """Ask a few questions at a time in every way, those on one document in a row: each passage is read once.

    What is said is kept, so that who asks again in whatever order has the answer at once.
    """
    order = sorted(range(len(mix.read)), key=lambda place: (mix.read[place][0].document, place))
    for start in range(0, len(order), TOGETHER):
        places = order[start : start + TOGETHER]
        few = [mix.read[place] for place in places]
        priors = [mix.priors[place] for place in places]
        for marginal in MARGINALS:
            answers.say(few, priors, marginal, given.rows, places)
        for one in ([some[:1] for some in few], [[right[place]] for place in places]):
            answers.say(one, [torch.zeros(1)] * len(places), "one", given.rows, places)
        table.fill(mix.entries(world.test, places), given.batch_tokens)
        note(f"mixtures answered {start + len(places)} of {len(order)}")


def prior_temperature(scores: Scores, gold: Sequence[int], read: int = 5) -> float:
    """Return what makes the right passage likeliest among the `read` best, where it is one of them."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :read]
    found = [
        (row[some], int(np.flatnonzero(some == right)[0]))
        for row, some, right in zip(scores, order, gold, strict=True)
        if right in some
    ]

    def likely(temperature: float) -> float:
        return sum(float(torch.tensor(row / temperature).log_softmax(0)[place]) for row, place in found)

    return max(PRIORS, key=likely)


def mixed(
    world: World,
    answers: Answers,
    table: ReaderTable,
    systems: dict[str, list[Scores]],
    temperatures: dict[str, float],
    singles: dict[str, list[dict[str, np.ndarray]]],
    best: Callable[[Scores, int], tuple[list[list[Passage]], list[torch.Tensor]]],
    by_id: dict[int, Passage],
    ids: Sequence[int],
    gold: Sequence[int],
    groups: Sequence[str],
    given: argparse.Namespace,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Let mixtures of the best few passages answer the first questions, against the best passage alone.

    Apart: the questions whose best passage is the right one, and those whose is not.
    """
    begun = time.process_time()
    some = world.test[: given.mixed]
    told: dict[str, Any] = {}
    for name in given.mixtures:
        mix = Mix(*best(systems[name][0][: len(some)], given.read), temperatures[name])
        table.fill(mix.entries(some, range(len(some))), given.batch_tokens)
        measured = {
            one: {key: value[: len(some)] for key, value in singles[one][0].items()}
            for one in (name, "right passage")
        }
        rests: dict[str, float] = {}
        for marginal in MARGINALS:
            said = answers.say(mix.read, mix.priors, marginal, given.rows)
            measured[f"RAG-{marginal}"] = marks([each.text for each in said], some)
            right_first = [
                holds_right(one, passages, by_id[ids[place]])
                for one, passages, place in zip(said, mix.read, gold, strict=False)
            ]
            rests[f"RAG-{marginal}"] = round(float(np.mean(right_first)), 4)
        for one, values in mixed_nats(table, mix, some).items():
            measured[one or name]["nats"] = values
        pairs = [(f"RAG-{marginal}", name) for marginal in MARGINALS] + [("right passage", name)]
        first = np.array([few[0].id == ids[place] for few, place in zip(mix.read, gold, strict=False)])
        told[name] = {
            "prior_temperature": mix.temperature,
            "rests_on_the_right_passage": rests,
            "all": {"questions": len(some), **of_these(measured, np.arange(len(some)), groups, pairs)},
        }
        for part, chosen in (("best_passage_wrong", ~first), ("best_passage_right", first)):
            places = np.flatnonzero(chosen)
            told[name][part] = {"questions": len(places), **of_these(measured, places, groups, pairs)}
        note(f"mixed after {name}")
    return {
        "passages": given.read,
        "questions": len(some),
        "after": told,
        "cpu_seconds": round(time.process_time() - begun, 1),
    }


def mixed_nats(table: ReaderTable, mix: Mix, questions: Sequence[Question]) -> dict[str, np.ndarray]:
    """Return the nats of each right answer after the best passage, "", and of both mixtures."""
    found: dict[str, list[float]] = {"": [], "RAG-sequence": [], "RAG-token": []}
    for q, few, prior in zip(questions, mix.read, mix.priors, strict=True):
        tokens = torch.from_numpy(table.tokens(q.text, [p.text for p in few], q.answers[0]))
        weights = prior.double().log_softmax(0)
        found[""].append(-float(tokens[0].sum()))
        found["RAG-sequence"].append(-float((weights + tokens.sum(1)).logsumexp(0)))
        found["RAG-token"].append(-float((weights[:, None] + tokens).logsumexp(0).sum()))
    return {name: np.array(values) for name, values in found.items()}


def of_these(
    measured: dict[str, dict[str, np.ndarray]],
    places: np.ndarray,
    groups: Sequence[str],
    pairs: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Return the figures of some questions alone."""
    chosen = {name: [{key: value[places] for key, value in one.items()}] for name, one in measured.items()}
    return figures(chosen, [groups[place] for place in places], pairs)


def holds_right(said: Said, read: Sequence[Passage], right: Passage) -> bool:
    """Whether the passage that an answer rests on, the one of the largest weight, is the right one."""
    return read[int(np.argmax(said.weights))].id == right.id
