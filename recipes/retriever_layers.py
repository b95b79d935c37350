"""Upper layers of a store's encoder, trained on the query side or both, against a matrix and the untrained.

Definitions of packages in one store, questions split by file (docs/fresh.md), as in recipes/retrievers.py.
Arms differ in what trains, in whether the index is refreshed meanwhile, and in whether more passages are
retrieved than are compared, to be scored again by the encoder as it is. Each is measured alone and beside
BM25. The figures are written anew after every arm.

    python recipes/retriever_layers.py --encoder MINILM --fresh build/fresh --out layers.json
    python recipes/retriever_layers.py --encoder MINILM --fresh build/fresh --out layers_emdr2.json \\
           --loss emdr2 --model READER --template '{passage}\\n\\nQuestion: {question}\\nAnswer:'

The store, the reader's table and the vectors that each training ends at are kept in --work: the same command
goes on.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from retriever_figures import figures, ranks, retrieval
from retriever_worlds import World, fresh_world
from retrievers import WEIGHTS, Searched, searched

from uptake.lm.loading import load
from uptake.retrievers.candidates import candidates
from uptake.retrievers.corpus import Corpus
from uptake.retrievers.encoder_steps import EncoderTuning
from uptake.retrievers.encoder_training import train as train_layers
from uptake.retrievers.table import ReaderTable
from uptake.retrievers.training import Tuning, train
from uptake.retrievers.upper_layers import UpperLayers
from uptake.tasks.questions import Question
from uptake.text.encoders import SentenceEncoder
from uptake.text.types import stable_hash

MATRIX = "query matrix"
MATRIX_RATES = (3e-4, 1e-3, 3e-3)
RATES = (1e-4, 3e-4, 1e-3)
# What differs between the arms; the rate is chosen for each kind of side.
ARMS: dict[str, dict[str, Any]] = {
    "layers, query side": {"sides": "query", "over": 3, "refresh": "r"},
    "layers, both sides": {"sides": "both", "over": 1, "refresh": ""},
    "layers, both, refreshed": {"sides": "both", "over": 1, "refresh": "r"},
    "layers, both, refreshed, re-ranked": {"sides": "both", "over": 3, "refresh": "r"},
}
# The whole of both sides first: it chooses their rate.
ORDER = [
    MATRIX,
    "layers, query side",
    "layers, both, refreshed, re-ranked",
    "layers, both sides",
    "layers, both, refreshed",
]


@dataclass
class Made:
    """Vectors of the validation and test questions, and of all passages, where a training ended."""

    valid: np.ndarray
    test: np.ndarray
    passages: np.ndarray


@dataclass
class Bench:
    """What all trainings share, and how each is done."""

    given: argparse.Namespace
    world: World
    corpus: Corpus
    stored: np.ndarray
    encoder: UpperLayers
    start: dict[str, Any]
    table: ReaderTable | None
    seconds: dict[str, list[float]]

    def made(self, arm: str, rate: float, seed: int, questions: Sequence[Question]) -> Made:
        """Train an arm, unless that was done before."""
        given = self.given
        what = [given.loss, given.layers, given.candidates, given.passes, given.query_passes]
        what += [given.batch, given.every]
        asked = [question.id for question in questions]
        name = f"{stable_hash(arm, repr([*what, rate, seed, *asked])):016x}"
        path = given.work / f"layers-{name}.npz"
        if not path.exists():
            begun = time.process_time()
            made = (
                self._matrix(rate, seed, questions)
                if arm == MATRIX
                else self._layers(arm, rate, seed, questions)
            )
            spent = round(time.process_time() - begun, 1)
            print(f"{arm}, rate {rate:g}, seed {seed}, {len(questions)} questions: {spent} CPU s", flush=True)
            np.savez(path, valid=made.valid, test=made.test, passages=made.passages, seconds=spent)
        kept = np.load(path)
        self.seconds.setdefault(arm, []).append(float(kept["seconds"]))
        return Made(kept["valid"], kept["test"], kept["passages"])

    def _matrix(self, rate: float, seed: int, questions: Sequence[Question]) -> Made:
        store, marked = self.world.store, self.given.loss == "contrastive"
        parts = []
        for some in (questions, self.world.valid):
            found = candidates(store, some, self.given.candidates, with_right=marked)
            if self.table:
                self.table.fill([entry for one in found for entry in one.entries()])
            parts.append([one.asked(self.table) for one in found])
        tuning = Tuning(self.given.loss, learning_rate=rate, passes=20, seed=seed)
        own = train(parts[0], store.view.encoder_fingerprint, tuning, parts[1]).encoder
        dense = store.searched("dense")
        asked = (self.world.valid, self.world.test)
        valid, test = (own.turned(dense.query_vectors([q.text for q in some])) for some in asked)
        return Made(valid, test, self.stored)

    def _layers(self, arm: str, rate: float, seed: int, questions: Sequence[Question]) -> Made:
        given, how = self.given, ARMS[arm]
        tuning = EncoderTuning(
            given.loss,
            learning_rate=rate,
            passes=given.query_passes if how["sides"] == "query" else given.passes,
            batch=given.batch,
            layers=given.layers,
            candidates=given.candidates,
            seed=seed,
            sides=how["sides"],
            over=how["over"],
            refresh=str(given.every) if how["refresh"] else "",
        )
        self.encoder.put(self.start)
        self.corpus.vectors = self.stored
        train_layers(self.encoder, self.corpus, questions, tuning, self.world.valid, self.table)
        valid, test = (
            self.encoder.embed([q.text for q in some]) for some in (self.world.valid, self.world.test)
        )
        both = how["sides"] == "both"
        return Made(valid, test, self.encoder.embed(self.corpus.texts) if both else self.stored)


def scores(
    seen: Searched, vectors: np.ndarray, passages: np.ndarray, weight: float, words: bool
) -> np.ndarray:
    """Return [questions, passages] of the vectors' score, with the words' or not."""
    found = weight * (vectors @ passages.T)
    return found + seen.words if words else found


def mrr(found: np.ndarray, gold: Sequence[int]) -> float:
    return float((1 / ranks(found, gold)).mean())


def cost(own: SentenceEncoder, encoder: UpperLayers, texts: Sequence[str]) -> dict[str, float]:
    """Return CPU milliseconds a text: read whole, by the upper layers alone once kept, and of a gradient."""
    encoder.embed(texts)
    of_vectors = torch.ones(len(texts), own.dimensions)
    ways: dict[str, Callable[[], object]] = {
        "whole": lambda: own.embed(texts),
        "kept": lambda: encoder.embed(texts),
        "gradient": lambda: encoder.gradients(texts, of_vectors),
    }
    found = {"tokens_a_text": round(sum(map(len, own.tokens(texts))) / len(texts), 1)}
    for name, once in ways.items():
        begun = time.process_time()
        once()
        found[name] = round(1000 * (time.process_time() - begun) / len(texts), 1)
    return found


def run(given: argparse.Namespace) -> None:
    """Train every arm in every order, and write what each finds."""
    begun = time.process_time()
    world = fresh_world(given)
    corpus = Corpus(world.store)
    test, valid = (searched(world, some, corpus.ids) for some in (world.test, world.valid))
    own = world.store.encoder
    assert isinstance(own, SentenceEncoder)
    encoder = UpperLayers(own.in_float32(), given.layers)
    spent = cost(own, encoder, corpus.texts[:64])
    print(f"cost: {spent}", flush=True)
    table = None
    if given.loss != "contrastive":
        lm = load(given.model, given.device, given.dtype)
        table = ReaderTable(lm, world.prompt, given.work / "layers.table")
    bench = Bench(given, world, corpus, corpus.vectors, encoder, encoder.state(), table, {})
    orders = [np.random.default_rng(seed).permutation(len(world.train)) for seed in range(given.seeds)]
    drawn = [[world.train[n] for n in order[: given.train]] for order in orders]

    def best_weight(made: Made) -> float:
        return max(WEIGHTS, key=lambda w: mrr(scores(valid, made.valid, made.passages, w, True), valid.gold))

    still = Made(valid.vectors, test.vectors, corpus.vectors)
    systems: dict[str, list[np.ndarray]] = {"BM25": [test.words]}
    tuned: dict[str, Any] = {}

    def add(name: str, some: Sequence[Made]) -> None:
        weight = best_weight(some[0])
        tuned.setdefault(name, {})["weight"] = weight
        systems[name] = [scores(test, one.test, one.passages, 1.0, False) for one in some]
        systems[f"{name} + BM25"] = [scores(test, one.test, one.passages, weight, True) for one in some]

    add("MiniLM", [still])
    chosen: dict[str, float] = {}
    for arm in given.arms:
        kind = MATRIX if arm == MATRIX else ARMS[arm]["sides"]
        if kind not in chosen:  # on validation questions, of the first order, by the first arm of its kind
            tried = {}
            for rate in MATRIX_RATES if arm == MATRIX else RATES:
                one = bench.made(arm, rate, 0, drawn[0])
                tried[rate] = mrr(scores(valid, one.valid, one.passages, 1.0, False), valid.gold)
            chosen[kind] = max(tried, key=lambda rate: tried[rate])
            tuned[arm] = {"valid_mrr": {f"{rate:g}": round(value, 4) for rate, value in tried.items()}}
        tuned.setdefault(arm, {})["learning_rate"] = chosen[kind]
        add(arm, [bench.made(arm, chosen[kind], seed, some) for seed, some in enumerate(drawn)])
        found = told(bench, systems, tuned, test.gold, len(drawn[0]))
        found["cpu_milliseconds_a_text"] = spent
        found["cpu_seconds_of_this_call"] = round(time.process_time() - begun)
        given.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{arm}: written to {given.out}\n{as_lines(found)}", flush=True)


def told(
    bench: Bench, systems: dict[str, list[np.ndarray]], tuned: dict[str, Any], gold: Sequence[int], train: int
) -> dict[str, Any]:
    """Return the figures of the systems there are."""
    given, test = bench.given, bench.world.test
    places = {name: [ranks(one, gold) for one in some] for name, some in systems.items()}
    measured = {name: [retrieval(one) for one in some] for name, some in places.items()}
    arms = [*given.arms]
    pairs = [(arm, "MiniLM") for arm in arms]
    pairs += [(one, other) for other, one in combinations([MATRIX, *ARMS], 2)]
    pairs += [(f"{one} + BM25", f"{other} + BM25") for one, other in pairs]
    pairs += [(f"{arm} + BM25", "BM25") for arm in ("MiniLM", *arms)]
    return {
        "loss": given.loss,
        "layers": given.layers,
        "passages": len(bench.corpus.ids),
        "questions": {"train": train, "valid": len(bench.world.valid), "test": len(test)},
        "steps": -(-train // given.batch) * given.passes,
        "refreshed_every": given.every,
        "candidates": given.candidates,
        "tuned": tuned,
        "retrieval": figures(measured, [question.document for question in test], pairs),
        "cpu_seconds": bench.seconds,
        **({"reader_pairs": bench.table.count} if bench.table else {}),
    }


def as_lines(found: dict[str, Any]) -> str:
    """Return what is written as lines of Markdown: a system a line, then a difference a line."""

    def of(one: dict[str, Any]) -> str:
        low, high = one["ci"]
        return f"{one['mean']:.3f} [{low:.3f}, {high:.3f}]"

    lines = []
    for name, part in (("systems", "recall at 1, at 5, MRR"), ("differences", "recall at 1, MRR")):
        lines.append(f"{name}: {part}")
        keys = ("recall@1", "recall@5", "mrr") if name == "systems" else ("recall@1", "mrr")
        for system, measured in found["retrieval"][name].items():
            lines.append(f"| {system} | {' | '.join(of(measured[key]) for key in keys)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the arguments, train, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", required=True, help="MiniLM's folder")
    parser.add_argument("--fresh", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/retrievers"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--loss", default="contrastive")
    parser.add_argument("--model", default="", help="the reader, for losses that learn from one")
    parser.add_argument("--template", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of the reader")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--arms", nargs="+", choices=ORDER, default=ORDER)
    parser.add_argument("--pool", type=int, default=1600, help="training questions to draw from")
    parser.add_argument("--train", type=int, default=128, help="of these, how many an order has")
    parser.add_argument("--valid", type=int, default=60)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--passages", type=int, default=1 << 40, help="at most so many, for a trial")
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--query-passes", type=int, default=8, help="on the query side, where one is cheap")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--every", type=int, default=6, help="steps between refreshes")
    parser.add_argument("--seeds", type=int, default=3, help="orders")
    given = parser.parse_args(arguments)
    given.part = "fresh"
    given.work.mkdir(parents=True, exist_ok=True)
    run(given)


if __name__ == "__main__":
    main()
