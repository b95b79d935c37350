"""Hidden-state optimisation: the cache moves by Adam, slot by slot, and nothing else does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import conformance
import toys
from uptake.adaptation.delta import fingerprint
from uptake.adaptation.optimizers import AdamW
from uptake.errors import BadInput, Mismatch
from uptake.lm.base import LM, Segment
from uptake.lm.generation import Decoding
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.spending import Budget
from uptake.methods.hidden_state_optimisation import CacheState, HiddenStateOptimisation

TEXT = "the cat sat on the mat and a dog ran over the hill to see what the cat saw there, and back."
METHOD = HiddenStateOptimisation(AdamW(learning_rate=0.1, weight_decay=0.0), chunk_tokens=8, slots=20)


def running(method: HiddenStateOptimisation, lm: LM, text: str = TEXT, size: int = 8) -> tuple[Any, Any]:
    """Return log-probabilities and the state after a text read from its start, a segment after another."""
    state, found = method.init(lm), []
    for start in range(0, len(text), size):
        segment = Segment(text[start : start + size], text[max(0, start - 24) : start])
        (scores,), (state,) = method.read([state], lm, [segment], Context())
        found.append(scores.log_probs)
    return torch.cat(found), state


def naive(module: Any, ids: list[int], size: int, most: int, rate: float) -> tuple[list[Tensor], Any]:
    """The method written out for a model whose positions are rotations, on a list of tensors a slot."""
    from transformers import DynamicCache

    slots: list[dict[str, Any]] = []  # of one token: keys and values of all layers, m, v, count
    found, pending = [], 0
    for start in range(0, len(ids), size):
        piece = ids[start : start + size]
        leaves = [slot["x"].clone().requires_grad_() for slot in slots]
        cache = DynamicCache()
        if slots:
            for layer in range(2):
                stacked = [torch.stack([leaf[layer, kind] for leaf in leaves], 1)[None] for kind in (0, 1)]
                cache.update(stacked[0], stacked[1], layer)
        count, inputs = len(slots), torch.tensor([[pending, *piece[:-1]]])
        positions = torch.arange(start, start + len(piece))[None]
        out = module(inputs, past_key_values=cache, position_ids=positions, use_cache=True)
        log_probs = out.logits.log_softmax(-1)[0].gather(-1, torch.tensor(piece)[:, None])[:, 0]
        found.append(log_probs.detach())
        for slot, gradient in zip(
            slots, torch.autograd.grad(-log_probs.sum(), leaves) if slots else (), strict=True
        ):
            slot["t"] += 1
            slot["m"] = 0.9 * slot["m"] + 0.1 * gradient
            slot["v"] = 0.999 * slot["v"] + 0.001 * gradient**2
            mean, square = slot["m"] / (1 - 0.9 ** slot["t"]), slot["v"] / (1 - 0.999 ** slot["t"])
            slot["x"] = slot["x"] - rate * mean / (square + 1e-16).sqrt()
        for place in range(count, count + len(piece)):
            x = torch.stack(
                [
                    torch.stack([layer.keys[0, :, place], layer.values[0, :, place]])
                    for layer in out.past_key_values.layers
                ]
            ).detach()
            slots.append({"x": x, "m": torch.zeros_like(x), "v": torch.zeros_like(x), "t": 0})
        slots, pending = slots[-most:], piece[-1]
    return found, slots


@pytest.mark.parametrize("shape", ["llama", "neox"])
def test_it_is_the_naive_loop(shape: str) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    found, state = running(METHOD, lm)
    ids = lm.tokenizer.encode(TEXT)[0]
    # Masks of a cache whose first slots are gone are the model's own affair in `naive`: none is ever needed.
    expected, slots = naive(lm.module.requires_grad_(False), ids, 8, 20, 0.1)
    assert torch.allclose(found, torch.cat(expected), atol=1e-10)
    for layer in range(2):
        for kind, name in enumerate(("keys", "values")):
            wanted = torch.stack([slot["x"][layer, kind] for slot in slots], 1)[None]
            assert torch.allclose(state.slots[f"{layer}.{name}"], wanted, atol=1e-10)
            moments = torch.stack([slot["m"][layer, kind] for slot in slots], 1)[None]
            assert torch.allclose(state.optimizer_state[f"{layer}.{name}|exp_avg"], moments, atol=1e-12)


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_only_the_cache_moves_and_every_layer_of_it(shape: str) -> None:
    lm = toys.lm(shape)
    before = fingerprint(lm.module)
    _, first = running(METHOD, lm, TEXT[:8])
    (second,) = METHOD.adapt([first], lm, [Evidence.of(TEXT[8:16])], Context())
    assert fingerprint(lm.module) == before and len(first.slots) == 4
    for name, slot in first.slots.items():
        moved = second.slots[name][..., :8, :] - slot
        # Adam's first step is the rate, whatever the gradient's size.
        assert moved.abs().max() == pytest.approx(0.1, rel=1e-3)
        assert ((moved.abs() - 0.1).abs() < 1e-3).float().mean() > 0.9
        assert torch.equal(
            second.optimizer_state[f"{name}|step"].flatten(), torch.tensor([1.0] * 8 + [0.0] * 8)
        )


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_moments_stay_with_their_slots_as_the_cache_slides(shape: str) -> None:
    lm = toys.lm(shape)
    _, state = running(METHOD, lm)
    assert state.text == TEXT and state.tokens == tuple(lm.tokenizer.encode(TEXT)[0][-21:])
    assert all(tensor.shape[-2] == 20 for tensor in (*state.slots.values(), *state.optimizer_state.values()))
    # A slot has been through one step for every piece after its own: 3 of 95 tokens are the last piece.
    pieces = [place // 8 for place in range(len(TEXT) - 21, len(TEXT) - 1)]
    expected = [(len(TEXT) - 1) // 8 - (place + 1) // 8 for place in range(len(TEXT) - 21, len(TEXT) - 1)]
    assert len(pieces) == 20 and state.optimizer_state["0.keys|step"].flatten().tolist() == expected


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_scoring_and_taking_in_one_pass_is_one_after_the_other(shape: str) -> None:
    lm, state = toys.lm(shape), METHOD.init(toys.lm(shape))
    apart = state
    for start in range(0, len(TEXT), 8):
        segment = Segment(TEXT[start : start + 8], TEXT[max(0, start - 24) : start])
        (scores,), (state,) = METHOD.read([state], lm, [segment], Context())
        (wanted,) = METHOD.adapted([apart], lm).score([segment])
        (apart,) = METHOD.adapt([apart], lm, [Evidence.of(segment.text, query=segment.context)], Context())
        assert torch.equal(scores.log_probs, wanted.log_probs) and scores.spans == wanted.spans
        assert all(torch.equal(state.slots[name], apart.slots[name]) for name in apart.slots)


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_at_rate_zero_it_is_the_model_with_a_cache(shape: str) -> None:
    lm = toys.lm(shape)
    still = replace(METHOD, optimizer=AdamW(learning_rate=0.0, weight_decay=0.0), slots=None)
    found, _ = running(still, lm, TEXT[:30])
    (whole,) = lm.score([Segment(TEXT[:30])])
    assert torch.allclose(found, whole.log_probs, atol=1e-5)


def test_where_positions_end_the_slots_go_back_to_the_beginning_with_what_was_added() -> None:
    lm = toys.lm("gpt2", window=32)
    method = replace(METHOD, slots=16)
    _, state = running(method, lm, TEXT[:24])
    assert state.position == 24
    (after,) = method.adapt([state], lm, [Evidence.of(TEXT[24:32])], Context())
    assert after.position == 16 and len(after.tokens) == 17
    plain = conformance.read(
        conformance.Subject.of(replace(method, optimizer=AdamW(0.0, weight_decay=0.0))), lm, TEXT[15:32]
    )
    for name in after.slots:
        fresh = after.slots[name] - after.optimizer_state[f"{name}|shift"]
        assert plain.slots.keys() == after.slots.keys() and fresh.shape == plain.slots[name].shape
    assert after.optimizer_state["0.keys|shift"].abs().max() > 0.05
    still = replace(method, optimizer=AdamW(0.0, weight_decay=0.0))
    _, unmoved = running(still, lm, TEXT[:32])
    with torch.no_grad():
        _, cache = lm.step(torch.tensor([unmoved.tokens[:-1]]), lm.start())
    assert torch.equal(unmoved.slots["1.values"], cache.layers[1].values)


def test_a_motif_gets_likelier_and_budget_and_bad_rates_hold() -> None:
    lm = toys.lm()
    motif = "abcabdab" * 12
    moved, _ = running(METHOD, lm, motif)
    still, _ = running(replace(METHOD, optimizer=AdamW(0.0, weight_decay=0.0)), lm, motif)
    assert moved[-24:].mean() > still[-24:].mean() + 0.3
    context = Context(budget=Budget(tokens=16))
    (state,) = METHOD.adapt([METHOD.init(lm)], lm, [Evidence.of(TEXT)], context)
    assert context.ledger(0).tokens_trained == 16 and context.ledger(0).tokens_read == len(TEXT)
    wild, context = replace(METHOD, optimizer=AdamW(1e38, weight_decay=0.0)), Context()
    (state,) = wild.adapt([wild.init(lm)], lm, [Evidence.of(TEXT[:8])], context)
    (kept,) = wild.adapt([state], lm, [Evidence.of(TEXT[8:])], context)
    assert kept is state and "smaller learning rate" in context.ledger(0).failed


def test_it_generates_on_from_what_was_read() -> None:
    lm = toys.lm()
    _, state = running(METHOD, lm)
    model = METHOD.adapted([state], lm)
    told = model.generate("the cat", 10)
    assert told != lm.generate("the cat", 10)
    ids = torch.tensor([[0, *lm.tokenizer.encode("the cat sat")[0]]])
    with torch.no_grad():
        whole = model.step(ids)[0]
        first, cache = model.step(ids[:, :5], model.start())
        rest, _ = model.step(ids[:, 5:], cache)
    assert torch.allclose(torch.cat([first, rest], 1), whole, atol=1e-5)


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_a_text_longer_than_the_room_beside_what_was_read_goes_on(shape: str) -> None:
    # Where positions stand in a table there is no place behind its end: 24 are read, of 64.
    lm = toys.lm(shape)
    (state,) = METHOD.adapt([METHOD.init(lm)], lm, [Evidence.of(TEXT[:24])], Context())
    model = METHOD.adapted([state], lm)
    assert [len(scores.log_probs) for scores in model.score([Segment(TEXT * 3)])] == [3 * len(TEXT)]
    assert len([*model.stream(TEXT * 2, Decoding(tokens=60))]) == 60


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="use 1 or more"):
        HiddenStateOptimisation(slots=0)
    state = CacheState(base="other")
    with pytest.raises(Mismatch, match="load that model"):
        METHOD.adapted([state], toys.lm())
