"""Two more uses of counterfactuals: near misses for SERAC's scope, changed passages for a query encoder."""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import learned_editors
import numpy as np
from retriever_figures import figures, ranks, retrieval
from retriever_worlds import fresh_world
from retrievers import WEIGHTS, searched

import uptake
from uptake.lm.causal import Causal
from uptake.methods.contract.learned import TrainingData
from uptake.methods.gated_memory.trained import Trained
from uptake.retrievers.candidates import Candidates, candidates
from uptake.retrievers.training import Tuning, train
from uptake.tasks.counterfactuals import counterfactuals, other_subjects
from uptake.tasks.edits import Edit
from uptake.tasks.near_misses import near_misses
from uptake.text.encoders import make_encoder
from uptake.text.files import Skipped
from uptake.text.types import Document, Passage, stable_hash

Keep = Callable[[dict[str, Any]], None]
SCOPE_STEPS = 100
RATES = (1e-4, 3e-4, 1e-3)


def scope(given: argparse.Namespace, keep: Keep) -> None:
    """Train SERAC's scope with neighbours alone and with near misses beside, at equal steps; judge both."""
    arguments = ["serac", "--model", given.model, "--steps", str(SCOPE_STEPS), "--work", str(given.work)]
    arguments += ["--shared", given.shared, "--train", "2000", "--valid", "48", "--test", "100"]
    args = learned_editors.parsed(arguments)
    args.learning_rate, args.save_every = learned_editors.RATES["serac"], 25
    parts = learned_editors.parts_of(Path(args.shared), args.train, args.valid, args.test)
    model = uptake.load(given.model)
    assert isinstance(model, Causal)
    skipped = Skipped()
    missed = {name: near_misses(some, 2, given.seed, skipped) for name, some in parts.items()}
    arms = {"neighbours": parts, "near misses beside": missed}
    learner = Trained()
    found: dict[str, Any] = {
        "model": given.model.rstrip("/").rpartition("/")[2],
        "edits": {name: len(some) for name, some in parts.items()},
        "without near misses": skipped.counts,
        "arms": {},
    }
    for name, material in arms.items():
        args.name = f"scope-{name.replace(' ', '-')}"
        network, told = learned_editors.trained(
            learner, model, args, lambda part, material=material: TrainingData((), edits=material[part])
        )
        trained = learner.with_network(network)
        test = parts["test"]
        probed = [
            replace(new, neighbours=new.neighbours[len(old.neighbours) :])
            for old, new in zip(test, missed["test"], strict=True)
        ]
        found["arms"][name] = {
            "training": told,
            "on neighbours": learned_editors.judged(trained, model, test)
            | learned_editors.through(trained, model, test),
            "on near misses": learned_editors.judged(trained, model, probed)
            | {"opens": opened(trained, model, probed)},
        }
        print(f"{name}: {found['arms'][name]}", flush=True)
        keep(found)


def opened(scope_: Trained, model: Causal, edits: Sequence[Edit]) -> dict[str, Any]:
    """Return the share of near misses that a memory of all edits lets through to any."""
    memory = scope_.memory([edit.passage() for edit in edits], model)
    marks = [[bool(memory.find(probe.prompt, 1)) for probe in edit.neighbours] for edit in edits]
    return learned_editors.share(marks)


@dataclass(frozen=True)
class Added:
    """Candidates with one more passage each, which is wrong."""

    pool: list[Candidates]
    changed: int


def retriever(given: argparse.Namespace, keep: Keep) -> None:
    """Tune a query encoder with and without changed passages among its candidates; recall on fresh facts."""
    given.part = "fresh"
    for name, value in {
        "pool": 1600, "valid": 300, "test": 500, "device": "cpu",
    }.items():  # fmt: skip
        setattr(given, name, value)
    begun = time.process_time()
    world = fresh_world(given)
    ids = sorted(key for some in world.store.passages_of(world.documents).values() for key in some)
    test, valid = searched(world, world.test, ids), searched(world, world.valid, ids)
    weight = max(WEIGHTS, key=lambda w: float((1 / ranks(valid.by(None, w, True), valid.gold)).mean()))
    pool = candidates(world.store, world.train, 8, with_right=True)
    judged = candidates(world.store, world.valid, 8, with_right=True)
    documents = [d for part in ("train", "valid", "test") for d in facts_passages(given, part)]
    every = [*world.train, *world.valid, *world.test]
    values = {one.true.id: one.document for one in counterfactuals(every, documents, given.seed)}
    subjects = other_subjects(every, documents, given.seed)
    embedder = make_encoder(given.encoder, given.device, "float32")
    arms = {
        "as it is": Added(pool, 0),
        "another value": with_passages(embedder, pool, values),
        "another subject": with_passages(embedder, pool, subjects),
    }
    systems: dict[str, list[np.ndarray]] = {
        "MiniLM": [test.by(None, 20.0, False)],
        "BM25 + MiniLM": [test.by(None, weight, True)],
    }
    told: dict[str, Any] = {}
    encoder = world.store.view.encoder_fingerprint
    for name, added in arms.items():
        for words in (False, True):
            tuning = Tuning("contrastive", passes=20, vector_weight=weight if words else 20.0, words=words)
            asked, held = [one.asked() for one in added.pool], [one.asked() for one in judged]
            tried = {}
            for rate in RATES:
                made = train(asked, encoder, replace(tuning, learning_rate=rate), held).encoder
                places = ranks(valid.by(made, tuning.vector_weight, words), valid.gold)
                tried[rate] = float((1 / places).mean())
            rate = max(tried, key=lambda one: tried[one])
            title = f"{name}{' + BM25' if words else ''}"
            told[title] = {
                "learning_rate": rate,
                "valid_mrr": round(tried[rate], 4),
                "changed": added.changed,
            }
            encoders = [
                train(asked, encoder, replace(tuning, learning_rate=rate, seed=seed), held).encoder
                for seed in range(3)
            ]
            systems[title] = [test.by(one, tuning.vector_weight, words) for one in encoders]
            print(f"{title}: {told[title]}", flush=True)
    pairs = [
        (f"{name}{end}", f"as it is{end}")
        for name in ("another value", "another subject")
        for end in ("", " + BM25")
    ]
    pairs += [(f"as it is{end}", base) for end, base in (("", "MiniLM"), (" + BM25", "BM25 + MiniLM"))]
    measured = {name: [retrieval(ranks(one, test.gold)) for one in some] for name, some in systems.items()}
    keep(
        {
            "passages": len(ids),
            "questions": {"train": len(pool), "valid": len(judged), "test": len(world.test)},
            "weight": weight,
            "tuned": told,
            "retrieval": figures(measured, [one.document for one in world.test], pairs),
            "cpu_seconds": round(time.process_time() - begun, 1),
        }
    )


def facts_passages(given: argparse.Namespace, part: str) -> list[Document]:
    return list(uptake.read(given.fresh / "facts" / part / "passages.jsonl"))


def with_passages(encoder: Any, pool: Sequence[Candidates], passages: dict[str, Document]) -> Added:
    """Return candidates, each with its question's changed passage behind the found ones, if there is one."""
    places = [place for place, one in enumerate(pool) if one.question.id in passages]
    texts = [passages[pool[place].question.id] for place in places]
    vectors = encoder.embed([one.text for one in texts])
    made = list(pool)
    for place, document, vector in zip(places, texts, vectors, strict=True):
        one = pool[place]
        passage = Passage(stable_hash(document.id), document.text, document=document.id)
        # Words tell nothing of it beside its twin: it scores what the right passage does.
        right = float(one.words[one.gold].max()) if one.gold.any() else 0.0
        made[place] = replace(
            one,
            passages=(*one.passages, passage),
            words=np.append(one.words, right).astype(one.words.dtype),
            vectors=np.concatenate([one.vectors, vector[None]]),
        )
    return Added(made, len(places))
