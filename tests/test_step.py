"""The inner loop as a function: it ends where the loop in place ends, and its derivatives are right."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toys
from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import GradientDescent, gradient_descent, token_loss, unroll
from uptake.adaptation.optimizers import RMS, SGD, AdamW, Optimizer
from uptake.adaptation.trainable import All, LoRA, Top, Trainable
from uptake.adaptation.transforms import Clip, Losses, Mask
from uptake.errors import BadInput, Diverged

RULES = [SGD(0.1), SGD(0.1, momentum=0.9, weight_decay=0.1), AdamW(1e-2), RMS(0.01, decay=0.3)]
PARTS = [1.5, 2.0, -3.0, 0.5]


def quadratic(values: Any, x: float) -> Losses:
    """Three examples of two documents."""
    apart = (values["w"] - x).pow(2)
    turned = (values["w"][0] * values["v"]).sin()
    return Losses(torch.stack([apart[:2].sum(), turned.sum(), apart[2]]), ("one", "other", "one"))


def total(values: Any, x: float) -> Tensor:
    return quadratic(values, x).values.sum()


def start() -> dict[str, Tensor]:
    return {
        "w": torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64, requires_grad=True),
        "v": torch.tensor([0.7, 0.1], dtype=torch.float64, requires_grad=True),
    }


CHAINS = {
    "none": (),
    "clipped": (Clip(0.5),),
    "each clipped": (Clip(0.5, per_document=True),),
    "masked": (Mask("v", {"v": torch.tensor([True, False])}), Clip(0.1)),
}


@pytest.mark.parametrize("transforms", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("optimizer", RULES, ids=str)
def test_unrolled_is_in_place(optimizer: Optimizer, transforms: Any) -> None:
    parameters = {name: nn.Parameter(value.detach()) for name, value in start().items()}
    rms = {f"{name}|rms": torch.linspace(0.5, 2, len(value)).double() for name, value in start().items()}
    optimizer_state = rms if isinstance(optimizer, RMS) else {}
    gradient_descent(
        lambda x: quadratic(parameters, x), parameters, PARTS, optimizer, transforms, optimizer_state
    )
    for order in (0, 1, 2):
        values, kept = unroll(quadratic, start(), PARTS, optimizer, order, transforms, optimizer_state)  # type: ignore[arg-type]
        for name, parameter in parameters.items():
            assert torch.allclose(values[name], parameter, atol=1e-8), (order, name)
        halves, kept = unroll(quadratic, start(), PARTS[:2], optimizer, order, transforms, optimizer_state)  # type: ignore[arg-type]
        again = {name: value.detach().requires_grad_() for name, value in halves.items()}
        halves, _ = unroll(quadratic, again, PARTS[2:], optimizer, order, transforms, kept)  # type: ignore[arg-type]
        assert all(torch.allclose(halves[name], values[name]) for name in values), "memory goes on"


@pytest.mark.parametrize("transforms", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("optimizer", RULES, ids=str)
def test_second_order_is_the_derivative(optimizer: Optimizer, transforms: Any) -> None:
    def end(w: Tensor, v: Tensor) -> Tensor:
        values, _ = unroll(quadratic, {"w": w, "v": v}, PARTS, optimizer, transforms=transforms)
        return torch.cat([values["w"], values["v"]])

    assert torch.autograd.gradcheck(end, tuple(start().values()))


def test_first_order_takes_inner_gradients_as_constants() -> None:
    begun = start()
    values, _ = unroll(quadratic, begun, PARTS, SGD(0.1), order=1)
    outer = torch.autograd.grad(total(values, 4.0), list(begun.values()))
    ended = {name: value.detach().requires_grad_() for name, value in values.items()}
    at_the_end = torch.autograd.grad(total(ended, 4.0), list(ended.values()))
    assert all(torch.equal(one, other) for one, other in zip(outer, at_the_end, strict=True))
    second = torch.autograd.grad(
        total(unroll(quadratic, begun, PARTS, SGD(0.1))[0], 4.0), list(begun.values())
    )
    assert not torch.allclose(outer[0], second[0])
    values, _ = unroll(quadratic, begun, PARTS, SGD(0.1), order=0)
    assert not any(value.requires_grad for value in values.values())
    with pytest.raises(BadInput, match="use 0, 1 or 2"):
        unroll(quadratic, begun, PARTS, SGD(0.1), order=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("trainable", [All(), Top(1), LoRA(rank=2)], ids=str)
@pytest.mark.parametrize("shape", toys.SHAPES)
def test_the_hypergradient_of_a_token_weight(shape: str, trainable: Trainable) -> None:
    """One step: dQ/dw_t = -(alpha / N) <grad Q(theta'), grad nll_t(theta)>, on a language model."""
    lm = toys.lm(shape, dtype=torch.float64)
    ids, asked, alpha = torch.tensor([[0, 5, 6, 7, 9]]), torch.tensor([[0, 7, 9, 5]]), 0.2
    weights = torch.rand(1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights.requires_grad_()
    private, opened = lm.trainable_copy(trainable, Delta(lm.fingerprint), torch.Generator().manual_seed(0))

    def nll(values: Any, tokens: Tensor, weigh: Tensor | None = None) -> Tensor:
        return token_loss(private.with_parameters(values).step(tokens[:, :-1])[0], tokens[:, 1:], weigh)

    moved, _ = unroll(
        lambda values, w: Losses.one(nll(values, ids, w), ""), opened.parameters, [weights], SGD(alpha)
    )
    (found,) = torch.autograd.grad(nll(moved, asked), [weights])
    leaf = {name: value.detach().requires_grad_() for name, value in moved.items()}
    outer = torch.autograd.grad(nll(leaf, asked), list(leaf.values()))
    for t in range(4):
        only = torch.zeros(1, 4, dtype=torch.float64)
        only[0, t] = 4.0  # undoes the mean
        inner = torch.autograd.grad(nll(opened.parameters, ids, only), list(opened.parameters.values()))
        dot = sum((a * b).sum() for a, b in zip(outer, inner, strict=True))
        assert torch.allclose(found[0, t], -alpha / 4 * dot, atol=1e-12)
    assert not any(p.requires_grad for p in lm.module.parameters())


def test_given_nothing_is_the_model_itself_and_the_base_stays() -> None:
    lm = toys.lm()
    ids = torch.tensor([[0, 5, 6, 7]])
    name, weight = next(iter(lm.module.named_parameters()))
    changed = lm.with_parameters({name: weight + 1.0}).step(ids)[0]
    assert torch.allclose(lm.with_parameters({}).step(ids)[0], lm.step(ids)[0], atol=1e-6)
    assert not torch.allclose(changed, lm.step(ids)[0], atol=1e-3)
    assert lm.module.get_parameter(name) is weight


def test_dynamic_evaluations_rule_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    rms, rate, decay, epsilon = torch.tensor([0.5, 1.5]), 0.1, 0.4, 1e-3
    descent = GradientDescent({"w": weight}, RMS(rate, decay, epsilon), (), {"w|rms": rms})
    expected = torch.tensor([1.0, 2.0])
    for gradient in (torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0])):
        descent.apply([gradient])
        pull = torch.minimum(decay * rms / 1.0, torch.ones(2)) * (torch.tensor([1.0, 2.0]) - expected)
        expected = expected + pull - rate * gradient / (rms + epsilon)
        assert torch.allclose(weight, expected)


def test_a_state_from_a_file_goes_on_where_the_parameters_are() -> None:
    weight = nn.Parameter(torch.ones(2, device="meta"))
    kept = {"w|exp_avg": torch.ones(2), "w|exp_avg_sq": torch.ones(2), "w|step": torch.ones(())}
    descent = GradientDescent({"w": weight}, AdamW(0.1), (), kept)
    assert {value.device.type for value in descent.optimizer_state.values()} == {"meta"}


def test_a_loss_that_is_not_finite_takes_no_step() -> None:
    weight = nn.Parameter(torch.ones(2))
    for loss in (lambda x: (weight * x).sum(), lambda x: (weight * x).sum().sqrt() * 0 + weight.sum() * x):
        with pytest.raises(Diverged, match="smaller learning rate"):
            losses = Losses.one(loss(float("inf")), "")
            gradient_descent(lambda _, losses=losses: losses, {"w": weight}, [0], SGD(0.1), (Clip(1.0),))
    assert torch.equal(weight, torch.ones(2))


@pytest.mark.parametrize("optimizer", RULES, ids=str)
def test_how_a_gradient_lies_in_memory_does_not_matter(optimizer: Optimizer) -> None:
    gradient = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(3, 5)
    found = []
    for turned in (gradient, gradient.T.contiguous().T):
        weight = nn.Parameter(torch.ones(3, 5, dtype=torch.float64))
        descent = GradientDescent({"w": weight}, optimizer)
        for _ in range(2):
            descent.apply([turned])
        found.append(weight.detach())
    assert torch.equal(*found)
