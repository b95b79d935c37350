"""Masks of the update: the changed set is the mask, against plain loops in float64, resumed and unrolled."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import toys
from uptake.adaptation.inner_loop import GradientDescent, gradient_descent, unroll
from uptake.adaptation.optimizers import SGD, AdamW, Optimizer
from uptake.adaptation.trainable import LoRA
from uptake.adaptation.transforms import Clip, GradientTransform, Losses
from uptake.adaptation.update_masks import DPS, FisherMask, RandomMask, UpdateMask, largest
from uptake.errors import BadInput
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.settings import apply

STEPS = 14
MASKS: list[UpdateMask] = [
    DPS(keep=0.3, window=3),
    RandomMask(keep=0.2),
    FisherMask(keep=0.1, window=4),
    DPS(keep=0.6, window=3, mixout=True),
]


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


def named(mask: UpdateMask) -> str:
    return type(mask).__name__ + (" mixout" if mask.mixes else "")


def published_mixout(mask: DPS, rate: float, start: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Weights after each step of plain descent, and what moved, by the formulas of the published layer."""
    generator = torch.Generator().manual_seed(0)
    weight, drop = start.clone(), 1 - mask.keep
    sums, counts, chosen, target = (torch.zeros(6, 5, dtype=torch.float64) for _ in range(4))
    seen, moved = [weight.clone()], []
    for step, wanted in enumerate(targets()):
        odd = step // mask.window % 2 == 0
        if odd:
            row = torch.rand(5, generator=generator) < mask.keep
            noise = torch.stack([row.double()] * 6)
            target = start
        else:
            if step % mask.window == 0:
                target = weight.clone()
                score = sums / counts.clamp(min=1)
                if mask.window >= 50:
                    score = score * torch.exp(-counts / mask.window)
                least = score.flatten().sort(descending=True).values[math.ceil(30 * mask.keep) - 1]
                chosen = (score >= least).double()
            noise = chosen
        read = ((1 - noise) * target + noise * weight - drop * target) / (1 - drop)
        gradient = 2 * (read - wanted) * wanted.abs() * noise
        if odd:
            sums = gradient**2 if step % mask.window == 0 else sums + gradient**2
            counts = noise if step % mask.window == 0 else counts + noise
        weight = weight - rate * gradient
        seen.append(weight.clone())
        moved.append(noise.bool())
    return seen, moved


@pytest.mark.parametrize("window", [1, 3, 4])
@pytest.mark.parametrize("keep", [0.3, 0.7, 1.0])
def test_mixout_under_plain_descent_is_the_published_layer(window: int, keep: float) -> None:
    mask = DPS(keep=keep, window=window, mixout=True)
    seen, _ = run(mask, SGD(0.05))
    wanted, _ = published_mixout(mask, 0.05, torch.zeros(6, 5, dtype=torch.float64))
    for mine, theirs in zip(seen, wanted, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_long_windows_of_mixout_weigh_down_what_counted_often(monkeypatch: pytest.MonkeyPatch) -> None:
    mask, zeros = DPS(keep=0.4, window=2, mixout=True), torch.zeros(6, 5, dtype=torch.float64)
    state = {"w|mask_dps_sum": torch.ones(2, 2), "w|mask_dps_step": torch.tensor(2.0)}
    state |= {"w|mask_dps_count": torch.tensor([[1.0, 2.0], [1.0, 2.0]])}
    # Sums alone are equal: means prefer what counted once.
    mixed, _ = mask.mixed({"w": zeros[:2, :2]}, state, None)
    assert mixed["w"].kept.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    state["w|mask_dps_sum"] = torch.tensor([[1.0, 2.2], [1.0, 2.2]])
    mixed, _ = mask.mixed({"w": zeros[:2, :2]}, state, None)
    assert mixed["w"].kept.tolist() == [[0.0, 1.0], [0.0, 1.0]]
    monkeypatch.setattr("uptake.adaptation.update_masks.LONG", 2)
    mixed, _ = mask.mixed({"w": zeros[:2, :2]}, state, None)
    assert mixed["w"].kept.tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_what_is_read_under_mixout_is_in_the_mean_the_parameter_and_stands_nowhere_afterwards() -> None:
    mask = DPS(keep=0.5, window=4, mixout=True)
    start, generator = torch.randn(3, 4, dtype=torch.float64), torch.Generator().manual_seed(2)
    value = start + 1
    state = {"w|mask_dps_start": start}
    found = [mask.mixed({"w": value}, state, generator)[0]["w"].of(value) for _ in range(4000)]
    assert torch.allclose(torch.stack(found).mean(0), value, atol=0.1)
    assert {round(float(each), 9) for each in (torch.stack(found) - start).unique()} == {0.0, 2.0}
    # One column is kept or put back as a whole.
    assert all(bool((each[0] - start[0]).eq(0).eq((each[2] - start[2]).eq(0)).all()) for each in found[:50])
    weight = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    own = weight.detach().clone()
    descent = GradientDescent({"w": weight}, SGD(0.1), (mask,), state, torch.Generator().manual_seed(1))
    with pytest.raises(RuntimeError, match="stopped"), descent.reading():
        assert not torch.equal(weight, own)
        raise RuntimeError("stopped")
    assert torch.equal(weight, own)


def test_mixout_keeps_its_columns_in_the_gradient_of_each_document_and_before_clipping() -> None:
    def after(transforms: tuple[GradientTransform, ...]) -> Tensor:
        weight = nn.Parameter(torch.zeros(6, 5, dtype=torch.float64))
        gradient_descent(
            lambda target: Losses(((weight - target) ** 2).sum(1), tuple(range(6))),
            {"w": weight},
            targets()[:2],
            SGD(0.05),
            transforms,
            generator=torch.Generator().manual_seed(0),
        )
        return weight.detach()

    mask = DPS(keep=0.6, window=3, mixout=True)
    generator, weight = torch.Generator().manual_seed(0), torch.zeros(6, 5, dtype=torch.float64)
    for target in targets()[:2]:
        kept = (torch.rand(5, generator=generator) < 0.6).double()
        rows = 2 * (kept * weight / 0.6 - target) * kept
        weight = weight - 0.05 * rows * (0.5 / (rows.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
    assert torch.allclose(after((Clip(0.5, per_document=True), mask)), weight, rtol=0, atol=1e-12)
    with pytest.raises(BadInput, match="leave one out"):
        after((mask, mask))
    with pytest.raises(BadInput, match="give the loop a generator"):
        gradient_descent(lambda _: None, {}, [], SGD(0.1), (mask,))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("optimizer", [SGD(0.05), AdamW(0.1, weight_decay=0.5)], ids=["sgd", "adamw"])
@pytest.mark.parametrize("mask", MASKS, ids=named)
def test_what_moves_is_the_mask_under_momentum_and_decay_too(mask: UpdateMask, optimizer: Optimizer) -> None:
    seen, _ = run(mask, optimizer)
    changed = [after != before for before, after in pairwise(seen)]
    if isinstance(mask, RandomMask):
        assert all(torch.equal(each, changed[0]) for each in changed) and int(changed[0].sum()) == 6
        return
    if isinstance(mask, DPS) and mask.mixout:
        _, columns = published_mixout(mask, 0.05, torch.zeros(6, 5, dtype=torch.float64))
        # Which columns are drawn does not depend on the steps; which entries are chosen does.
        wanted = [each for step, each in enumerate(columns) if step // mask.window % 2 == 0]
        mine = [each for step, each in enumerate(changed) if step // mask.window % 2 == 0]
        assert all(torch.equal(one, other) for one, other in zip(mine, wanted, strict=True))
        assert all(
            int(each.sum()) == math.ceil(30 * mask.keep)
            for step, each in enumerate(changed)
            if step // mask.window % 2
        )
        return
    for step, wanted in enumerate(naive_masks(mask, seen)):
        assert torch.equal(changed[step], wanted), step


@pytest.mark.parametrize("mask", MASKS, ids=named)
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
    "written",
    [
        "dps(keep=0.5,window=1)",
        "dps(keep=0.5,window=1,mixout=true)",
        "randommask(keep=0.5)",
        "fishermask(keep=0.5,window=1)",
    ],
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
