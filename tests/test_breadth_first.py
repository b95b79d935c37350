"""Editing breadth-first: its steps are a naive loop's, earlier edits are replayed, the base is held to."""

from dataclasses import replace

import pytest
import torch

import toys
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.trainable import All, Named
from uptake.errors import BadInput
from uptake.lm.base import LM, Segment
from uptake.lm.causal import Causal
from uptake.lm.examples import Example
from uptake.lm.scoring import kl
from uptake.methods import breadth_first
from uptake.methods.breadth_first import BreadthFirst, written_by
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.weight_state import WeightState
from uptake.tasks.edits import Edit
from uptake.text.types import Found, Passage

COLOURS = {"cat": "red", "dog": "blue", "fish": "grey", "hen": "black", "cow": "white", "bat": "pink"}
EDITS = [
    Edit(f"e{n}", f"the {what} is", colour).passage() for n, (what, colour) in enumerate(COLOURS.items())
]
PLAIN = BreadthFirst(
    trainable=All(), optimizer=SGD(0.5), clip=None, epochs=3, batch=6, replay=0.0, enough=0.0, stay=0.0
)


@pytest.fixture(name="lm", scope="module")
def lm_fixture() -> Causal:
    return toys.lm(dtype=torch.float64)


def read(method: BreadthFirst, lm: LM, *turns: list[Passage], context: Context | None = None) -> WeightState:
    state = method.init(lm)
    for some in turns:
        found = Found(tuple(some), (0.0,) * len(some))
        (state,) = method.adapt([state], lm, [Evidence(found)], context or Context())
    return state


def loss_of(method: BreadthFirst, lm: LM, state: WeightState, edits: list[Passage]) -> float:
    model = method.adapted([state], lm).at([0])
    scores = [model.score([Segment(edit.text, edit.prompt)])[0].log_probs for edit in edits]
    return -float(torch.stack([each.mean() for each in scores]).mean())


def test_steps_over_all_edits_are_plain_gradient_descent(lm: Causal) -> None:
    state = read(PLAIN, lm, EDITS)
    module = toys.module(dtype=torch.float64)
    parameters = dict(module.named_parameters())
    tokenizer = lm.tokenizer
    for _ in range(PLAIN.epochs):
        module.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for edit in EDITS:
            before, own = tokenizer.opened(edit.prompt), tokenizer.encode(edit.text)[0]
            logits = module(torch.tensor([before + own])).logits[0, len(before) - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(own)) / len(EDITS)
        total.backward()
        with torch.no_grad():
            for parameter in parameters.values():
                parameter -= 0.5 * parameter.grad
    base = dict(lm.module.named_parameters())
    for name, parameter in parameters.items():
        moved = state.delta.difference(name)
        assert torch.allclose(moved, parameter - base[name], atol=1e-10), name


def test_one_matrix_alone_is_changed_if_it_is_named(lm: Causal) -> None:
    state = read(replace(PLAIN, trainable=Named("layers.1.mlp.down_proj")), lm, EDITS)
    assert list(state.delta.names) == ["model.layers.1.mlp.down_proj.weight"]


def test_replay_keeps_earlier_edits(lm: Causal) -> None:
    method = replace(PLAIN, epochs=12, optimizer=SGD(0.3))
    turns = [[edit] for edit in EDITS[:4]]
    forgetful = loss_of(method, lm, read(method, lm, *turns), EDITS[:2])
    kept = loss_of(method, lm, read(replace(method, replay=3.0), lm, *turns), EDITS[:2])
    assert kept < 0.5 * forgetful


def test_it_stops_when_the_edits_are_learnt(lm: Causal) -> None:
    context = Context()
    method = replace(PLAIN, epochs=60, enough=1.5)
    state = read(method, lm, EDITS[:2], context=context)
    assert 1 < context.ledger(0).steps < 60
    assert loss_of(method, lm, state, EDITS[:2]) < 1.5


def test_it_stays_near_the_base_on_what_the_base_writes(lm: Causal) -> None:
    method = replace(PLAIN, epochs=8, optimizer=SGD(0.3), own_texts=8, own_tokens=16, texts_a_step=8)
    other = written_by(lm, 16, 16, seed=99)

    def drift(method: BreadthFirst) -> float:
        model = method.adapted([read(method, lm, EDITS)], lm).at([0])
        with torch.no_grad():
            return float(torch.cat(kl(lm, model, other)).mean())

    assert drift(replace(method, stay=4.0)) < 0.8 * drift(method)


def test_what_a_model_writes_is_drawn_from_its_predictions(lm: Causal) -> None:
    first = written_by(lm, 3, 5, seed=1)
    assert first == written_by(lm, 3, 5, seed=1) != written_by(lm, 3, 5, seed=2)
    assert len({each.target for each in first}) == 3 and all(len(each.target) == 5 for each in first)
    many = written_by(lm, 4000, 1, seed=0)
    counts = torch.bincount(torch.tensor([each.target[0] for each in many]), minlength=len(lm.tokenizer))
    with torch.no_grad():
        wanted = lm.step(torch.tensor([[lm.tokenizer.opening]]))[0][0, 0].exp()
    assert float((counts / 4000 - wanted).abs().max()) < 0.04


def test_a_loss_that_is_no_number_leaves_the_state_as_it_was(lm: Causal) -> None:
    context = Context()
    state = read(replace(PLAIN, optimizer=SGD(1e30)), lm, EDITS, context=context)
    assert not state.history and "loss" in context.ledger(0).failed


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"epochs": -1}, {"replay": -1.0}, {"stay": float("inf")}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="use 0"):
        BreadthFirst(**wrong)  # type: ignore[arg-type]


def test_a_sequence_of_calls_stays_near_one_set_of_texts_written_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = list[int]()

    def count(lm: LM, count: int, tokens: int, seed: int) -> list[Example]:
        written.append(seed)
        return written_by(lm, count, tokens, seed)

    monkeypatch.setattr(breadth_first, "written_by", count)
    lm, method = toys.lm(), replace(PLAIN, epochs=1, stay=1.0, own_texts=2, own_tokens=4)
    state = method.init(lm)
    for seed, edit in enumerate(EDITS[:3], 5):
        found = Evidence(Found((edit,), (0.0,)))
        (state,) = method.adapt([state], lm, [found], Context(seed))
    assert written == [5]
    read(method, lm, EDITS[:1], context=Context(9))
    assert written == [5, 9]
