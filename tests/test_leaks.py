"""No method scores a token with a model that has seen it: what cannot be foretold is not foretold.

Letters are drawn evenly and apart from each other. Under any model that sees none before scoring
it, the chance that n of them cost less than n log(letters) - c nats in all is at most exp(-c): the
likelihood ratio against the true source has expectation one (Ville 1939). No method's cleverness
comes into it, so every method there is goes through here, found by its name.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch

import toys
from test_conformance import SUBJECTS as EVERY
from uptake.lm.base import LM, Segment
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context, Evidence, Method
from uptake.text.tokenizer import Tokenizer

# Text so far is read without a store.
SUBJECTS = {name: subject.method for name, subject in EVERY.items() if not subject.stored}
LETTERS = "abcdefgh"
SEGMENT, COUNT = 24, 8
SLACK = 14.0  # nats; less than one run in a million is this lucky


@cache
def lm() -> Causal:
    """A toy model that has learnt that the letters come evenly, so that the least leak shows."""
    module, ids = toys.module("llama"), torch.tensor(toys.tokenizer()(LETTERS)["input_ids"])
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(60):
        drawn = ids[torch.randint(len(LETTERS), (8, 40), generator=generator)]
        drawn[:, 0] = 0
        loss = module(drawn, labels=drawn).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Causal(module, Tokenizer(toys.tokenizer()), "even letters")


def text() -> str:
    generator = torch.Generator().manual_seed(1)
    return "".join(LETTERS[i] for i in torch.randint(len(LETTERS), (SEGMENT * COUNT,), generator=generator))


def spent(method: Method[Any], model: LM) -> float:
    """Return what a text costs, read from its start a segment after another, in nats."""
    whole, states, nats = text(), [method.init(model)], 0.0
    for start in range(0, len(whole), SEGMENT):
        segment = Segment(whole[start : start + SEGMENT], whole[max(0, start - SEGMENT) : start])
        (scores,), states = method.read(states, model, [segment], Context())
        assert len(scores.log_probs) == SEGMENT
        nats -= scores.log_probs.sum().item()
    return nats


@dataclass(frozen=True)
class Peeking:
    """A method that reads first and scores then: what the test is there to find."""

    method: Method[Any]

    def init(self, model: LM) -> Any:
        return self.method.init(model)

    def read(self, states: Any, model: LM, segments: Any, context: Context) -> Any:
        evidence = [Evidence.of(segment.text, query=segment.context) for segment in segments]
        states = self.method.adapt(states, model, evidence, context)
        return self.method.adapted(states, model).score(segments), states


@pytest.mark.parametrize("name", SUBJECTS)
def test_letters_that_nobody_can_foretell_are_not_foretold(name: str) -> None:
    assert spent(SUBJECTS[name], lm()) >= SEGMENT * COUNT * math.log(len(LETTERS)) - SLACK


@pytest.mark.parametrize("name", ["finetune", "dynamic-evaluation"])
def test_whoever_peeks_is_found(name: str) -> None:
    peeking: Any = Peeking(SUBJECTS[name])
    assert spent(peeking, lm()) < SEGMENT * COUNT * math.log(len(LETTERS)) - SLACK


def test_the_bound_is_close_to_what_the_toy_costs() -> None:
    cost = spent(SUBJECTS["base"], lm()) / (SEGMENT * COUNT)
    assert cost == pytest.approx(math.log(len(LETTERS)), rel=0.02)
