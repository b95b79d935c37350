"""Task vectors: exact there and back, and refused where two models do not match."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
from uptake.adaptation.delta import Delta, LowRank
from uptake.adaptation.task_vectors import added, analogy, info, task_vector
from uptake.errors import BadInput, Mismatch
from uptake.lm.causal import Causal


def tuned(shape: str, seed: int, dtype: torch.dtype = torch.float32) -> Any:
    """Return the toy model with every other weight moved."""
    module = toys.module(shape, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for place, parameter in enumerate(module.parameters()):
            if place % 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(dtype) / 50)
    return module


def vector(lm: Causal, module: Any, exact: bool = False) -> Delta:
    return task_vector(lm.module, module, lm.fingerprint, exact)


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_base_and_vector_are_the_tuned_model_to_the_bit(shape: str) -> None:
    lm, module = toys.lm(shape), tuned(shape, 1)
    exact = vector(lm, module, exact=True)
    there = dict(lm.overlay(exact).module.named_parameters())
    for name, parameter in module.named_parameters():
        assert torch.equal(there[name], parameter), name
    moved = {
        name for name, p in module.named_parameters() if not torch.equal(p, lm.module.get_parameter(name))
    }
    assert exact.names == moved and 0 < len(moved) < len(list(module.parameters()))
    # As wide as the weights it may be off by a rounding.
    near = dict(lm.overlay(vector(lm, module)).module.named_parameters())
    for name, parameter in module.named_parameters():
        one_off = torch.nextafter(parameter, torch.full_like(parameter, torch.inf)) - parameter
        assert bool(((near[name] - parameter).abs() <= one_off.abs() + 1e-12).all())


def test_a_vector_less_itself_is_nothing_and_sums_commute_to_the_bit() -> None:
    lm = toys.lm("llama")
    a, b, c = (vector(lm, tuned("llama", seed)) for seed in (1, 2, 3))
    assert all(bool((part == 0).all()) for part in (a - a).differences.values())
    assert (a + b).fingerprint == (b + a).fingerprint
    for name in a.names:
        left, right = ((a + b) + c).difference(name), (a + (b + c)).difference(name)
        assert torch.allclose(left, right, atol=1e-7)
    assert analogy(a, a, c).differences.keys() == c.differences.keys()
    assert added([a, b, c]).fingerprint == (a + b + c).fingerprint
    for name in a.names:
        expected = c.difference(name) + (b.difference(name) - a.difference(name))
        assert torch.equal(analogy(a, b, c).difference(name), expected)


@given(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32))
@settings(max_examples=50, deadline=None)
def test_float64_gives_a_weight_back_to_the_bit(old: float, new: float) -> None:
    before, after = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        before.weight.fill_(old)
        after.weight.fill_(new)
    made = task_vector(before, after, "x", exact=True).over(before, "x").weight
    assert torch.equal(made, after.weight) or abs(old) > 2**29 * abs(new)


def test_a_small_share_of_a_vector_shows_on_a_bfloat16_model() -> None:
    lm = toys.lm("llama", dtype=torch.bfloat16)
    delta = vector(lm, tuned("llama", 1, torch.bfloat16)) * 1e-4
    name = sorted(delta.names)[0]
    assert delta.difference(name).dtype == torch.float32
    changed, before = lm.overlay(delta).module.get_parameter(name), lm.module.get_parameter(name)
    assert float((changed != before.float()).float().mean()) > 0.9
    # Rounding to the model's type would leave hardly anything of it.
    assert float((changed.bfloat16() == before).float().mean()) > 0.9


def test_models_that_do_not_match_are_refused() -> None:
    lm = toys.lm("llama")
    with pytest.raises(Mismatch, match="in one of the two models alone"):
        vector(lm, toys.module("gpt2"))
    short = toys.module("llama")
    short.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(3, 32))
    with pytest.raises(Mismatch, match=r"\(48, 32\) in the base and \(3, 32\)"):
        vector(lm, short)
    other = toys.module("llama")
    other.model.rotary_emb.inv_freq += 1
    with pytest.raises(Mismatch, match="buffer"):
        vector(lm, other)
    with pytest.raises(Mismatch, match="load the model"):
        vector(lm, tuned("llama", 1)).over(toys.lm("llama", seed=1).module, "other")


def test_overlaps_are_summed_or_refused() -> None:
    lm = toys.lm("llama")
    a, b = (vector(lm, tuned("llama", seed)) for seed in (1, 2))
    with pytest.raises(Mismatch, match="changed by two deltas"):
        added([a, b], overlap="refuse")
    name = sorted(a.names)[0]
    alone, rest = a.without(lambda n, _: n.path != name), b.without(lambda n, _: n.path == name)
    assert added([alone, rest], overlap="refuse").names == a.names | b.names
    with pytest.raises(BadInput, match="at least one"):
        added([])
    with pytest.raises(BadInput, match="use sum or refuse"):
        added([a], overlap="mix")  # type: ignore[arg-type]
    assert added([a]).fingerprint == a.fingerprint


def test_what_a_delta_holds_is_told() -> None:
    lm = toys.lm("llama")
    part = LowRank(torch.ones(4, 2), torch.ones(2, 3), 0.5)
    (row,) = info(Delta.of(lm.fingerprint, {"some.weight": part}, "lora"))
    assert (row.owner, row.path, row.kind, row.shape, row.rank) == (
        "lora",
        "some.weight",
        "LowRank",
        (4, 3),
        2,
    )
    assert row.size == pytest.approx(12**0.5) and row.bytes == 4 * (8 + 6)
