"""Gradient transforms: each against a plain loop in float64, their order, their cost, and a guest."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import toys
from uptake.adaptation.inner_loop import gradient_descent, unroll
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.trainable import LoRA
from uptake.adaptation.transforms import (
    Clip,
    Gradients,
    GradientTransform,
    Losses,
    Mask,
    chain,
    gradients_of,
)
from uptake.errors import BadInput, Diverged
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.settings import apply, describe

WIDTH = 5


@dataclass(frozen=True)
class Noise(GradientTransform):
    """Gaussian noise of this size on the sum, as private training adds it: the guest that needs no edit."""

    size: float = 1.0
    random = True

    def apply(self, gradients: Gradients, generator: torch.Generator | None) -> Gradients:
        for name, gradient in gradients.items():
            drawn = torch.randn(gradient.shape, dtype=gradient.dtype, generator=generator)
            gradients[name] = gradient + self.size * drawn
        return gradients


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)

    def made(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

    return {"in.weight": made(WIDTH, WIDTH), "out.weight": made(1, WIDTH), "unused": made(2)}


def example_loss(values: Any, x: Tensor) -> Tensor:
    return (values["out.weight"] @ (values["in.weight"] @ x).tanh()).pow(2)[0]


def inputs(count: int, seed: int = 1) -> Tensor:
    return 3 * torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def losses(values: Any, documents: Any) -> Losses:
    return Losses(torch.stack([example_loss(values, x) for x in inputs(len(documents))]), documents)


def naive(values: Any, documents: Any, norm: float | None) -> dict[str, Tensor]:
    """Each document by itself: its gradient by `backward`, its norm by hand, then the sum."""
    total = {name: torch.zeros_like(value) for name, value in values.items()}
    for document in dict.fromkeys(documents):
        fresh = {name: nn.Parameter(value.detach().clone()) for name, value in values.items()}
        for x, owner in zip(inputs(len(documents)), documents, strict=True):
            if owner == document:
                example_loss(fresh, x).backward()
        grads = {name: value.grad for name, value in fresh.items() if value.grad is not None}
        size = math.sqrt(sum(float((grad**2).sum()) for grad in grads.values()))
        share = 1.0 if norm is None else min(1.0, norm / (size + 1e-6))
        for name, grad in grads.items():
            total[name] += share * grad
    return total


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.sampled_from([None, 0.1, 2.0, 1e6]))
def test_clipping_each_document_is_the_plain_loop(documents: list[int], norm: float | None) -> None:
    values = parameters()
    transforms = () if norm is None else (Clip(norm, per_document=True),)
    found = gradients_of(losses(values, documents), values, transforms)
    assert found.keys() == {"in.weight", "out.weight"}, "what no loss depends on has no gradient"
    for name, gradient in found.items():
        assert torch.allclose(gradient, naive(values, documents, norm)[name], rtol=1e-12, atol=1e-12), name


def test_a_documents_examples_are_clipped_together() -> None:
    values, each = parameters(), (Clip(0.5, per_document=True),)
    of_one = gradients_of(losses(values, ["a", "a", "a"]), values, each)
    of_three = gradients_of(losses(values, ["a", "b", "c"]), values, each)
    summed = gradients_of(losses(values, ["a", "b", "c"]), values, (Clip(0.5),))
    assert all(torch.allclose(of_one[name], summed[name]) for name in summed)
    size = torch.nn.utils.get_total_norm([*of_three.values()])
    assert 0.5 < size <= 1.5, "three documents, half a unit each at most"


def test_the_joint_norm_is_that_of_torch() -> None:
    values = parameters()
    found = gradients_of(losses(values, "ab"), values, (Clip(0.7),))
    losses(values, "ab").values.sum().backward()
    nn.utils.clip_grad_norm_(values.values(), 0.7)
    assert all(torch.equal(found[name], values[name].grad) for name in found)  # type: ignore[arg-type]


def test_one_backward_pass_unless_each_documents_gradient_is_asked_for() -> None:
    values, passes = parameters(), [0]

    def counted(*transforms: GradientTransform) -> int:
        passes[0] = 0
        doubled = values["in.weight"] * 1
        doubled.register_hook(lambda gradient: passes.__setitem__(0, passes[0] + 1))
        gradients_of(losses({**values, "in.weight": doubled}, "abac"), values, transforms)
        return passes[0]

    assert counted() == counted(Clip(1.0), Mask("in")) == 1
    assert counted(Clip(1.0, per_document=True), Clip(1.0)) == 3


def test_a_mask_leaves_all_else_where_it_is() -> None:
    values, before = parameters(), parameters()
    some = torch.zeros(WIDTH, WIDTH, dtype=torch.bool)
    some[1] = True
    mask = Mask("in", {"in.weight": some})
    # Weight decay too passes by what is masked whole.
    gradient_descent(lambda x: losses(values, "ab"), values, [0, 0], SGD(0.1, weight_decay=0.5), (mask,))
    assert torch.equal(values["out.weight"], before["out.weight"])
    assert not torch.equal(values["in.weight"][1], before["in.weight"][1])
    with pytest.raises(BadInput, match="no parameter that trains is called so"):
        gradients_of(losses(values, "a"), values, (Mask("nowhere"),))
    with pytest.raises(BadInput, match="mask entries of 'other'"):
        gradients_of(losses(values, "a"), values, (Mask("", {"other": some}),))
    plain = gradients_of(losses(values, "a"), values)["in.weight"]
    masked = gradients_of(losses(values, "a"), values, (mask,))["in.weight"]
    assert torch.equal(masked[1], plain[1]) and not masked[0].any()


def test_transforms_act_in_their_order() -> None:
    values = parameters()
    first = gradients_of(losses(values, "ab"), values, (Mask("in"), Clip(0.5)))
    then = gradients_of(losses(values, "ab"), values, (Clip(0.5), Mask("in")))
    assert torch.nn.utils.get_total_norm([*first.values()]) == pytest.approx(0.5, rel=1e-4)
    assert torch.nn.utils.get_total_norm([*then.values()]) < 0.5 - 1e-3, "what was masked had its share"
    assert chain(0.5, (Mask("in"),)) == (Mask("in"), Clip(0.5)) and chain(None) == ()
    with pytest.raises(BadInput, match="put clip first"):
        chain(None, (Mask("in"), Clip(1.0, per_document=True)))
    with pytest.raises(BadInput, match="clip 0: use a positive norm"):
        chain(0)


def test_noise_is_a_file_of_its_own_and_draws_from_the_generator_it_is_given() -> None:
    """Private training's step by hand: each document clipped, summed, noise on the sum."""
    documents, noise = ["a", "b", "a"], (Clip(0.5, per_document=True), Noise(0.3))
    values, before = parameters(), parameters()

    def run() -> None:
        for name, value in before.items():
            values[name].data.copy_(value.data)
        generator = torch.Generator().manual_seed(7)
        gradient_descent(
            lambda x: losses(values, documents), values, [0], SGD(0.1), noise, generator=generator
        )

    torch.manual_seed(0)
    untouched = torch.random.get_rng_state()
    run()
    assert torch.equal(torch.random.get_rng_state(), untouched)
    drawn, clipped = torch.Generator().manual_seed(7), naive(before, documents, 0.5)
    for name in ("in.weight", "out.weight"):
        shape = before[name].shape
        expected = clipped[name] + 0.3 * torch.randn(shape, dtype=torch.float64, generator=drawn)
        assert torch.allclose(values[name], before[name] - 0.1 * expected, atol=1e-12), name
    start = {name: value.detach().clone().requires_grad_() for name, value in before.items()}
    unrolled, _ = unroll(
        losses, start, [documents], SGD(0.1), 0, noise, generator=torch.Generator().manual_seed(7)
    )
    assert all(torch.allclose(unrolled[name], values[name], atol=1e-12) for name in values)
    with pytest.raises(BadInput, match="noise draws random numbers: give the loop a generator"):
        gradient_descent(lambda x: losses(values, documents), values, [0], SGD(0.1), noise)


def test_a_guest_is_a_setting_of_fine_tuning_by_its_name() -> None:
    lm = toys.lm()
    method = apply(Finetune.example(), "clip=none", "transforms=noise(size=0.01)")
    assert method.transforms == (Noise(0.01),) and not method.incremental
    assert describe(method)["transforms"] == ({"kind": "Noise", "size": 0.01},)

    def deltas(method: Finetune, seed: int, *queries: str) -> list[Any]:
        evidence = [Evidence.of("the cat sat", query=query) for query in queries]
        states = method.adapt([method.init(lm)] * len(evidence), lm, evidence, Context(seed))
        return [state.delta for state in states]

    # Where rows are trained together each still draws by itself.
    low = replace(method, trainable=LoRA(2))
    (alone,), (_, beside) = deltas(low, 0, "b"), deltas(low, 0, "a", "b")
    assert all(torch.allclose(alone.difference(n), beside.difference(n), atol=1e-6) for n in alone.names)
    assert any(
        (alone.difference(n) - deltas(low, 0, "a")[0].difference(n)).abs().max() > 1e-4 for n in alone.names
    )
    one, other = deltas(method, 0, "a", "b")
    (again,), (reseeded,) = deltas(method, 0, "a"), deltas(method, 1, "a")
    name = min(one.names)
    assert torch.equal(one.difference(name), again.difference(name)), "by seed and query alone"
    assert not torch.equal(one.difference(name), other.difference(name))
    assert not torch.equal(one.difference(name), reseeded.difference(name))


def test_losses_and_gradients_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInput, match="one loss an example"):
        Losses(torch.zeros(2), ["a"])
    with pytest.raises(Diverged, match="norm is inf"):
        Clip(1.0).apply({"w": torch.tensor([math.inf])}, None)
    assert Clip(1.0).apply({}, None) == {}
