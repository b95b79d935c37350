"""Masks of the update: the changed set is the mask, against plain loops in float64, resumed and unrolled."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import toys
from uptake.adaptation.inner_loop import gradient_descent, unroll
from uptake.adaptation.optimizers import SGD, AdamW, Optimizer
from uptake.adaptation.trainable import LoRA
from uptake.adaptation.transforms import Losses
from uptake.adaptation.update_masks import DPS, FisherMask, RandomMask, UpdateMask, largest
from uptake.errors import BadInput
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.settings import apply

STEPS = 14
MASKS: list[UpdateMask] = [DPS(keep=0.3, window=3), RandomMask(keep=0.2), FisherMask(keep=0.1, window=4)]


def targets() -> list[Tensor]:
    return [
        torch.randn(6, 5, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        for i in range(STEPS)
    ]


def loss(weight: Tensor, target: Tensor) -> Losses:
    return Losses.one(((weight - target) ** 2 * target.abs()).sum(), "")


def run(
    mask: UpdateMask, optimizer: Optimizer, cuts: tuple[int, ...] = ()
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the weight after each step, taken in as many calls as there are cuts, and one more."""
    weight = nn.Parameter(torch.zeros(6, 5, dtype=torch.float64))
    seen = [weight.detach().clone()]
    state: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)

    def losses_of(target: Tensor) -> Losses:
        return loss(weight, target)

    edges = [0, *cuts, STEPS]
    for start, end in pairwise(edges):
        for at in range(start, end) if not cuts else [start]:
            batch = targets()[at : at + 1] if not cuts else targets()[start:end]
            state = gradient_descent(losses_of, {"w": weight}, batch, optimizer, (mask,), state, generator)
            seen.append(weight.detach().clone())
    return seen, state


def naive_masks(mask: UpdateMask, seen: list[Tensor]) -> list[Tensor]:
    """The masks as the papers say them, from the gradients at the weights that were seen."""
    every, found = torch.ones(6, 5, dtype=torch.bool), []
    sums = torch.zeros(6, 5, dtype=torch.float64)
    for step, target in enumerate(targets()):
        square = (2 * (seen[step] - target) * target.abs()) ** 2
        if isinstance(mask, DPS):
            odd = step // mask.window % 2 == 0
            if odd:
                sums = square if step % mask.window == 0 else sums + square
            least = sums.flatten().sort(descending=True).values[math.ceil(30 * mask.keep) - 1]
            found.append(every if odd else sums >= least)
        elif isinstance(mask, FisherMask):
            if step < mask.window:
                sums = sums + square
                found.append(~every)
            else:
                found.append(
                    sums >= sums.flatten().sort(descending=True).values[math.ceil(30 * mask.keep) - 1]
                )
    return found


@pytest.mark.parametrize("optimizer", [SGD(0.05), AdamW(0.1, weight_decay=0.5)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: type(mask).__name__)
def test_what_moves_is_the_mask_under_momentum_and_decay_too(mask: UpdateMask, optimizer: Optimizer) -> None:
    seen, _ = run(mask, optimizer)
    changed = [after != before for before, after in pairwise(seen)]
    if isinstance(mask, RandomMask):
        assert all(torch.equal(each, changed[0]) for each in changed) and int(changed[0].sum()) == 6
        return
    for step, wanted in enumerate(naive_masks(mask, seen)):
        assert torch.equal(changed[step], wanted), step


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: type(mask).__name__)
def test_two_calls_are_one_and_the_differentiable_loop_takes_the_same_steps(mask: UpdateMask) -> None:
    optimizer = SGD(0.05, momentum=0.9, weight_decay=0.5)
    whole, state = run(mask, optimizer)
    parts, resumed = run(mask, optimizer, cuts=(5, 9))
    assert torch.equal(whole[-1], parts[-1]) and state.keys() == resumed.keys()
    start = {"w": torch.zeros(6, 5, dtype=torch.float64, requires_grad=True)}
    values, unrolled = unroll(
        lambda values, target: loss(values["w"], target),
        start,
        targets(),
        optimizer,
        2,
        (mask,),
        generator=torch.Generator().manual_seed(0),
    )
    assert torch.allclose(values["w"], whole[-1], atol=1e-9) and unrolled.keys() == state.keys()
    (gradient,) = torch.autograd.grad(values["w"].sum(), start["w"])
    assert bool(torch.isfinite(gradient).all())


def test_equal_scores_all_count_and_one_is_kept_at_least() -> None:
    assert largest(torch.ones(4), 0.25).sum() == 4
    assert largest(torch.arange(4.0), 0.01).tolist() == [False, False, False, True]
    for make in (lambda: DPS(keep=0.0), lambda: FisherMask(window=0), lambda: RandomMask(keep=1.5)):
        with pytest.raises(BadInput, match="a share above 0 and at most 1"):
            make()


@pytest.mark.parametrize(
    "written", ["dps(keep=0.5,window=1)", "randommask(keep=0.5)", "fishermask(keep=0.5,window=1)"]
)
def test_methods_take_them_as_transforms_and_rows_train_as_alone(written: str) -> None:
    lm = toys.lm()
    method = apply(Finetune(optimizer=AdamW(1e-2), chunk_tokens=8), f"transforms=({written},)")
    method = replace(method, trainable=LoRA(rank=2))
    read = [Evidence.of("one fish, two fish, red"), Evidence.of("a cat sat on the mat, a dog " * 2)]
    together = method.adapt([method.init(lm)] * 2, lm, read, Context())
    for row, state in enumerate(together):
        context = Context()
        (alone,) = method.adapt([method.init(lm)], lm, read[row : row + 1], context)
        for name in alone.delta.names:
            mine, theirs = state.delta.difference(name), alone.delta.difference(name)
            assert torch.allclose(mine, theirs, atol=1e-4)
    assert any(bool(state.delta.difference(name).any()) for state in together for name in state.delta.names)
