"""SERAC's trained scope: its measure against plain loops, what training teaches, and the gate it makes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from uptake.adaptation.editing.scope import ScopeNetwork
from uptake.adaptation.optimizers import AdamW
from uptake.errors import BadInput
from uptake.lm.base import Segment
from uptake.methods import find
from uptake.methods.contract.learned import TrainingData, learner_of
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.gated_memory import GatedMemory
from uptake.methods.gated_memory.trained import Trained
from uptake.methods.serac import Serac
from uptake.settings import apply
from uptake.tasks.edits import Edit, Probe
from uptake.text.types import Found, Passage
from uptake.train import Training, train

NAMES = ["Anna", "Boris", "Cindy", "Dora", "Emil", "Fritz", "Gina", "Hugo"]
EDITS = tuple(
    Edit(
        name,
        f"the home of {name} is",
        f"{n}",
        name,
        rephrases=(f"so {name} lives in",),
        neighbours=(Probe(f"the home of {NAMES[n - 1]} is"), Probe("the home of Zoe is")),
        relation="home",
    )
    for n, name in enumerate(NAMES)
)


def passages(*edits: Edit) -> list[Passage]:
    return [edit.passage() for edit in edits]


def trained(lm: Any, match: Any = "tokens") -> Trained:
    scope = Trained(match=match, size=16, batch=4)
    episodes = scope.episodes(lm, TrainingData((), edits=EDITS))
    training = Training(AdamW(learning_rate=1e-2, weight_decay=0.0), passes=25)
    network, _ = train(scope, lm, episodes, training)
    return scope.with_network(network)


@pytest.mark.parametrize("match", ["tokens", "whole"])
def test_the_measure_is_plain_loops(match: str) -> None:
    torch.manual_seed(0)
    network = ScopeNetwork(6, 3, match == "tokens").double()
    hidden, lengths = torch.randn(4, 5, 6).double(), torch.tensor([5, 2, 3, 0])
    read = network(hidden, lengths)
    found = network.distances(read, read).detach()
    scale = float(network.log_scale.detach().exp())
    for i in range(4):
        for j in range(4):
            if 3 in (i, j):
                assert found[i, j] == float("inf")  # there is nothing it could be about
                continue
            texts = []
            for at in (i, j):
                normed = network.norm(hidden[at, : lengths[at]])
                rows = network.project(normed).detach()
                weights = torch.softmax(network.weigh(normed)[:, 0], 0).detach()
                texts.append(([row / row.norm() for row in rows], weights))
            (mine, weights), (theirs, other) = texts
            if match == "whole":
                a = sum(w * row for w, row in zip(weights, mine, strict=True))
                b = sum(w * row for w, row in zip(other, theirs, strict=True))
                expected = float((a / a.norm() - b / b.norm()).square().sum())  # type: ignore[union-attr, operator]
            else:
                expected = sum(
                    float(w) * min(float((row - one).square().sum()) for one in theirs)
                    for w, row in zip(weights, mine, strict=True)
                )
            assert float(found[i, j]) == pytest.approx(scale * expected, abs=1e-10)


def test_the_loss_is_means_of_logarithms() -> None:
    lm = toys.lm("llama")
    scope = Trained(weights="untrained", size=4, batch=3, near=0.5, others=2.0)
    episode, *_ = scope.episodes(lm, TrainingData((), edits=EDITS))
    network = scope.network(lm)
    inside, near, far = [], [], []
    for edit in episode.edits:
        key = edit.passage()
        own = [edit.prompt, *edit.rephrases]
        inside += [scope.probability(lm, key, prompt) for prompt in own]
        near += [scope.probability(lm, key, probe.prompt) for probe in edit.neighbours]
        for other in episode.edits:
            for prompt in (other.prompt, *other.rephrases, *(probe.prompt for probe in other.neighbours)):
                if other is not edit and edit.subject not in prompt:
                    far.append(scope.probability(lm, key, prompt))

    def mean(values: list[float]) -> float:
        return float(torch.tensor(values).log().mean())

    outside = 0.5 * mean([1 - p for p in near]) + 2 * mean([1 - p for p in far])
    with torch.no_grad():
        assert scope.loss(network, lm, episode).item() == pytest.approx(-mean(inside) - outside, rel=1e-3)


@pytest.mark.parametrize("match", ["tokens", "whole"])
def test_training_tells_subjects_apart(match: str) -> None:
    lm = toys.lm("llama")
    scope = trained(lm, match)
    memory = scope.memory(passages(*EDITS), lm)
    for edit in EDITS:
        for prompt in (edit.prompt, *edit.rephrases):
            assert [found.document for found in memory.find(prompt, 1)] == [edit.id]
        assert scope.probability(lm, edit.passage(), "the home of Zoe is") < 0.5
    assert memory.find("", 3) == []


def test_what_else_is_in_the_memory_and_in_which_order_is_no_matter() -> None:
    lm = toys.lm("llama")
    scope = Trained(weights="untrained", size=8, threshold=0.0)
    made = passages(*EDITS)
    prompt = "where does Emil live, in"
    found = scope.memory(made, lm).find(prompt, 8)
    assert scope.memory(made[::-1], lm).find(prompt, 8) == found
    ordered = sorted(made, key=lambda one: (-scope.probability(lm, one, prompt), one.id))
    assert found == ordered
    without = [one for one in made if one is not found[0]]
    assert scope.memory(without, lm).find(prompt, 8) == found[1:]
    twins = [replace(made[0], id=n) for n in (9, 4, 7)]
    assert [one.id for one in scope.memory(twins, lm).find(made[0].prompt, 3)] == [4, 7, 9]
    alone = scope.memory(made[:1], lm)
    p = scope.probability(lm, made[0], prompt)
    # Open above the threshold strictly.
    assert replace(scope, threshold=p).memory(made[:1], lm).find(prompt, 1) == []
    assert alone.find(prompt, 1) == made[:1] and scope.memory([], lm).find(prompt, 1) == []


def test_closed_prompts_are_the_bases_and_any_editor_stands_behind_the_scope(tmp_path: Path) -> None:
    lm = toys.lm("llama")
    scope = trained(lm)
    path = tmp_path / "scope"
    scope.save(scope.network(lm), lm, path)
    kept = apply(scope, f"weights={path}")
    for method in (
        replace(Serac.example(), scope=scope),
        GatedMemory(scope),
        GatedMemory(replace(kept, trained=None)),
    ):
        read = Evidence(Found(tuple(passages(*EDITS)), (0.0,) * len(EDITS)))
        (state,) = method.adapt([method.init(lm)], lm, [read], Context())
        model = method.adapted([state], lm)
        for prompt, opens in (("the home of Zoe is", False), ("so Boris lives in", True)):
            asked = [Segment("x and more", prompt)]
            same = torch.equal(model.score(asked)[0].log_probs, lm.score(asked)[0].log_probs)
            assert same is not opens
            assert opens or model.generate(prompt, 5) == lm.generate(prompt, 5)


def test_what_is_trained_by_its_name_and_what_is_refused() -> None:
    lm = toys.lm("llama")
    assert isinstance(learner_of(find("serac")), Trained)
    with pytest.raises(BadInput, match="no trained network"):
        find("serac").method.check(lm)
    with pytest.raises(BadInput, match="--edits"):
        Trained().episodes(lm, TrainingData((), edits=EDITS[:1]))
    for wrong in ({"match": "words"}, {"depth": 2.0}, {"threshold": 1.0}, {"size": 0}, {"near": -1.0}):
        with pytest.raises(BadInput, match="use"):
            replace(Trained(), **wrong)  # type: ignore[arg-type]
