"""Counterfactual documents in a stream that is learnt online: do true answers get likelier or surer?

A made-up world's documents are learnt one after another (`online`), each once, twice, once beside its
counterfactual, or beside as many other true ones; the last three take equal steps, in an order that is the
same for all. Then the questions on these documents are asked, closed book: how likely the true answer is,
and how sure and how right what is said.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from retriever_figures import interval

import uptake
from uptake.errors import BadInput
from uptake.methods.contract.naming import method_specs
from uptake.report.calibrated import metrics
from uptake.report.streamed.rows import Answered
from uptake.tasks.asking import Asking
from uptake.tasks.counterfactuals import counterfactuals
from uptake.text.types import Document, stable_hash

ARMS = ("once", "duplicates", "counterfactual", "more")
PAIRS = (("duplicates", "once"), ("counterfactual", "duplicates"), ("counterfactual", "more"))
SETTINGS = ("trainable=all", "learning_rate=1e-3")  # of SQuAD's streams on base-5m (docs/results.md)


def streams(documents: int, seed: int) -> tuple[dict[str, list[Document]], list[Any], set[str]]:
    """Return each arm's documents in their order, the questions, and the ids of those that were changed.

    Raises BadInput where a document has no counterfactual.
    """
    world = uptake.make_world(documents=2 * documents, updates=0.0, seed=seed)
    first, others = list(world.documents[:documents]), list(world.documents[documents:])
    asked = [one for one in world.questions if one.document in {each.id for each in first}]
    # One fact of each document is changed: the other one shows what that does to what stays true.
    made = {
        one.true.document: one for one in reversed(counterfactuals(world.questions, world.documents, seed))
    }
    if missing := [each.id for each in first if each.id not in made]:
        raise BadInput(f"{missing[0]}: no other value is known for its facts; use more --documents")
    second = {
        "duplicates": [replace(each, id=f"{each.id}, again") for each in first],
        "counterfactual": [made[each.id].document for each in first],
        "more": others,
    }
    # A document and its second one may come in any order; arms differ in nothing else.
    places = sorted(range(2 * documents), key=lambda at: stable_hash("turn", str(seed), str(at)))
    arranged = {arm: [[*first, *some][at] for at in places] for arm, some in second.items()}
    arranged["once"] = [first[at] for at in places if at < documents]
    return {arm: arranged[arm] for arm in ARMS}, asked, {made[each.id].true.id for each in first}


def stream(given: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> None:
    """Learn each arm's stream, ask at its end, and tell the figures of all seeds together."""
    model = uptake.load(given.model)
    found: dict[str, list[Answered]] = {arm: [] for arm in ("base", *ARMS)}
    changed: set[str] = set()
    told: dict[str, Any] = {"model": given.model.rstrip("/").rpartition("/")[2], "documents": given.documents}
    told |= {"seeds": given.seeds, "settings": list(SETTINGS)}
    begun = time.process_time()
    for seed in given.seeds:
        arms, asked, some = streams(given.documents, seed)
        changed |= {f"{seed} {key}" for key in some}
        for arm, documents in arms.items():
            results = uptake.stream(
                model, documents, asked, method_specs(["base", "online"], SETTINGS), asking=Asking(tokens=8),
                seed=seed, journal=given.work / f"stream-{seed}-{arm}-{given.documents}.json",
            )  # fmt: skip
            rows = [row for row in results.of(Answered) if row.taken in (0, len(documents))]
            for name, method in (("base", "base"), (arm, "online")):
                own = [row for row in rows if row.method == method]
                if name == "base" and arm != ARMS[0]:
                    continue  # asked the same each time
                found[name] += [
                    replace(row, question=f"{seed} {row.question}", group=f"{seed} {row.group}")
                    for row in sorted(own, key=lambda row: row.question)
                ]
            print(f"{seed}: {arm}, {time.process_time() - begun:.0f} CPU s", flush=True)
    every = [row.question for row in found["base"]]
    told["cpu_seconds"] = round(time.process_time() - begun, 1)
    told["questions"] = len(every)
    told["figures"] = {
        "all": figures(found),
        "changed": figures({a: [r for r in rows if r.question in changed] for a, rows in found.items()}),
        "not changed": figures(
            {a: [r for r in rows if r.question not in changed] for a, rows in found.items()}
        ),
    }
    keep(told)


def figures(rows: dict[str, list[Answered]]) -> dict[str, Any]:
    """Return each arm's figures and what they are beside another's, paired by question, by document."""
    groups = [row.group for row in rows["base"]]
    nats = {arm: np.array([row.nats / row.tokens for row in own]) for arm, own in rows.items()}
    arms = {}
    for arm, own in rows.items():
        sure, right = answered(own)
        ends = metrics.intervals((sure, right), groups)
        arms[arm] = {
            "nats": interval(nats[arm] - nats["base"], groups)
            if arm != "base"
            else interval(nats[arm], groups),
            "right": interval(right, groups),
            **{
                name: {"mean": metrics.value(name, sure, right), "ci": ends[name]} for name in metrics.METRICS
            },
        }
    differences = {}
    for one, other in PAIRS:
        mine, beside = answered(rows[one]), answered(rows[other])
        ends = metrics.intervals(mine, groups, beside)
        differences[f"{one} - {other}"] = {
            "nats": interval(nats[one] - nats[other], groups),
            "right": interval(mine[1] - beside[1], groups),
            **{name: {"mean": _less(name, mine, beside), "ci": ends[name]} for name in metrics.METRICS},
        }
    return {"arms": arms, "differences": differences}


def answered(rows: Sequence[Answered]) -> tuple[np.ndarray, np.ndarray]:
    """Return how sure each answer was and whether it is right."""
    return np.exp(-np.array([row.said_nats for row in rows])), np.array([row.exact for row in rows])


def _less(name: str, mine: Any, other: Any) -> float | None:
    one, two = metrics.value(name, *mine), metrics.value(name, *other)
    return None if one is None or two is None else one - two
