"""Experts weighed by fixed share: exact inference in a hidden Markov model, never far from the best."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
from shelf import Shelf
from uptake import api
from uptake.errors import BadInput
from uptake.lm.base import Segment
from uptake.lm.examples import encode
from uptake.lm.experts import Experts, FixedShare
from uptake.methods.contract.method import Context, Evidence

A, B = "the cat sat on the mat. ", "a dog ran over the hill."
SEGMENT = Segment("the cat sat on the hill", "so ")


def naive(log_probs: list[list[float]], prior: list[float], shares: list[float]) -> float:
    """Return the probability of a text by adding up every sequence of experts, under every share."""
    total = 0.0
    for share in shares:
        for path in itertools.product(range(len(prior)), repeat=len(log_probs)):
            chance = 1 / len(shares)
            for time, expert in enumerate(path):
                stay = time > 0 and path[time - 1] == expert
                chance *= prior[expert] if time == 0 else (1 - share) * stay + share * prior[expert]
                chance *= math.exp(log_probs[time][expert])
            total += chance
    return total


TABLES = st.integers(2, 3).flatmap(
    lambda experts: st.tuples(
        st.lists(st.lists(st.floats(-6, -0.1), min_size=experts, max_size=experts), min_size=1, max_size=6),
        st.lists(st.floats(0.1, 1), min_size=experts, max_size=experts),
    )
)


@settings(max_examples=60, deadline=None)
@given(TABLES, st.sampled_from([(0.0,), (0.2,), (0.0, 0.01, 0.3)]))
def test_the_mixture_is_the_sum_over_all_sequences_of_experts(
    table: tuple[list[list[float]], list[float]], shares: tuple[float, ...]
) -> None:
    log_probs, raw = table
    prior = [each / sum(raw) for each in raw]
    sharing = FixedShare(tuple(prior), shares)
    tokens = torch.tensor(log_probs, dtype=torch.float64)
    along, _ = sharing.along(sharing.start(tokens.device), tokens)
    assert torch.allclose(along.exp().sum(-1), torch.ones(len(tokens), dtype=torch.float64))
    found = (along + tokens).logsumexp(-1).sum().exp().item()
    assert found == pytest.approx(naive(log_probs, prior, list(shares)), rel=1e-9)
    # No sequence of experts does better than by what its switches are worth.
    for path in itertools.product(range(len(prior)), repeat=len(log_probs)):
        best = sum(log_probs[time][expert] for time, expert in enumerate(path))
        assert -math.log2(found) <= -best / math.log(2) + sharing.worst_case(path) + 1e-9


def test_an_expert_that_predicts_the_later_part_takes_over() -> None:
    tokens = torch.tensor([[-1.0, -3.0]] * 100 + [[-3.0, -1.0]] * 100, dtype=torch.float64)
    excess = {}
    for shares in ((0.0,), (0.0, 0.01, 0.1)):
        sharing = FixedShare((0.5, 0.5), shares)
        along, _ = sharing.along(sharing.start(tokens.device), tokens)
        excess[shares] = (-(along + tokens).logsumexp(-1).sum().item() - 200) / math.log(2)
        assert excess[shares] <= sharing.worst_case([0] * 100 + [1] * 100)
    # By Bayes' rule alone a whole text is one expert's or the other's, and either loses 200 nats on a half.
    assert excess[(0.0,)] > 280 and excess[(0.0, 0.01, 0.1)] < 15


def test_scores_steps_and_predictions_are_one_distribution() -> None:
    parts = [toys.lm("llama", seed=seed, dtype=torch.float64) for seed in (0, 5, 7)]
    model = Experts(parts, FixedShare((0.5, 0.25, 0.25), (0.0, 0.05)))
    ids = torch.randint(1, 200, (1, 12), generator=torch.Generator().manual_seed(0))
    whole, _ = model.step(ids)
    assert torch.allclose(whole.exp().sum(-1), torch.ones(1, 12, dtype=torch.float64))
    cache, found = model.start(), []
    for place in range(12):
        log_probs, cache = model.step(ids[:, place : place + 1], cache)
        found.append(log_probs)
    assert torch.allclose(torch.cat(found, 1), whole, atol=1e-9)
    (scores,) = model.score([SEGMENT])
    example = encode(model.tokenizer, SEGMENT.context, SEGMENT.text)
    (predicted,) = model.predictions([example])
    assert torch.allclose(predicted.gather(-1, torch.tensor(example.target)[:, None])[:, 0], scores.log_probs)
    own = [part.score([SEGMENT])[0].log_probs.tolist() for part in parts]
    tokens = [list(each) for each in zip(*own, strict=True)][:6]
    expected = naive(tokens, [0.5, 0.25, 0.25], [0, 0.05])
    assert scores.log_probs[:6].sum().exp().item() == pytest.approx(expected)


def test_a_mixture_of_methods_costs_little_more_than_the_best_of_them() -> None:
    lm = toys.lm(dtype=torch.float64)
    named = ["in-context", "ttt-nn", "in-context/ttt-nn"]
    specs = api.method_specs(named, ["optimizer=sgd(learning_rate=0.05)", "base_weight=0.2"])
    assert dict(specs[named[2]].method.parts)["ttt_nn"] == specs["ttt-nn"].method
    bits = {"base": lm.score([SEGMENT])[0].bits}
    for name, spec in specs.items():
        (state,) = spec.method.adapt([spec.method.init(lm)], lm, [Evidence.of(A, B, query="so ")], Context())
        bits[name] = spec.method.adapted([state], lm).score([SEGMENT])[0].bits
    mixed = bits.pop(named[-1])
    assert len(set(bits.values())) == 3
    tokens = len(encode(lm.tokenizer, SEGMENT.context, SEGMENT.text).target)
    sharing = FixedShare((0.2, 0.4, 0.4), (0.0, 0.01, 0.1))
    for expert, name in enumerate(("base", "in-context", "ttt-nn")):
        assert mixed <= bits[name] + sharing.worst_case([expert] * tokens)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("in-context/", "a name is missing beside a /"),
        ("in-context/in-context", "names a method twice"),
        ("in-context/base", "leave base out"),
        ("in-context/dynamic-evaluation", "reads a text in pieces"),
        ("in-context/nothing", "no method 'nothing'"),
    ],
)
def test_what_makes_no_mixture_is_refused(name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        api.method_specs([name])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("base_weight=1", "use a probability"),
        ("shares=(1.5,)", "from 0 to 1"),
        ("shares=(0.1,0.1)", "name each once"),
        ("shares=()", "one or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        api.method_specs(["in-context/ttt-nn"], [setting])
    with pytest.raises(BadInput, match="above 0"):
        FixedShare((1.0, 0.0))
    with pytest.raises(BadInput, match="2 models for a prior over 1"):
        Experts([toys.lm(), toys.lm()], FixedShare((1.0,)))


def test_parts_are_set_by_name_and_each_reads_its_own() -> None:
    name = "in-context/ttt-nn+knn-lm"
    spec = api.method_specs([name], [f"{name}.ttt_nn_and_knn_lm.ttt_nn.learning_rate=0.5"])[name]
    parts = dict(spec.method.parts)  # type: ignore[attr-defined]
    assert parts["ttt_nn_and_knn_lm"].ttt_nn.optimizer.learning_rate == 0.5
    found = spec.select.choose(Shelf.of(toys.lm(), A, B), 2, np.random.default_rng(0))
    in_context, both = found.parts
    assert [len(found.passages), len(in_context.passages)] == [2, 2]
    assert [len(part.passages) for part in both.parts] == [2, 0]
