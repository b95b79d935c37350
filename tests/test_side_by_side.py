"""Rows with low-rank deltas of their own: one pass gives what the loop gives, and no row sees another."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toys
from uptake.adaptation.delta import Delta, LowRank
from uptake.adaptation.inner_loop import descend, token_loss
from uptake.adaptation.optimizers import RMS, SGD, AdamW, Optimizer
from uptake.adaptation.side_by_side import FEWEST, Stack, by_row
from uptake.adaptation.trainable import All, LoRA
from uptake.adaptation.transforms import Clip, GradientTransform, Losses, Mask
from uptake.errors import BadInput, Mismatch
from uptake.lm.base import LM, Segment
from uptake.lm.capabilities import HiddenStates, capability
from uptake.lm.causal import Causal
from uptake.lm.examples import Example, Piece
from uptake.lm.generation import Decoding, Token
from uptake.lm.side_by_side import SideBySide, side_by_side, train_side_by_side
from uptake.lm.wrappers import Prefixed, Routed
from uptake.methods.contract.method import Budget, Context, Evidence
from uptake.methods.finetune import Finetune

OPTIMIZERS = [SGD(0.1, momentum=0.9, weight_decay=0.1), AdamW(1e-2), RMS(1e-2, decay=0.3)]
SIZES = ((3, 20), (1, 7), (4, 33), (2, 20), (3, 5))  # pieces and their length, row by row


def deltas(lm: Causal, ranks: Sequence[int] = (3, 1, 5, 2), seed: int = 0) -> list[Delta]:
    """Random low-rank deltas over the blocks, of different ranks and scales."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for place, rank in enumerate(ranks):
        begun = LoRA(rank).factors(lm.module, Delta(lm.fingerprint), generator)
        assert begun is not None
        parts = {
            name: replace(
                part, up=torch.randn(part.up.shape, generator=generator).to(part.up) / 9, scale=1 + place / 2
            )
            for name, part in begun.items()
        }
        made.append(Delta.of(lm.fingerprint, parts, "lora"))
    return made


def loop(lm: LM, some: Sequence[Delta]) -> LM:
    return Routed([lm.overlay(delta) for delta in some])


def decoded(model: LM, ids: Tensor, first: int = 4) -> Tensor:
    """Return log-probabilities of the ids, read `first` at once and then one by one, with a cache."""
    cache = model.start()
    with torch.no_grad():
        found, cache = model.step(ids[:, :first], cache)
        parts = [found]
        for place in range(first, ids.shape[1]):
            found, cache = model.step(ids[:, place : place + 1], cache)
            parts.append(found)
    return torch.cat(parts, 1)


def texts(rows: int, time: int = 9, seed: int = 0) -> Tensor:
    return torch.randint(1, 257, (rows, time), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_one_pass_is_the_loop(shape: str) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    some = [*deltas(lm), Delta(lm.fingerprint)]
    model, apart, ids = side_by_side(lm, some), loop(lm, some), texts(5)
    assert isinstance(model, SideBySide) and model.rows == 5
    with torch.no_grad():
        assert torch.allclose(model.step(ids)[0], apart.step(ids)[0], atol=1e-12)
        assert not torch.allclose(model.step(ids)[0], lm.step(ids)[0], atol=1e-2)
        assert torch.equal(model.step(ids)[0][4], lm.step(ids)[0][4]), "an empty delta is the base"
        assert torch.allclose(model.step(ids[:, :1])[0], apart.step(ids[:, :1])[0], atol=1e-12)
    assert torch.allclose(decoded(model, ids), decoded(apart, ids), atol=1e-12)
    words = [Segment("one fish, two fish"[: 5 + 3 * row], "so ") for row in range(5)]
    for one, other in zip(model.score(words), apart.score(words), strict=True):
        assert torch.allclose(one.log_probs, other.log_probs, atol=1e-12)


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_what_is_built_on_it_is_what_is_built_on_the_loop(shape: str) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    some = deltas(lm)
    model, apart, ids = side_by_side(lm, some), loop(lm, some), texts(4)
    further = deltas(lm, [2], seed=1)[0]
    dense = Delta.dense(
        lm.fingerprint, {next(iter(further.names)): further.difference(next(iter(further.names)))}
    )
    pairs: list[tuple[LM, LM]] = [
        (model.at([2, 0, 0, 3]), apart.at([2, 0, 0, 3])),
        (model.at([1]).at([0, 0, 0, 0]), apart.at([1]).at([0, 0, 0, 0])),
        (model.overlay(further), apart.overlay(further)),
        (model.overlay(dense), apart.overlay(dense)),
        (
            Prefixed(model, [[0, 5, 6], [0], [0, 9], [0, 1, 2, 3]]),
            Prefixed(apart, [[0, 5, 6], [0], [0, 9], [0, 1, 2, 3]]),
        ),
    ]
    assert isinstance(model.overlay(further), SideBySide) and isinstance(model.overlay(dense), Routed)
    for one, other in pairs:
        assert torch.allclose(decoded(one, ids), decoded(other, ids), atol=1e-12)
    single, bare = side_by_side(lm, some[:1], slots=6), loop(lm, some[:1])
    assert isinstance(single, SideBySide)
    whole = capability(bare, HiddenStates)
    with torch.no_grad():
        assert torch.allclose(single.hidden(ids[:1])[0], whole.hidden(ids[:1])[0], atol=1e-12)
    assert torch.equal(single.unembedding.weight, whole.unembedding.weight)
    assert single.generate("one ", 8) == bare.generate("one ", 8)
    given = {name: 2 * weight for name, weight in list(lm.module.named_parameters())[:1]}
    with torch.no_grad():
        assert torch.allclose(
            model.with_parameters(given).step(ids)[0], apart.with_parameters(given).step(ids)[0], atol=1e-12
        )
    with pytest.raises(BadInput, match="pick one row"):
        model.trainable_copy(All(), Delta(lm.fingerprint), torch.Generator())


def test_anything_else_takes_the_loop() -> None:
    lm = toys.lm()
    some, base = deltas(lm), Delta(lm.fingerprint)
    dense = Delta.dense(
        lm.fingerprint, {name: torch.ones_like(p) for name, p in lm.module.named_parameters()}
    )
    tied = "model.embed_tokens.weight"  # the output embedding as well
    rows = lm.module.get_parameter(tied).shape
    in_two_places = Delta.of(
        lm.fingerprint, {tied: LowRank(torch.ones(rows[0], 1), torch.ones(1, rows[1]))}, "lora"
    )
    turned = {
        name: LowRank(part.up, part.down, transposed=True)
        for name, part in some[0].parts_of(LowRank).items()
        if "q_proj" in name
    }
    for other in (dense, in_two_places, Delta.of(lm.fingerprint, turned, "lora")):
        assert isinstance(side_by_side(lm, [*some, other]), Routed)
    assert isinstance(side_by_side(lm, [base, base]), Routed)
    assert isinstance(side_by_side(lm, some[:1]), Routed)
    assert isinstance(side_by_side(Prefixed(lm, [[0]] * 4), some), Routed)
    with pytest.raises(Mismatch, match="load the model it was made on"):
        side_by_side(lm, [*some, Delta("another")])
    with pytest.raises(BadInput, match="3 texts for a model with 4 rows"):
        side_by_side(lm, some).step(texts(3))


def test_a_layer_that_does_not_see_rows_apart_is_left_alone() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.apart, self.flat, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.tied, self.twin = nn.Linear(4, 4), nn.Linear(4, 4)
            self.twin.weight = self.tied.weight

        def forward(self, ids: Tensor) -> Tensor:
            states = self.tied(self.apart(torch.ones(*ids.shape, 4)))
            return self.flat(states.flatten(0, 1)) + self.twin(states).flatten(0, 1)

    assert by_row(Mixing(), lambda module, ids: module(ids)) == {"apart.weight": False}


@pytest.mark.parametrize("shape", toys.SHAPES)
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_no_neighbour_changes_a_bit(shape: str, rows: int) -> None:
    lm = toys.lm(shape)
    mine = deltas(lm, [3])[0]
    some, ids = [mine, *deltas(lm, [3] * (rows - 1), seed=1)], texts(rows)
    model = side_by_side(lm, some, slots=FEWEST)
    with torch.no_grad():
        wanted = model.step(ids)[0][0], decoded(model, ids)[0]
    assert torch.isfinite(wanted[0]).all()
    for bad in (math.nan, math.inf, 0.0, 7.0):
        others = [mine, *(delta * bad for delta in some[1:])]
        changed = torch.cat([ids[:1], texts(rows, seed=2)[1:]])
        model = side_by_side(lm, others, slots=FEWEST)
        with torch.no_grad():
            whole = model.step(changed)[0]
            assert torch.equal(whole[0], wanted[0])
            assert torch.equal(decoded(model, changed)[0], wanted[1])
        if not math.isfinite(bad):
            assert torch.isnan(whole[1:]).all(), "the neighbours must be broken for this to show anything"
    # Grids of different size agree on a CPU, which is why rows can come and go.
    for slots in (5, 8, 16, 32):
        grid = side_by_side(lm, some, slots)
        with torch.no_grad():
            assert torch.equal(decoded(grid, ids)[0], wanted[1])


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_texts_of_different_length_go_on_side_by_side(shape: str) -> None:
    lm = toys.lm(shape)
    some, prompts = deltas(lm, [3, 3, 2, 1, 4]), ["one fish", "two fish, red fish and", "", "blue", "so "]
    decoding = Decoding(tokens=6, alternatives=2)
    told = side_by_side(lm, some).generate_rows(prompts, decoding)
    assert told == [
        lm.overlay(delta).generate(prompt, 6) for delta, prompt in zip(some, prompts, strict=True)
    ]

    def mine(others: Sequence[Delta], texts: Sequence[str]) -> list[Token]:
        rows = side_by_side(lm, [some[0], *others]).stream_rows([prompts[0], *texts], decoding)
        return [token for row, token in rows if row == 0]

    wanted = mine(some[1:], prompts[1:])
    assert mine([delta * math.nan for delta in some[1:]], ["something", "", "else", "so"]) == wanted


def test_few_rows_are_filled_up_with_idle_ones() -> None:
    lm = toys.lm()
    seen = []
    model = side_by_side(lm, deltas(lm, [2, 2]))
    assert isinstance(model, SideBySide)
    inner: Any = model.inner
    inner.module.register_forward_pre_hook(
        lambda _, args, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    decoded(model, texts(2))
    assert set(seen) == {FEWEST}
    model.step(texts(2))
    assert seen[-1] == 2, "nothing is gained by idle rows where there are tokens enough"
    model.step(texts(2, time=1))
    assert seen[-1] == FEWEST
    fixed = side_by_side(lm, deltas(lm, [2, 2]), slots=7)
    inner = fixed.inner  # type: ignore[attr-defined]
    inner.module.register_forward_pre_hook(
        lambda _, args, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    fixed.step(texts(2))
    assert seen[-1] == 7


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
    """One row through peft and `descend`."""
    private, opened = lm.trainable_copy(LoRA(3), start, *generators(1))

    def losses_of(piece: Piece) -> Losses:
        log_probs, _ = private.step(torch.tensor([piece.example.inputs]))
        loss = token_loss(log_probs, torch.tensor([piece.example.target]), piece.weights[None])
        return Losses.one(loss, piece.document)

    after = descend(losses_of, opened.parameters, own, optimizer, transforms, state)
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
    ready = deltas(lm, [3, 3, 3])
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


def test_the_stack_alone_on_a_plain_module() -> None:
    """Three rows by hand: scale * up @ down on W, and a gradient that is each row's own."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5)).double().requires_grad_(False)
    parts = [LowRank(torch.randn(5, r).double(), torch.randn(r, 4).double(), 0.5 + r) for r in (1, 2, 3)]
    rows = [{"0.weight": part} for part in parts]
    stack, inputs = Stack(module, ["0.weight"]), torch.randn(3, 6, 4).double()
    stack.put(rows)
    wanted = [
        torch.nn.functional.linear(inputs[i], module[0].weight + parts[i].difference(), module[0].bias)
        for i in range(3)
    ]
    assert torch.allclose(stack.module(inputs), torch.stack(wanted), atol=1e-12)
    leaves = stack.lead(rows, slots=5)
    found = torch.autograd.grad(stack.module(inputs).square().sum((1, 2)), leaves, torch.ones(3).double())
    for i, part in enumerate(parts):
        up, down = part.up.clone().requires_grad_(), part.down.clone().requires_grad_()
        weight = module[0].weight + part.scale * up @ down
        loss = torch.nn.functional.linear(inputs[i], weight, module[0].bias).square().sum()
        by_hand = torch.autograd.grad(loss, [down, up])
        for one, other in zip(stack.gradients_of(i, rows[i], found), by_hand, strict=True):
            assert one is not None and torch.allclose(one, other, atol=1e-10)
