"""What a reader answers after what each retriever finds: the best passage alone, mixtures of the best few."""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from retriever_figures import figures, interval, marks
from retriever_worlds import World

from uptake.evaluation.records import RecordFile
from uptake.lm.base import LM
from uptake.retrievers.reader import Reader, Said
from uptake.retrievers.table import Entry, ReaderTable
from uptake.tasks.questions import Question
from uptake.text.types import Passage, stable_hash

READ = 5  # passages that a mixture reads
PRIORS = (1.0, 2.0, 4.0, 8.0, 16.0)  # temperatures of a mixture's prior, chosen on validation questions
AT_ONCE = 128  # questions whose answers are kept at a time
KEPT = 3 << 29  # bytes of what was read of passages

Scores = np.ndarray  # [questions, passages of the whole store]


class Answers:
    """What the reader says after passages, kept on the disk by question and passages."""

    def __init__(self, lm: LM, world: World, path: Path) -> None:
        self.world = world
        self.reader, self.closed = Reader(lm, world.prompt, most=KEPT), Reader(lm, world.closed)
        self.file = RecordFile(path, f"{lm.fingerprint} {world.prompt}")
        self.known: dict[str, Said] = {}
        for made in self.file.start(dict):
            self.known |= {key: Said(text, tuple(weights)) for key, (text, weights) in made.items()}

    def say(
        self,
        read: Sequence[Sequence[Passage]],
        priors: Sequence[torch.Tensor],
        marginal: str,
        rows: int,
        places: Sequence[int] | None = None,
    ) -> list[Said]:
        """Return what is said after none, one or several passages, mixed.

        To the test questions at `places`, or to the first ones.
        """
        questions = [self.world.test[place] for place in (range(len(read)) if places is None else places)]
        keys = [
            _key(marginal, q.id, passages, prior)
            for q, passages, prior in zip(questions, read, priors, strict=True)
        ]
        todo = [place for place, key in enumerate(keys) if key not in self.known]
        # Like passages side by side: what was read of one serves the next question.
        todo.sort(key=lambda place: [passage.id for passage in read[place]])
        for start in range(0, len(todo), AT_ONCE):
            some = todo[start : start + AT_ONCE]
            texts = [[passage.text for passage in read[place]] or [""] for place in some]
            reader = self.reader if read[some[0]] else self.closed
            asked = [questions[place].text for place in some]
            some_priors = [priors[place] for place in some]
            said = reader.say(asked, texts, some_priors, marginal, self.world.tokens, rows, empty=False)  # type: ignore[arg-type]
            made = {keys[place]: one for place, one in zip(some, said, strict=True)}
            self.file.keep({key: [one.text, list(one.weights)] for key, one in made.items()})
            self.known |= made
        return [self.known[key] for key in keys]


def _key(marginal: str, question: str, passages: Sequence[Passage], prior: torch.Tensor) -> str:
    weighed = repr([round(value, 4) for value in prior.tolist()])
    return f"{stable_hash(marginal, question, weighed, *(passage.text for passage in passages)):016x}"


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
    said = {"right passage": [single([[by_id[ids[place]]] for place in gold])]}
    said["closed book"] = [single([[] for _ in world.test])]
    for name in sorted(systems, key=lambda name: name == "random"):
        said[name] = [single(best(scores, 1)[0]) for scores in systems[name]]
        note(f"answered after {name}")
    measured = {
        name: [marks([each.text for each in some], world.test) for some in seeds]
        for name, seeds in said.items()
    }
    table = ReaderTable(lm, world.prompt, given.work / f"{given.part}.test-table")
    table.reader = answers.reader
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
        world, answers, table, systems, of_valid, measured, best, by_id, ids, gold, hard, groups, given, note
    )
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


def prior_temperature(scores: Scores, gold: Sequence[int]) -> float:
    """Return what makes the right passage likeliest among the best few, where it is one of them."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :READ]
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
    of_valid: dict[str, tuple[Scores, list[int]]],
    singles: dict[str, list[dict[str, np.ndarray]]],
    best: Callable[[Scores, int], tuple[list[list[Passage]], list[torch.Tensor]]],
    by_id: dict[int, Passage],
    ids: Sequence[int],
    gold: Sequence[int],
    hard: np.ndarray,
    groups: Sequence[str],
    given: argparse.Namespace,
    note: Callable[[str], None],
) -> dict[str, Any]:
    """Let mixtures of the best few passages answer the first questions, against the best passage alone."""
    begun = time.process_time()
    some = world.test[: given.mixed]
    hard = hard[hard < len(some)]
    groups = groups[: len(some)]
    measured: dict[str, list[dict[str, np.ndarray]]] = {
        name: [{key: value[: len(some)] for key, value in each.items()} for each in seeds]
        for name, seeds in singles.items()
    }
    nats: dict[str, list[dict[str, np.ndarray]]] = {}
    pairs: list[tuple[str, str]] = []
    rests: dict[str, float] = {}
    chosen: dict[str, float] = {}
    for name in given.mixtures:
        read, scores = best(systems[name][0][: len(some)], READ)
        chosen[name] = prior_temperature(*of_valid[name])
        priors = [each / chosen[name] for each in scores]
        for marginal in ("sequence", "token"):
            title = f"RAG-{marginal}, {name}"
            said = answers.say(read, priors, marginal, given.rows)
            measured[title] = [marks([each.text for each in said], some)]
            pairs.append((title, name))
            right_first = [
                holds_right(one, passages, by_id[ids[gold]])
                for one, passages, gold in zip(said, read, gold, strict=False)
            ]
            rests[title] = round(float(np.mean(right_first)), 4)
        table.fill(
            [
                Entry(q.text, passage.text, q.answers[0])
                for q, few in zip(some, read, strict=True)
                for passage in few
            ],
            given.batch_tokens,
        )
        single, sequence, token = [], [], []
        for q, few, prior in zip(some, read, priors, strict=True):
            tokens = torch.from_numpy(table.tokens(q.text, [p.text for p in few], q.answers[0]))
            weights = prior.double().log_softmax(0)
            single.append(-float(tokens[0].sum()))
            sequence.append(-float((weights + tokens.sum(1)).logsumexp(0)))
            token.append(-float((weights[:, None] + tokens).logsumexp(0).sum()))
        nats[name] = [{"nats": np.array(single)}]
        nats[f"RAG-sequence, {name}"] = [{"nats": np.array(sequence)}]
        nats[f"RAG-token, {name}"] = [{"nats": np.array(token)}]
        note(f"mixed after {name}")
    return {
        "questions": len(some),
        "passages": READ,
        "prior_temperature": chosen,
        **marked(measured, hard, groups, pairs),
        "nats_of_the_right_answer": figures(nats, groups, pairs),
        "rests_on_the_right_passage": rests,
        "cpu_seconds": round(time.process_time() - begun, 1),
    }


def holds_right(said: Said, read: Sequence[Passage], right: Passage) -> bool:
    """Whether the passage that an answer rests on, the one of the largest weight, is the right one."""
    return read[int(np.argmax(said.weights))].id == right.id
