"""What a reader answers after what each retriever finds: the best passage alone, mixtures of the best few."""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from retriever_asking import Answers
from retriever_figures import figures, interval, marks
from retriever_mixtures import Mix, ask_together, mixed, prior_temperature
from retriever_worlds import World

from uptake.lm.base import LM
from uptake.retrievers.reader import Said
from uptake.retrievers.table import Entry, ReaderTable
from uptake.tasks.questions import Question
from uptake.text.types import Passage

Scores = np.ndarray  # [questions, passages of the whole store]


def answered(
    world: World,
    lm: LM,
    systems: dict[str, list[Scores]],
    of_valid: dict[str, tuple[Scores, list[int]]],
    by_id: dict[int, Passage],
    ids: Sequence[int],
    gold: Sequence[int],
    hard: np.ndarray,
    groups: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    given: argparse.Namespace,
    note: Callable[[str], None],
    keep: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Let the reader answer after what each system finds: the best passage, and mixtures of the best few.

    `keep` takes what is known so far, for a run that ends early.
    """
    answers = Answers(lm, world, given.work / f"{given.part}.answers")
    one, count = torch.zeros(1), len(world.test)

    def best(scores: Scores, k: int) -> tuple[list[list[Passage]], list[torch.Tensor]]:
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        read = [[by_id[ids[place]] for place in row] for row in order]
        return read, [torch.tensor(row[some]) for row, some in zip(scores, order, strict=True)]

    def single(read: list[list[Passage]]) -> list[Said]:
        return answers.say(read, [one] * count, "one", given.rows)

    begun = time.process_time()
    table = ReaderTable(lm, world.prompt, given.work / f"{given.part}.test-table")
    table.reader = answers.reader
    temperatures = {name: prior_temperature(*of_valid[name], given.read) for name in given.mixtures}
    for name in given.mixtures:
        mix = Mix(*best(systems[name][0][: given.mixed], given.read), temperatures[name])
        right = [by_id[ids[place]] for place in gold[: given.mixed]]
        ask_together(world, answers, table, mix, right, given, note)
    asking = time.process_time() - begun
    said = {"right passage": [single([[by_id[ids[place]]] for place in gold])]}
    if given.only_mixtures:
        systems = {name: [systems[name][0]] for name in given.mixtures}
    else:
        said["closed book"] = [single([[] for _ in world.test])]
    for name in sorted(systems, key=lambda name: name == "random"):
        said[name] = [single(best(scores, 1)[0]) for scores in systems[name]]
        note(f"answered after {name}")
    measured = {
        name: [marks([each.text for each in some], world.test) for some in seeds]
        for name, seeds in said.items()
    }
    nats = {
        name: [likely(table, world.test, best(scores, 1)[0], given.batch_tokens) for scores in seeds]
        for name, seeds in {**systems, "right passage": [right_scores(gold, len(ids))]}.items()
    }
    note("likelihoods of the right answers")
    found = {
        **marked(measured, hard, groups, [*pairs, *((name, "random") for name in ("closed book", "BM25"))]),
        "nats_of_the_right_answer": marked(nats, hard, groups, pairs),
        "cpu_seconds": round(time.process_time() - begun, 1),
        "examples": [
            {
                "question": q.text,
                "right": list(q.answers),
                **{name: some[0][row].text for name, some in said.items()},
            }
            for row, q in enumerate(world.test[:8])
        ],
    }
    keep(found)
    found["mixtures"] = mixed(
        world, answers, table, systems, temperatures, measured, best, by_id, ids, gold, groups, given, note
    )
    found["mixtures"]["cpu_seconds_a_question"] = round(asking / max(1, given.mixed * len(given.mixtures)), 2)
    return found


def compared(
    world: World,
    lm: LM,
    systems: dict[str, list[Scores]],
    by_id: dict[int, Passage],
    ids: Sequence[int],
    groups: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    given: argparse.Namespace,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Return how answers differ between two systems over all test questions, at the cost of a few.

    Where both find the same passage they say the same: only other questions are asked. Seeds are averaged.
    """
    answers = Answers(lm, world, given.work / f"{given.part}.answers")
    table = ReaderTable(lm, world.prompt, given.work / f"{given.part}.test-table")
    table.reader = answers.reader
    begun = time.process_time()
    told: dict[str, Any] = {}
    for one, other in ((a, b) for a, b in pairs if a in systems and b in systems):
        firsts = [[scores.argmax(1) for scores in systems[name]] for name in (one, other)]
        sums: dict[str, np.ndarray] = {}
        asked = 0
        for mine in firsts[0]:
            for others in firsts[1]:
                places = np.flatnonzero(mine != others).tolist()
                asked += len(places)
                values: list[dict[str, np.ndarray]] = []
                for found in (mine, others):
                    read = [[by_id[ids[found[place]]]] for place in places]
                    priors = [torch.zeros(1)] * len(places)
                    said = answers.say(read, priors, "one", given.rows, places)
                    some = [world.test[place] for place in places]
                    values.append(
                        {
                            **marks([each.text for each in said], some),
                            **likely(table, some, read, given.batch_tokens),
                        }
                    )
                for key in values[0]:
                    whole = sums.setdefault(key, np.zeros(len(world.test)))
                    whole[places] += values[0][key] - values[1][key]
        runs = len(firsts[0]) * len(firsts[1])
        told[f"{one} - {other}"] = {
            "questions": len(world.test),
            "differ": round(asked / runs, 1),
            **{key: interval(whole / runs, groups) for key, whole in sums.items()},
        }
        note(f"{one} - {other}: {told[f'{one} - {other}']}")
    return {"differences": told, "cpu_seconds": round(time.process_time() - begun, 1)}


def right_scores(gold: Sequence[int], passages: int) -> Scores:
    """Return the scores of who always finds the right passage."""
    scores = np.zeros((len(gold), passages))
    scores[np.arange(len(gold)), list(gold)] = 1.0
    return scores


def likely(
    table: ReaderTable,
    questions: Sequence[Question],
    read: Sequence[Sequence[Passage]],
    batch_tokens: int | None,
) -> dict[str, np.ndarray]:
    """Return the nats of each question's right answer after its one passage."""
    asked = [(q.text, some[0].text, q.answers[0]) for q, some in zip(questions, read, strict=True)]
    table.fill([Entry(*one) for one in asked], batch_tokens)
    return {"nats": np.array([-table.tokens(q, [text], answer).sum() for q, text, answer in asked])}


def marked(
    measured: dict[str, list[dict[str, np.ndarray]]],
    hard: np.ndarray,
    groups: Sequence[str],
    pairs: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Return the figures of answers, those of the hard half apart."""
    apart = {
        name: [{key: value[hard] for key, value in each.items()} for each in some]
        for name, some in measured.items()
    }
    return {
        **figures(measured, groups, pairs),
        "where_bm25_misses": {
            "questions": len(hard),
            **figures(apart, [groups[place] for place in hard], pairs),
        },
    }
