"""What a gate before an editor lets through, and at which threshold: figures of its scope."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from edits_alone import ROWS, share

from uptake.adaptation.editing.scope import ScopeNetwork
from uptake.lm.causal import Causal
from uptake.methods.gated_memory.scope import terms
from uptake.methods.gated_memory.trained import ScopeEpisode, Trained
from uptake.tasks.edits import Edit

THRESHOLDS = (*np.round(np.arange(0.05, 1.0, 0.025), 3).tolist(), 0.985, 0.995)
SHOWN = 12


def judged(scope: Trained, model: Causal, edits: Sequence[Edit]) -> dict[str, Any]:
    """Return how a scope ranks rephrases of an edit above its neighbours."""
    network = scope.network(model)
    assert isinstance(network, ScopeNetwork)
    inside, outside = list[float](), list[float]()
    for start in range(0, len(edits), ROWS):
        asked = ScopeEpisode(tuple(replace(edit, loose=()) for edit in edits[start : start + ROWS]))
        with torch.no_grad():
            keys = scope.read(network, model, [edit.prompt for edit in asked.edits]).wide()
            read = scope.read(network, model, [prompt for prompt, _, _ in asked.prompts]).wide()
            near = torch.exp(-network.distances(keys, read)).tolist()
        for number, (prompt, place, about) in enumerate(asked.prompts):
            if prompt != asked.edits[place].prompt:
                (inside if about else outside).append(near[place][number])
    return {"auc": auc(inside, outside), "rephrases": len(inside), "neighbours": len(outside)}


def through(scope: Any, model: Causal, edits: Sequence[Edit]) -> dict[str, Any]:
    """Return what a memory of all edits lets through: prompts to their own edit, and neighbours to any."""
    memory = scope.memory([edit.passage() for edit in edits], model)

    def right(prompt: str, edit: Edit) -> bool:
        return [found.document for found in memory.find(prompt, 1)] == [edit.id]

    asked = {
        "own": [[right(edit.prompt, edit)] for edit in edits],
        "tight": [[right(prompt, edit) for prompt in edit.rephrases] for edit in edits],
        "loose": [[right(prompt, edit) for prompt in edit.loose] for edit in edits],
        "neighbours": [[bool(memory.find(probe.prompt, 1)) for probe in edit.neighbours] for edit in edits],
    }
    return {f"opens_{name}": share(lists) for name, lists in asked.items()}


@dataclass(frozen=True)
class Nearest:
    """A prompt of edit `own`, the edit that a memory of all finds likeliest for it, and p."""

    kind: str
    own: int
    prompt: str
    found: Edit
    p: float


def nearest(scope: Trained, model: Causal, edits: Sequence[Edit]) -> list[Nearest]:
    """Return for each prompt of some edits the likeliest of all: a scope at every threshold at once."""
    named = {edit.id: edit for edit in edits}
    memory: Any = replace(scope, threshold=0.0).memory([edit.passage() for edit in edits], model)
    prompts = [
        (kind, own, prompt)
        for own, edit in enumerate(edits)
        for kind, some in (
            ("own", [edit.prompt]),
            ("tight", edit.rephrases),
            ("loose", edit.loose),
            ("neighbours", [probe.prompt for probe in edit.neighbours]),
        )
        for prompt in some
    ]
    found = []
    for kind, own, prompt in prompts:
        for passage, p in memory.likeliest(prompt, 1) or [(edits[own].passage(), 0.0)]:
            found.append(Nearest(kind, own, prompt, named[passage.document], p))
    return found


def through_at(threshold: float, asked: Sequence[Nearest], edits: Sequence[Edit]) -> dict[str, Any]:
    """Return what `through` does of a scope with this threshold."""
    marks: dict[str, list[list[bool]]] = {
        kind: [[] for _ in edits] for kind in ("own", "tight", "loose", "neighbours")
    }
    for one in asked:
        opens, right = one.p > threshold, one.found.id == edits[one.own].id
        marks[one.kind][one.own].append(opens and (right or one.kind == "neighbours"))
    return {f"opens_{kind}": share(lists) for kind, lists in marks.items()}


def threshold_at(most: float, asked: Sequence[Nearest]) -> float:
    """Return the least threshold that lets through no more than this share of the neighbours."""
    near = np.array([one.p for one in asked if one.kind == "neighbours"])
    fitting = [least for least in THRESHOLDS if not len(near) or (near > least).mean() <= most]
    return float(min(fitting, default=THRESHOLDS[-1]))


def let_in(threshold: float, asked: Sequence[Nearest], edits: Sequence[Edit]) -> dict[str, Any]:
    """Return which neighbours open a memory: to their own edit, or sharing a word of a subject."""
    near = [one for one in asked if one.kind == "neighbours"]
    some = sorted((one for one in near if one.p > threshold), key=lambda one: -one.p)
    return {
        "neighbours": len(near),
        "open": len(some),
        "to_their_own_edit": sum(one.found.id == edits[one.own].id for one in some),
        "same_relation": sum(one.found.relation == edits[one.own].relation for one in some),
        "share_a_word_of_the_subject": sum(
            bool(terms(one.prompt) & terms(one.found.subject)) for one in some
        ),
        "the_likeliest": [[one.prompt, one.found.prompt, round(one.p, 3)] for one in some[:SHOWN]],
    }


def auc(inside: Sequence[float], outside: Sequence[float]) -> float | None:
    """Return how often one of the first is above one of the second; a tie counts half. None of none."""
    if not inside or not outside:
        return None
    below, values = np.sort(np.array(outside)), np.array(inside)
    wins = np.searchsorted(below, values, "left") + np.searchsorted(below, values, "right")
    return float(wins.mean() / 2 / len(below))
