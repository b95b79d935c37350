"""Rows trained together: each ends where it ends alone, and no row sees another."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import toys
from toys import low_rank
from uptake.adaptation.delta import Delta, LowRank
from uptake.adaptation.inner_loop import gradient_descent, token_loss
from uptake.adaptation.optimizers import RMS, SGD, AdamW, Optimizer
from uptake.adaptation.trainable import LoRA
from uptake.adaptation.transforms import Clip, GradientTransform, Losses, Mask
from uptake.lm.base import LM
from uptake.lm.examples import Example, Piece
from uptake.lm.side_by_side import SideBySide, train_side_by_side
from uptake.methods.contract.method import Budget, Context, Evidence
from uptake.methods.finetune import Finetune

OPTIMIZERS = [SGD(0.1, momentum=0.9, weight_decay=0.1), AdamW(1e-2), RMS(1e-2, decay=0.3)]
SIZES = ((3, 20), (1, 7), (4, 33), (2, 20), (3, 5))  # pieces and their length, row by row


def pieces(sizes: Sequence[tuple[int, int]] = SIZES, seed: int = 0) -> list[list[Piece]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            Piece(
                Example((0,), tuple(torch.randint(0, 257, (time,), generator=generator).tolist())),
                torch.rand(time, generator=generator, dtype=torch.float64),
                f"document {piece}",
            )
            for piece in range(count)
        ]
        for count, time in sizes
    ]


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1) for _ in range(count)]


def trained_alone(
    lm: LM,
    start: Delta,
    own: Sequence[Piece],
    optimizer: Optimizer,
    state: dict[str, Tensor],
    transforms: Sequence[GradientTransform],
) -> tuple[Delta, dict[str, Tensor]]:
    """One row through peft and `gradient_descent`."""
    private, opened = lm.trainable_copy(LoRA(3), start, *generators(1))

    def losses_of(piece: Piece) -> Losses:
        log_probs, _ = private.step(torch.tensor([piece.example.inputs]))
        loss = token_loss(log_probs, torch.tensor([piece.example.target]), piece.weights[None])
        return Losses.one(loss, piece.document)

    after = gradient_descent(losses_of, opened.parameters, own, optimizer, transforms, state)
    return opened.delta(), after


CHAINS = {"none": (), "clipped": (Clip(0.05),), "masked": (Clip(0.05, per_document=True), Mask("mlp"))}


@pytest.mark.parametrize("transforms", CHAINS.values(), ids=CHAINS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("shape", toys.SHAPES)
def test_training_together_is_training_one_by_one(
    shape: str, optimizer: Optimizer, transforms: Sequence[GradientTransform]
) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    starts: list[Delta] = [Delta(lm.fingerprint)] * len(SIZES)
    states: list[dict[str, Tensor]] = [{}] * len(SIZES)
    # The second time each row goes on from where it is, with its optimizer's state.
    for seed in (0, 1):
        given = pieces(seed=seed)
        ended = train_side_by_side(
            lm, LoRA(3), starts, generators(len(starts)), given, optimizer, transforms, states, slots=4 * seed
        )
        assert ended is not None
        for row, (delta, end) in enumerate(ended):
            wanted, state = trained_alone(lm, starts[row], given[row], optimizer, states[row], transforms)
            assert delta.names == wanted.names and not end.stopped
            assert end.optimizer_state.keys() == state.keys()
            for name in wanted.names:
                assert torch.allclose(delta.difference(name), wanted.difference(name), atol=1e-12), name
            for name in state:
                assert torch.allclose(end.optimizer_state[name], state[name], atol=1e-12), name
            assert max(float(delta.difference(name).abs().max()) for name in delta.names) > 1e-5
        starts, states = [delta for delta, _ in ended], [end.optimizer_state for _, end in ended]


def halves(delta: Delta) -> list[Tensor]:
    return [half for _, part in sorted(delta.parts_of(LowRank).items()) for half in (part.up, part.down)]


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_no_neighbour_changes_a_bit_of_what_is_learnt(shape: str) -> None:
    lm = toys.lm(shape)
    start = Delta(lm.fingerprint)

    def learnt(neighbours: Sequence[Delta], sizes: Sequence[tuple[int, int]], seed: int) -> list[Any]:
        own, others = pieces([(4, 20)]), pieces(sizes, seed)
        starts = [start, *neighbours]
        ended = train_side_by_side(lm, LoRA(3), starts, generators(len(starts)), [*own, *others], AdamW(1e-2))
        assert ended is not None
        return ended

    alone = learnt([], [], 0)[0]
    ready = low_rank(lm, [3, 3, 3])
    broken = [ready[0] * math.nan, ready[1] * math.inf, ready[2] * 1e30]
    for neighbours, sizes in (
        (ready, [(4, 20)] * 3),
        (broken, [(4, 20)] * 3),
        (broken, [(2, 33), (0, 5), (6, 18)]),
        ([start, ready[0]], [(1, 3), (9, 60)]),
    ):
        ended = learnt(neighbours, sizes, 3)
        assert not ended[0][1].stopped
        for one, other in zip(halves(ended[0][0]), halves(alone[0]), strict=True):
            assert torch.equal(one, other)
        if neighbours is broken:
            assert all(
                "smaller learning rate" in end.stopped
                for (_, end), (count, _) in zip(ended[1:], sizes, strict=True)
                if count
            )


def test_a_row_that_diverges_stops_alone_and_says_why() -> None:
    lm = toys.lm()
    method = replace(Finetune.example(), trainable=LoRA(rank=3), optimizer=SGD(0.1), clip=None)
    good = method.init(lm)
    (well,) = method.adapt([good], lm, [Evidence.of("one fish, two fish")], Context())
    broken = replace(well, delta=well.delta * math.nan)
    context = Context()
    evidence = [
        Evidence.of("red fish, blue fish and then"),
        Evidence.of("one fish, two fish, and more of them"),
    ]
    first, second = method.adapt([broken, good], lm, evidence, context)
    assert first is broken and "the loss is nan: use a smaller learning rate" in context.ledger(0).failed
    assert not context.ledger(1).stopped and len(second.history) == 1
    assert (context.ledger(0).steps, context.ledger(1).steps) == (1, 3)


def test_a_batch_is_trained_together_and_gives_what_one_by_one_gives() -> None:
    lm = toys.lm("gpt2")
    method = replace(Finetune.example(), trainable=LoRA(rank=3), optimizer=AdamW(1e-2), max_steps=3)
    read = [
        Evidence.of("one fish, two fish", "red"),
        Evidence.of(),
        Evidence.of("blue fish " * 9, query="so "),
    ]

    def taken(context: Context) -> list[Any]:
        states = method.adapt([method.init(lm)] * 3, lm, read, context)
        return [
            states,
            [(ledger.steps, ledger.tokens_trained) for ledger in (context.ledger(row) for row in range(3))],
        ]

    (together, spent), (apart, the_same) = taken(Context()), taken(Context(budget=Budget(cpu_seconds=1e9)))
    assert spent == the_same and spent[1] == (0, 0) and spent[2][0] == 3
    for row in (0, 2):
        assert together[row].optimizer_state.keys() == apart[row].optimizer_state.keys()
        for name in apart[row].delta.names:
            mine, theirs = together[row].delta.difference(name), apart[row].delta.difference(name)
            assert torch.allclose(mine, theirs, atol=1e-5) and bool(mine.any()) == bool(theirs.any())
    assert isinstance(method.adapted(together, lm), SideBySide)


def test_lora_starts_from_the_seed_alone() -> None:
    lm = toys.lm()
    method = replace(Finetune.example(), trainable=LoRA(rank=3), optimizer=SGD(0.0))

    def starts(query: str, seed: int, **changes: Any) -> list[Tensor]:
        changed = replace(method, **changes)
        evidence = [Evidence.of("one fish", query=query)]
        (state,) = changed.adapt([changed.init(lm)], lm, evidence, Context(seed=seed))
        return [part.down for _, part in sorted(state.delta.parts_of(LowRank).items())]

    first = starts("so ", 0)
    for same in (starts("something else", 0), starts("so ", 0, dropout=True)):
        assert all(torch.equal(one, other) for one, other in zip(first, same, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(first, starts("so ", 1), strict=True))
