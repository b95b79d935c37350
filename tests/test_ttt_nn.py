"""TTT-NN against a plain PyTorch loop, and what its settings promise."""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import toys
from uptake.adaptation.optimizers import SGD, AdamW, Optimizer
from uptake.adaptation.token_weights import Uniform
from uptake.adaptation.trainable import All, LoRA, Top
from uptake.errors import BadInput
from uptake.lm.base import Segment
from uptake.lm.examples import Example, separate_pieces
from uptake.methods import find
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.spending import Budget
from uptake.methods.finetune import Finetune

NEIGHBOURS = ["def add(a, b):\n    return a + b\n", "for i in range(10):\n    print(i)\n" * 4, "import os"]
TARGET, PREFIX = "def sub(a, b):\n    return a - b\n", "# arithmetic\n"


def naive_bits(module: Any, optimizer: Any, window: int, clip: float) -> float:
    """The published loop, written plainly: one step a piece of a neighbour, then score."""
    encode = lambda text: [byte_id[letter] for letter in text.encode()]  # noqa: E731
    byte_id = {byte: toys.tokenizer()(bytes([byte]).decode("latin1"))["input_ids"][0] for byte in range(128)}
    for text in NEIGHBOURS:
        ids = [0, *encode(text)]
        for start in range(0, len(ids) - 1, window):
            piece = torch.tensor([ids[start : start + window + 1]])
            logits = module(piece[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits[0], piece[0, 1:])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizer.step()
    ids = torch.tensor([[0, *encode(PREFIX), *encode(TARGET)]])
    with torch.no_grad():
        nll = torch.nn.functional.cross_entropy(module(ids[:, :-1]).logits[0], ids[0, 1:], reduction="none")
    return float(nll[len(PREFIX) :].sum()) / math.log(2)


@pytest.mark.parametrize("shape", toys.SHAPES)
@pytest.mark.parametrize("optimizer", [AdamW(1e-3), SGD(0.05), SGD(0.02, momentum=0.9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_a_plain_loop(shape: str, optimizer: Optimizer, dtype: torch.dtype) -> None:
    lm = toys.lm(shape, dtype=dtype)
    plain = copy.deepcopy(lm.module).requires_grad_(True)
    if isinstance(optimizer, AdamW):
        reference: Any = torch.optim.AdamW(plain.parameters(), lr=optimizer.learning_rate, weight_decay=0.01)
    else:
        reference = torch.optim.SGD(
            plain.parameters(), lr=optimizer.learning_rate, momentum=optimizer.momentum
        )
    expected = naive_bits(plain, reference, lm.window, 1.0)
    method = Finetune(optimizer=optimizer)
    (state,) = method.adapt([method.init(lm)], lm, [Evidence.of(*NEIGHBOURS)], Context())
    (scores,) = method.adapted([state], lm).score([Segment(TARGET, PREFIX)])
    assert scores.bits == pytest.approx(expected, rel=1e-5 if dtype == torch.float32 else 1e-11)
    assert scores.bits != pytest.approx(lm.score([Segment(TARGET, PREFIX)])[0].bits, rel=1e-3)


def published_bits(module: Any, optimizer: Any, window: int) -> float:
    """The published code's `train_single`: no opening token, pieces one after another, none overlapping."""
    tokenizer = toys.tokenizer()
    for text in NEIGHBOURS:
        encoded = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        for begin in range(0, encoded.shape[1], window):
            inputs = encoded[:, begin : begin + window]
            if inputs.shape[1] < 2:  # the published loss would be a mean of nothing
                continue
            optimizer.zero_grad()
            module(input_ids=inputs, labels=inputs.clone()).loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
    prompt, target = (tokenizer(each, add_special_tokens=False).input_ids for each in (PREFIX, TARGET))
    ids = torch.tensor([[0, *prompt, *target]])
    with torch.no_grad():
        nll = torch.nn.functional.cross_entropy(module(ids[:, :-1]).logits[0], ids[0, 1:], reduction="none")
    return float(nll[len(prompt) :].sum()) / math.log(2)


@pytest.mark.parametrize(
    ("shape", "chunk"), [("llama", None), ("gpt2", 13), ("neox", 1 + len(NEIGHBOURS[0]))]
)
def test_without_the_opening_token_it_is_the_published_code(shape: str, chunk: int | None) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    plain = copy.deepcopy(lm.module).requires_grad_(True)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, eps=1e-8, weight_decay=0.01)
    expected = published_bits(plain, optimizer, chunk or lm.window)
    found = []
    for how in (
        {"opening_token": False},
        {"reference": True},
        {"reference": True, "opening_token": True},
        {},
    ):
        method = Finetune(optimizer=AdamW(1e-3), chunk_tokens=chunk, **how)
        (state,) = method.adapt([method.init(lm)], lm, [Evidence.of(*NEIGHBOURS)], Context())
        found.append(method.adapted([state], lm).score([Segment(TARGET, PREFIX)])[0].bits)
    assert found[0] == pytest.approx(expected, rel=1e-8)  # transformers takes its loss in float32
    assert found[0] == found[1]
    assert found[2] == found[3] != pytest.approx(expected, rel=1e-6)


def test_rows_side_by_side_learn_without_the_opening_token_too() -> None:
    lm = toys.lm(dtype=torch.float64)
    method = Finetune(optimizer=AdamW(1e-3), trainable=LoRA(rank=4), opening_token=False)
    evidence = [Evidence.of(text) for text in NEIGHBOURS[:2]]
    states = method.adapt([method.init(lm)] * 2, lm, evidence, Context())
    alone = [method.adapt([method.init(lm)], lm, [one], Context())[0] for one in evidence]
    for both, single in zip(states, alone, strict=True):
        pairs = zip(both.delta.parts.values(), single.delta.parts.values(), strict=True)
        assert all(torch.allclose(one.up, other.up, rtol=1e-9) for one, other in pairs)
    opened = replace(method, opening_token=None).adapt([method.init(lm)], lm, evidence[:1], Context())
    assert opened[0].delta != alone[0].delta


@given(
    context=st.lists(st.integers(1, 9), max_size=12),
    target=st.lists(st.integers(1, 9), max_size=20),
    size=st.integers(2, 9),
)
def test_pieces_without_the_opening_token(context: list[int], target: list[int], size: int) -> None:
    spans = tuple((place, place + 1) for place in range(len(target)))
    found = [*separate_pieces(Example((0, *context), tuple(target), spans), size)]
    text, learnt = [*context, *target], []
    # Token by token: what begins a piece is read alone, as is a prompt.
    for place in range(len(context), len(text)):
        if place % size:
            learnt.append((place - len(context), tuple(text[place - place % size : place]), text[place]))
    told = [
        (start + place, (*piece.context, *piece.target[:place]), token)
        for start, piece in found
        for place, token in enumerate(piece.target)
    ]
    assert told == learnt
    assert all(piece.spans == spans[start : start + len(piece.target)] for start, piece in found)
    assert all(len(piece.inputs) < size for _, piece in found)


def test_token_weights_belong_to_the_tokens_that_are_learnt() -> None:
    lm, text = toys.lm(), "abcdefghij"
    weights = [float(place) for place in range(len(text))]

    @dataclass(frozen=True)
    class Rising(Uniform):
        def of(self, passage: Any, spans: Any, before: Any) -> Any:
            return torch.tensor(weights)

    method = Finetune(token_weights=Rising(), chunk_tokens=4, opening_token=False)
    found = [piece.weights.tolist() for piece in method.pieces(lm, Evidence.of(text).passages)]
    assert found == [[1, 2, 3], [5, 6, 7], [9]]


def test_the_text_so_far_keeps_its_opening_token() -> None:
    with pytest.raises(BadInput, match="after_context"):
        Finetune(opening_token=False, after_context=True)
    assert Finetune(reference=True, after_context=True).opens and not Finetune(reference=True).opens


def bits(method: Finetune, *takes: list[str], context: Context | None = None) -> float:
    lm = toys.lm()
    state = method.init(lm)
    for texts in takes:
        (state,) = method.adapt([state], lm, [Evidence.of(*texts, query="q")], context or Context())
    return method.adapted([state], lm).score([Segment(TARGET, PREFIX)])[0].bits


@pytest.mark.parametrize("optimizer", [AdamW(1e-3), SGD(0.02, momentum=0.9)], ids=str)
@pytest.mark.parametrize("trainable", [None, Top(1), LoRA(rank=4)], ids=str)
def test_several_k_from_one_pass_are_the_passes_apart(optimizer: Optimizer, trainable: Any) -> None:
    method = (
        Finetune(optimizer=optimizer)
        if trainable is None
        else Finetune(optimizer=optimizer, trainable=trainable)
    )
    together = bits(method, NEIGHBOURS)
    in_parts = bits(method, NEIGHBOURS[:1], NEIGHBOURS[1:])
    assert in_parts == pytest.approx(together, rel=1e-6)


def test_caps_on_steps_and_tokens_hold() -> None:
    method = Finetune(optimizer=SGD(0.05))
    first_only = bits(method, NEIGHBOURS[:1])
    assert bits(replace(method, max_steps=1), NEIGHBOURS) == first_only
    context = Context(budget=Budget(tokens=len(NEIGHBOURS[0])))
    assert bits(method, NEIGHBOURS, context=context) == first_only
    assert context.ledger(0).tokens_trained == len(NEIGHBOURS[0]) and context.ledger(0).steps == 1
    assert bits(replace(method, max_tokens=0), NEIGHBOURS) == bits(method)


def test_cancelling_stops_between_steps() -> None:
    context = Context()
    context.cancelled = lambda: context.ledger(0).steps >= 1
    method = Finetune(optimizer=SGD(0.05))
    assert bits(method, NEIGHBOURS, context=context) == bits(method, NEIGHBOURS[:1])


def test_order_and_learning_rate_zero() -> None:
    method = Finetune(optimizer=SGD(0.05))
    reverse = replace(method, order="farthest-first")
    assert bits(reverse, NEIGHBOURS) == bits(method, NEIGHBOURS[::-1]) != bits(method, NEIGHBOURS)
    assert bits(Finetune(optimizer=SGD(0.0)), NEIGHBOURS) == bits(method)


def test_reference_mode_hands_the_optimiser_on_and_so_depends_on_order() -> None:
    lm = toys.lm()
    for reference in (True, False):
        method = Finetune(optimizer=AdamW(1e-3), reference=reference)

        def second(first: str, method: Finetune = method) -> float:
            (state,) = method.adapt([method.init(lm)], lm, [Evidence.of(first)], Context())
            following = method.next_state(state, lm)
            assert not following.delta.names, "weights must be the base's again"
            (state,) = method.adapt([following], lm, [Evidence.of("the end")], Context())
            return method.adapted([state], lm).score([Segment(TARGET)])[0].bits

        assert (second("aaaa") != second("zzzz")) == reference
        assert method.sequential == reference


@pytest.mark.parametrize("trainable", [All(), LoRA(rank=4)], ids=str)
@pytest.mark.parametrize("name", ["finetune", "dynamic-evaluation"])
def test_the_optimizer_state_stays_only_where_somebody_reads_on(name: str, trainable: Any) -> None:
    lm, rows = toys.lm(), 8
    method = replace(find(name).method, optimizer=AdamW(1e-3), trainable=trainable)
    evidence = [Evidence.of(*NEIGHBOURS, query=f"{row}") for row in range(rows)]
    begun = [method.init(lm)] * rows
    going_on = method.adapt(begun, lm, evidence, Context())
    ended = method.adapt(begun, lm, evidence, Context(continues=False))
    for one, other in zip(going_on, ended, strict=True):
        names = one.delta.names
        assert all(torch.equal(one.delta.difference(n), other.delta.difference(n)) for n in names)
        # Two averages a weight that trains: eight rows would hold sixteen copies for nothing.
        trained = [value for part in one.delta.parts.values() for value in part.tensors().values()]
        kept = sum(value.numel() for value in one.optimizer_state.values())
        assert kept > 2 * sum(value.numel() for value in trained)
        assert not other.optimizer_state and other.ended and not one.ended
    assert not Context(continues=False).of(0).continues
    method.adapt(going_on, lm, evidence, Context())
    with pytest.raises(BadInput, match=r"Context\(continues=True\)"):
        method.adapt(ended, lm, evidence, Context())
    (kept,) = replace(method, reference=True).adapt(begun[:1], lm, evidence[:1], Context(continues=False))
    assert kept.optimizer_state and not kept.ended, "the next query goes on from it"


def test_a_prompt_is_read_but_not_learnt() -> None:
    from uptake.text.types import Found, Passage

    lm, method = toys.lm(), Finetune(optimizer=SGD(0.05))
    context = Context()
    found = Found((Passage(1, "", prompt="only a prompt"),), (0.0,))
    (state,) = method.adapt([method.init(lm)], lm, [Evidence(found)], context)
    assert context.ledger(0).steps == 0
    assert method.adapted([state], lm).score([Segment(TARGET)])[0].bits == lm.score([Segment(TARGET)])[0].bits


def naive_drops(lm: Any, rate: float) -> list[float]:
    """How much likelier each neighbour is than under the base when its turn comes, in nats a token."""
    plain = copy.deepcopy(lm.module).requires_grad_(True)
    optimizer = torch.optim.SGD(plain.parameters(), lr=rate)
    drops = []
    for text in NEIGHBOURS[::-1]:
        ids = torch.tensor([lm.tokenizer.opened("") + lm.tokenizer.encode(text)[0]])
        for begin in range(0, ids.shape[1] - 1, lm.window):
            piece = ids[:, begin : begin + lm.window + 1]
            losses = [
                torch.nn.functional.cross_entropy(module(piece[:, :-1]).logits[0], piece[0, 1:])
                for module in (lm.module, plain)
            ]
            drops.append((losses[0] - losses[1]).item())
            optimizer.zero_grad()
            losses[1].backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()
    return drops


def test_reading_ends_where_the_next_neighbour_promises_too_little() -> None:
    lm = toys.lm(dtype=torch.float64)
    drops = naive_drops(lm, 0.05)
    assert drops[0] == 0 and len(drops) > 3 and len({*drops}) == len(drops)
    evidence = Evidence.of(*NEIGHBOURS[::-1], query=PREFIX)
    method = Finetune(optimizer=SGD(0.05))
    for least in (-100.0, *(drop + side for drop in drops for side in (-1e-6, 1e-6)), 100.0):
        # The first one is always read; then reading ends before the first that has too little.
        read = next((place for place, drop in enumerate(drops) if place and drop < least), len(drops))
        some, all_ = Context(), Context()
        (found,) = replace(method, least_drop=least).adapt([method.init(lm)], lm, [evidence], some)
        (expected,) = replace(method, max_steps=read).adapt([method.init(lm)], lm, [evidence], all_)
        assert found.delta.fingerprint == expected.delta.fingerprint, least
        assert some.ledger(0).steps == min(read + 1, len(drops)), "the pass that ended it is charged"
    assert not replace(method, least_drop=0.0).incremental and method.incremental


def test_low_rank_rows_end_each_by_itself() -> None:
    lm = toys.lm()
    method = Finetune(trainable=LoRA(2), optimizer=SGD(0.5), least_drop=100.0)
    context = Context()
    evidence = [Evidence.of(*NEIGHBOURS[:count], query=str(count)) for count in (1, 3)]
    states = method.adapt([method.init(lm)] * 2, lm, evidence, context)
    alone = [method.adapt([method.init(lm)], lm, [each], Context())[0] for each in evidence]
    assert [state.delta.fingerprint for state in states] == [state.delta.fingerprint for state in alone]
    with pytest.raises(BadInput, match="least_drop nan"):
        Finetune(least_drop=float("nan"))
