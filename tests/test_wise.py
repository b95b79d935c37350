"""WISE: copies of a weight, the margins they are trained to, and who answers a prompt."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import toys
from uptake.adaptation.delta import Delta
from uptake.adaptation.editing.shards import random_mask, ties_merge
from uptake.errors import BadInput
from uptake.lm.base import Segment
from uptake.lm.feed_forward import down_projection
from uptake.lm.key_statistics import OrdinaryText
from uptake.lm.replaced_output import inputs_at
from uptake.lm.wrappers import Routed
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.wise import Wise
from uptake.text.types import Found, Passage

METHOD = Wise(depth=1, learning_rate=5.0, steps=30, ordinary=OrdinaryText(tokens=64, length=32))
EDITS = [
    Passage(1, "x", "so it is", document="one"),
    Passage(2, "yz", "the other way round", document="two"),
    Passage(3, "q", "never mind", document="three"),
]


def made(method: Wise, lm: Any, *passages: Passage, state: Any = None, seed: int = 0) -> Any:
    found = Evidence(Found(passages, (0.0,) * len(passages)))
    return method.adapt([state or method.init(lm)], lm, [found], Context(seed))[0]


def at(lm: Any, difference: torch.Tensor, prompt: str) -> float:
    """Return the mean length of what a difference adds over a prompt."""
    (inputs,) = inputs_at(lm, down_projection(lm.module, 1), [lm.tokenizer.opened(prompt)])
    return float(torch.stack([(difference @ row).norm() for row in inputs[1:]]).mean())


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_edited_prompts_go_to_the_copy_and_others_to_the_base(shape: str) -> None:
    lm = toys.lm(shape)
    state = made(METHOD, lm, EDITS[0])
    (copy,), (floor,) = state.copies.values(), state.floors.values()
    edited = METHOD.adapted([state], lm)
    asked = [Segment("x", "so it is")]
    assert edited.score(asked)[0].log_probs.sum() > lm.score(asked)[0].log_probs.sum() + 0.1
    assert at(lm, copy, "so it is") == pytest.approx(floor, rel=1e-4)
    place = down_projection(lm.module, 1)
    dense = Delta.dense(lm.fingerprint, {place.weight: copy.T if place.transposed else copy})
    assert torch.equal(edited.score(asked)[0].log_probs, lm.overlay(dense).score(asked)[0].log_probs)
    assert edited.generate("so it is", 6) == lm.overlay(dense).generate("so it is", 6)
    # Beside a prompt that goes to the copy another is still the base's, bit for bit.
    pair, base = [Segment("x", "so it is"), Segment("x and", "and so on")], Routed([lm, lm])
    # At a ratio of 1 the last bit of a pass that rows share would decide where the edited prompt goes.
    beside = replace(METHOD, ratio=0.999).adapted([state, METHOD.init(lm)], lm).score(pair)
    assert torch.equal(beside[1].log_probs, lm.score(pair)[1].log_probs)
    assert not torch.equal(beside[0].log_probs, base.score(pair)[0].log_probs)
    # What is under the threshold is the base's, bit for bit.
    strict = replace(METHOD, ratio=1e6).adapted([state], lm)
    assert torch.equal(strict.score(asked)[0].log_probs, lm.score(asked)[0].log_probs)
    assert strict.generate("so it is", 6) == lm.generate("so it is", 6)


def test_a_copy_changes_within_its_share_and_its_limit() -> None:
    lm = toys.lm("llama")
    state = made(replace(METHOD, limit=0.02), lm, *EDITS[:2])
    (copy,) = state.copies.values()
    mask = random_mask(copy.shape, 0.2, Context().generator("wise", "copy 1"))
    assert bool((copy[~mask] == 0).all()) and float(copy.abs().max()) == pytest.approx(0.02)
    assert 0.1 < float((copy != 0).double().mean()) <= float(mask.double().mean())


def test_margins_move_the_activation() -> None:
    lm = toys.lm("llama")
    near, far = (
        made(replace(METHOD, inside=inside, gap=0.0, outside=9.0), lm, EDITS[0]) for inside in (0.0, 5.0)
    )
    (small,), (large,) = near.floors.values(), far.floors.values()
    assert large > 1.2 * small


def test_a_full_copy_is_left_and_copies_are_merged() -> None:
    lm = toys.lm("llama")
    method = replace(METHOD, copy_edits=1, merged=3, steps=3)
    two = made(method, lm, *EDITS[:2])
    assert list(two.copies) == ["copy 1", "copy 2"] and (two.begun, two.filled) == (2, 1)
    three = made(method, lm, EDITS[2], state=two)
    apart = made(replace(method, merged=4), lm, *EDITS)
    (merged,) = three.copies.values()
    assert torch.equal(merged, ties_merge(list(apart.copies.values())))
    assert three.floors == {"copy 3": min(apart.floors.values())}
    assert list(made(method, lm, replace(EDITS[0], id=9), state=three).copies) == ["copy 3", "copy 4"]


def test_edits_one_by_one_are_the_batch_and_forgetting_makes_the_others_again() -> None:
    lm = toys.lm("gpt2")
    method = replace(METHOD, steps=4)
    whole, stepwise = made(method, lm, *EDITS), method.init(lm)
    for edit in EDITS:
        stepwise = made(method, lm, edit, state=stepwise)
    left, never = method.forget(whole, lm, [2]), made(method, lm, EDITS[0], EDITS[2])
    for one, other in ((whole, stepwise), (left, never)):
        assert torch.equal(one.copies["copy 1"], other.copies["copy 1"]) and one.floors == other.floors


def test_a_copy_has_one_share_though_each_call_has_a_seed_of_its_own() -> None:
    lm, method = toys.lm("llama"), replace(METHOD, steps=4, copy_edits=2, merged=9)
    state = method.init(lm)
    for seed, edit in enumerate([*EDITS, replace(EDITS[0], id=9)], 5):
        state = made(method, lm, edit, state=state, seed=seed)
    for name, seed in (("copy 1", 5), ("copy 2", 7)):
        mask = random_mask(state.copies[name].shape, 0.2, Context(seed).generator("wise", name))
        assert bool((state.copies[name][~mask] == 0).all()) and bool(state.copies[name].any())
    assert torch.equal(made(method, lm, *EDITS[:2], seed=5).copies["copy 1"], state.copies["copy 1"])


def test_bad_edits_are_told_of_and_settings_refused() -> None:
    lm, context = toys.lm("llama"), Context()
    bad = Passage(5, "x", "a" * 90, document="long")
    found = Evidence(Found((EDITS[0], bad), (0.0, 0.0)))
    (state,) = METHOD.adapt([METHOD.init(lm)], lm, [found], context)
    assert "edit 'long' was not made" in context.ledger(0).failed
    assert torch.equal(state.copies["copy 1"], made(METHOD, lm, EDITS[0]).copies["copy 1"])
    for wrong in ({"steps": 0}, {"merged": 1}, {"share": 0}, {"ratio": float("nan")}):
        with pytest.raises(BadInput, match="use"):
            replace(METHOD, **wrong)  # type: ignore[arg-type]
