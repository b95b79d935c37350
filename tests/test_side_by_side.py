"""Rows with low-rank deltas of their own: one pass gives what the loop gives, and no row sees another."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toys
from toys import low_rank
from uptake.adaptation.delta import Delta, LowRank
from uptake.adaptation.side_by_side import FEWEST, Stack, by_row
from uptake.adaptation.trainable import All
from uptake.errors import BadInput, Diverged, Mismatch
from uptake.lm.base import LM, Segment
from uptake.lm.capabilities import HiddenStates, capability
from uptake.lm.generation import Decoding, Token
from uptake.lm.side_by_side import SideBySide, side_by_side
from uptake.lm.wrappers import Prefixed, Routed


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
    some = [*low_rank(lm), Delta(lm.fingerprint)]
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
    some = low_rank(lm)
    model, apart, ids = side_by_side(lm, some), loop(lm, some), texts(4)
    further = low_rank(lm, [2], seed=1)[0]
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
    some, base = low_rank(lm), Delta(lm.fingerprint)
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
    mine = low_rank(lm, [3])[0]
    some, ids = [mine, *low_rank(lm, [3] * (rows - 1), seed=1)], texts(rows)
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
    some, prompts = low_rank(lm, [3, 3, 2, 1, 4]), ["one fish", "two fish, red fish and", "", "blue", "so "]
    decoding = Decoding(tokens=6, alternatives=2)
    told = side_by_side(lm, some).generate_rows(prompts, decoding)
    assert told == [
        lm.overlay(delta).generate(prompt, 6) for delta, prompt in zip(some, prompts, strict=True)
    ]

    def mine(others: Sequence[Delta], texts: Sequence[str]) -> list[Token]:
        rows = side_by_side(lm, [some[0], *others]).stream_rows([prompts[0], *texts], decoding)
        tokens = []
        try:
            for row, token in rows:
                if row == 0:
                    tokens.append(token)
        except Diverged as error:
            broken.append(str(error))
        return tokens

    broken: list[str] = []
    wanted = mine(some[1:], prompts[1:])
    assert len(wanted) == 6 and not broken
    assert mine([delta * math.nan for delta in some[1:]], ["something", "", "else", "so"]) == wanted
    assert len(broken) == 1 and "not finite" in broken[0], "their own end is told once the others have theirs"


def test_few_rows_are_filled_up_with_idle_ones() -> None:
    lm = toys.lm()
    seen = []
    model = side_by_side(lm, low_rank(lm, [2, 2]))
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
    fixed = side_by_side(lm, low_rank(lm, [2, 2]), slots=7)
    inner = fixed.inner  # type: ignore[attr-defined]
    inner.module.register_forward_pre_hook(
        lambda _, args, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    fixed.step(texts(2))
    assert seen[-1] == 7


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


def test_factors_of_another_shape_are_refused_as_they_are_alone() -> None:
    lm = toys.lm()
    name = "model.layers.0.mlp.up_proj.weight"
    wrong = Delta.of(lm.fingerprint, {name: LowRank(torch.ones(32, 2), torch.ones(2, 48))}, "lora")
    with pytest.raises(Mismatch, match="use the base it was made on"):
        side_by_side(lm, [wrong, *toys.low_rank(lm)])
