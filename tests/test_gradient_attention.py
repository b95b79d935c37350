"""Linear attention that descends a gradient: the construction, GD++, and what training finds."""

import in_context_gradient_descent as recipe
import pytest
import torch
from gradient_attention import GradientAttention, best_step, linear_problems
from torch import Tensor

from uptake.errors import BadInput


def naive(inputs: Tensor, targets: Tensor, start: Tensor, rate: float, steps: int) -> Tensor:
    """Gradient descent on 1/(2N) sum |W x_j - y_j|^2 for one problem, by autograd."""
    weight = start.clone().requires_grad_()
    for _ in range(steps):
        loss = (inputs @ weight.T - targets).square().sum() / (2 * len(inputs))
        (gradient,) = torch.autograd.grad(loss, weight)
        weight = (weight - rate * gradient).detach().requires_grad_()
    return weight.detach()


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((1, 12, 6), (1, 12, 3), (1, 4, 6), (3, 6))
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return made[0], made[1], made[2], made[3]


@pytest.mark.parametrize("steps", [1, 5])
def test_k_layers_are_k_steps_of_gradient_descent(steps: int) -> None:
    inputs, targets, queries, start = problem()
    net = GradientAttention.descending(start, 0.3, examples=12, steps=steps)
    found = net(inputs, targets, queries)[0]
    wanted = queries[0] @ naive(inputs[0], targets[0], start, 0.3, steps).T
    assert (found - wanted).abs().max() < 2e-15 * wanted.abs().max() * steps
    assert net.gain() == pytest.approx(0.3 / 12)


def test_a_query_among_the_keys_is_no_gradient_descent() -> None:
    inputs, targets, queries, start = problem()
    net = GradientAttention.descending(start, 0.3, examples=12)
    examples = torch.cat([inputs, targets], -1)
    asked = torch.cat([queries, -queries @ start.T], -1)[:, :1]
    layer = net.layer(0)
    apart = -layer(asked, examples)[..., 6:]
    among = -layer(asked, torch.cat([examples, asked], 1))[..., 6:]
    wanted = queries[0, :1] @ naive(inputs[0], targets[0], start, 0.3, 1).T
    assert torch.allclose(apart[0], wanted) and (among[0] - wanted).abs().max() > 1e-2


def test_curvature_bends_the_inputs_of_the_next_step() -> None:
    inputs, targets, queries, start = problem()
    net = GradientAttention.descending(start, 0.3, examples=12, steps=3, curvature=0.02)
    x, y, q = inputs[0], targets[0], queries[0]
    wanted = q @ start.T
    for _ in range(3):
        step = -0.3 / 12 * (x @ start.T - y).T @ x
        wanted = wanted + q @ step.T
        y = y - x @ step.T
        bend = torch.eye(6) - 0.02 * x.T @ x
        x, q = x @ bend, q @ bend
    assert torch.allclose(net(inputs, targets, queries)[0], wanted, atol=1e-13)
    plain = GradientAttention.descending(start, 0.3, examples=12, steps=3)
    assert not torch.allclose(plain(inputs, targets, queries)[0], wanted)


def test_the_closed_form_is_the_best_step() -> None:
    gain, loss = best_step(10, 10)
    assert gain == pytest.approx(20 / 33) and loss == pytest.approx(0.2062, abs=5e-5)
    problems = linear_problems(4000, 10, 10, 5, torch.Generator().manual_seed(0))
    found = {at: recipe.losses(recipe.descent(1, at * gain), problems).mean().item() for at in (0.9, 1, 1.1)}
    assert found[1] == pytest.approx(loss, rel=0.02) and found[1] == min(found.values())


@pytest.mark.long
def test_a_trained_layer_is_the_best_step() -> None:
    gain, _ = best_step(10, 10)
    problems = linear_problems(2000, 10, 10, 10, torch.Generator().manual_seed(9))
    net, best = recipe.train(depth=1, steps=500), recipe.descent(1, gain)
    trained, optimum = (recipe.losses(one, problems).mean().item() for one in (net, best))
    assert trained == pytest.approx(optimum, rel=0.01)
    assert net.gain() == pytest.approx(20 / 33, rel=0.05)
    assert recipe.alike(net, best, problems) > 0.999
    untrained = recipe.losses(GradientAttention(10), problems).mean().item()
    assert untrained > 1.8 * optimum


def test_no_layers_are_refused() -> None:
    with pytest.raises(BadInput, match="depth 0: use 1"):
        GradientAttention(3, depth=0)
