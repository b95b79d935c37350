"""Private training of a method's network: units, their clipped and noisy sum, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from cli_world import Run, World, made_fixture, run_fixture, world_fixture, write_lines  # noqa: F401
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.privacy.dp import DP
from uptake.errors import BadInput
from uptake.methods.adapter_mixture import AdapterMixture
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.private_learning import private_gradients, units_of
from uptake.methods.mend import Mend
from uptake.tasks.edits import Edit
from uptake.tasks.questions import Question
from uptake.text.types import Document
from uptake.train import Training, train

torch.set_num_threads(1)
METHOD = AdapterMixture(experts=2, rank=1, hidden=4, support=1, asked=1)
DOCUMENTS = tuple(Document(f"d{n}", f"It is {n}.", f"u{n // 2}") for n in range(6))
QUESTIONS = tuple(
    Question(f"{document.id}{n}", f"Which {n}?", (f"{document.id} is",), document.id, {"task": "t"})
    for document in DOCUMENTS[:5]
    for n in range(2)
)
MATERIAL = TrainingData(DOCUMENTS, QUESTIONS)
OPEN = DP(epsilon=None, noise=0.0, clip=math.inf, steps=2, batch=6, delta=0.01, seed=0)


def network_of(lm: Any) -> Any:
    made = METHOD.fresh(lm).double().train()
    with torch.no_grad():
        for up in made.up:
            up.add_(0.05)
    return made


@pytest.mark.parametrize(("unit", "clip"), [("document", math.inf), ("document", 1e-3), ("user", 1e-3)])
def test_a_step_is_the_clipped_sum_of_units_by_themselves(unit: Any, clip: float) -> None:
    lm = toys.lm(dtype=torch.float64)
    units = units_of(
        METHOD, lm, MATERIAL, replace(OPEN, unit=unit, clip=clip, batch=3 if unit == "user" else 6)
    )
    assert [len(each) for each in units.episodes] == ([2, 2, 1] if unit == "user" else [1] * 5 + [0])
    network = network_of(lm)
    found = private_gradients(METHOD, network, lm, units, 0)  # every unit is drawn
    total = [torch.zeros_like(parameter) for parameter in network.parameters()]
    for episodes in units.episodes:
        own = [torch.zeros_like(parameter) for parameter in network.parameters()]
        for episode in episodes:
            gradients = METHOD.gradients(network, lm, episode)[1]
            own = [a if b is None else a + b for a, b in zip(own, gradients, strict=True)]
        norm = math.sqrt(sum(float(each.double().square().sum()) for each in own))
        factor = min(1.0, clip / norm) if norm else 1.0
        assert not episodes or norm > 1e-3
        total = [a + factor * b for a, b in zip(total, own, strict=True)]
    count = len(units)
    for name, (a, b) in enumerate(zip(found, total, strict=True)):
        assert torch.allclose(a, b / count, atol=1e-7, rtol=1e-4), name


def test_a_private_training_has_its_own_number_of_steps_and_tells_no_loss() -> None:
    lm = toys.lm()
    units = units_of(METHOD, lm, MATERIAL, replace(OPEN, noise=0.5, clip=0.1, steps=5, batch=2))
    assert units.claim.epsilon is not None and units.claim.units == 6
    training = Training(optimizer=SGD(0.1), clip=None, save_every=2)
    told: list[tuple[int, int]] = []
    network, points = train(METHOD, lm, units, training, on_step=lambda *each: told.append(each))
    assert [point.step for point in points] == [2, 4, 5] and told[-1] == (5, 5)
    assert all(math.isnan(point.loss) for point in points)
    again, _ = train(METHOD, lm, units, training)  # seeded, for tests alone
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    secret = units_of(METHOD, lm, MATERIAL, replace(units.dp, seed=None))
    other, _ = train(METHOD, lm, secret, training)
    assert any(not torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_what_has_no_private_form_is_refused_with_the_reason() -> None:
    lm = toys.lm()

    def refused(said: str, method: Any = METHOD, dp: DP = OPEN, **more: Any) -> None:
        with pytest.raises(BadInput, match=said) as error:
            units = units_of(method, lm, replace(MATERIAL, **more), dp)
            private_gradients(method, method.fresh(lm).train(), lm, units, 0)
        assert "\n" not in str(error.value)

    refused("a store under privacy", sources=lambda _: None)
    refused("'d9', which is none of the documents", questions=(*QUESTIONS, Question("q", "?", ("a",), "d9")))
    refused("no `group`", dp=replace(OPEN, unit="user"), documents=(*DOCUMENTS, Document("d7", "More.")))
    refused("no document gives one", method=replace(METHOD, support=8))
    refused("no documents or edits", documents=(), questions=())
    refused("delta 0.3 for 6 documents", dp=replace(OPEN, noise=1.0, clip=1.0, delta=0.3))
    edits = (Edit("e1", "one is", " two"), Edit("e2", "so is", " it"))
    refused(
        "counts statistics of the text",
        method=Mend(blocks=1, rank=2, locality=0.0),
        documents=(),
        questions=(),
        edits=edits,
    )
    kept = units_of(
        Mend(blocks=1, rank=2, locality=0.0, standardise=False),
        lm,
        TrainingData((), edits=edits),
        replace(OPEN, batch=2),
    )
    assert [len(each) for each in kept.episodes] == [1, 1]


def test_the_command_line_trains_in_private_and_says_what_is_kept(
    world: World, run: Run, tmp_path: Path
) -> None:
    questions = write_lines(
        tmp_path / "asked.jsonl",
        *[
            {"question": f"which {n}", "answers": [f"word {d}"], "document": f"d{d}", "task": "t"}
            for d in range(6)
            for n in range(2)
        ],
    )
    documents = write_lines(
        tmp_path / "read.jsonl", *[{"id": f"d{d}", "text": f"text number {d}"} for d in range(6)]
    )
    out = tmp_path / "network"
    settings = (
        "experts=1",
        "rank=1",
        "hidden=4",
        "support=1",
        "asked=1",
        "privacy.steps=2",
        "privacy.batch=6",
    )
    common = (
        *("train", "adapter-mixture", "-m", world.model, "--documents", documents, "--questions", questions),
        *("--out", out),
    )
    chosen = [part for each in settings for part in ("--set", each)]
    told = run(*common, *chosen, "--epsilon", "8", "--delta", "0.01", "--json")
    assert told.code == 0, told.err
    claim = json.loads(told.out)["privacy"]
    assert (
        0 < claim["epsilon"] <= 8.01 and claim["units"] == 6 and claim["steps"] == 2 and not claim["seeded"]
    )
    for arguments, said in (
        (("--delta", "0.01"), "--delta without --epsilon"),
        (
            ("--epsilon", "8", "--delta", "0.01", "--passes", "3"),
            "the number of steps is --set privacy.steps",
        ),
        (("--epsilon", "0.01", "--delta", "0.01"), "take fewer steps"),
        (("--epsilon", "0"), "epsilon 0"),
        (("--epsilon", "nan"), "epsilon nan"),
    ):
        told = run(*common, *chosen, *arguments)
        assert told.code == 2 and said in told.err and told.err.count("\n") == 1, (arguments, told.err)
    assert "privacy.steps=2 without --epsilon" in run(*common, *chosen).err
