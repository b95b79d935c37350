"""Fast weights beside their base as experts of one mixture: exact, bounded, causal, the base where shut."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
from test_fwl import TEXT, ids_of, trained
from uptake.adaptation.trainable import LoRA
from uptake.errors import BadInput
from uptake.lm.base import LM, Segment
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context
from uptake.methods.contract.state import load_state, save_state
from uptake.methods.fwl import FWL, FastWeightState
from uptake.text.types import Document

SHARES = (0.0, 0.02, 0.3)


def both(lm: LM, text: str, **how: object) -> tuple[FWL, torch.Tensor]:
    """Return the mixture, and what the base and the layer alone give each token, [tokens, 2]."""
    alone = trained(lm)
    method = replace(alone, base_weight=0.5, shares=SHARES, **how)
    (said,), _ = alone.read([alone.init(lm)], lm, [Segment(text)], Context())
    (plain,) = lm.score([Segment(text)])
    return method, torch.stack([plain.log_probs, said.log_probs], -1)


def scored(method: FWL, lm: LM, text: str) -> torch.Tensor:
    return method.read([method.init(lm)], lm, [Segment(text)], Context())[0][0].log_probs


@pytest.mark.parametrize("base_weight", [0.1, 0.5, 0.9])
def test_it_is_the_sum_over_all_sequences_of_experts(base_weight: float) -> None:
    lm, text = toys.lm(dtype=torch.float64), "the cat"
    method, said = both(lm, text)
    method = replace(method, base_weight=base_weight)
    prior, total = (base_weight, 1 - base_weight), 0.0
    for share, *path in itertools.product(SHARES, *[(0, 1)] * len(text)):
        chance = prior[path[0]] / len(SHARES)
        for before, after in itertools.pairwise(path):
            chance *= share * prior[after] + (1 - share) * (before == after)
        total += chance * math.exp(said[range(len(text)), path].sum())
    assert float(scored(method, lm, text).sum()) == pytest.approx(math.log(total), abs=1e-9)


LM_OF_BOUND = toys.lm(dtype=torch.float64)


@given(
    st.text("abcd ", min_size=1, max_size=40), st.floats(0.01, 0.99),
    st.sampled_from([(0.0,), SHARES, (0.5,)]), st.floats(0, 30), st.integers(1, 40),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_a_document_never_costs_more_than_the_bound(
    text: str, base_weight: float, shares: tuple[float, ...], rate_scale: float, cut: int
) -> None:
    lm = LM_OF_BOUND
    method = replace(trained(lm), base_weight=base_weight, shares=shares, rate_scale=rate_scale)
    states, bits = [method.init(lm)], 0.0
    for start in range(0, len(text), cut):  # the weights go on from segment to segment
        piece = Segment(text[start : start + cut], text[:start])
        (scores,), states = method.read(states, lm, [piece], Context())
        bits += scores.bits
    base = lm.score([Segment(text)])[0].bits
    assert bits <= base + math.log2(len(shares) / base_weight) + 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shut_it_is_the_base_bit_for_bit(dtype: torch.dtype) -> None:
    lm = toys.lm(dtype=dtype)
    method = replace(trained(toys.lm()), base_weight=0.5, shares=(0.0,))
    shut = torch.tensor([[0.0, -math.inf]], dtype=torch.float64)
    state = replace(method.init(lm), weights=shut)
    (found,), (after,) = method.read([state], lm, [Segment(TEXT)], Context())
    (open_,), _ = method.read([method.init(lm)], lm, [Segment(TEXT)], Context())
    (plain,) = lm.score([Segment(TEXT)])
    assert torch.equal(found.log_probs, plain.log_probs) and torch.equal(after.weights, shut)
    assert not torch.allclose(open_.log_probs, plain.log_probs, atol=1e-3)
    assert after.sums.settled["second"].any(), "it learns behind a shut gate"
    # In generation too, whatever stands in the window.
    ids = ids_of(lm)
    assert torch.equal(method.adapted([state], lm).step(ids)[0], lm.step(ids)[0])


def test_an_untrained_layer_that_learns_nothing_is_the_base_bit_for_bit() -> None:
    lm = toys.lm()
    method = FWL(weights="untrained", rate_scale=0.0, base_weight=0.3)
    assert torch.equal(scored(method, lm, TEXT), lm.score([Segment(TEXT)])[0].log_probs)


def test_no_token_weighs_before_it_was_predicted() -> None:
    lm = toys.lm(dtype=torch.float64)
    method, _ = both(lm, TEXT)
    whole = scored(method, lm, TEXT)
    for place in range(1, len(TEXT)):
        other = scored(method, lm, TEXT[:place] + "#" * (len(TEXT) - place))
        assert torch.equal(other[:place], whole[:place])
        assert place + 1 == len(TEXT) or not torch.equal(other[place + 1 :], whole[place + 1 :])


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_step_by_step_it_is_what_scoring_gives(shape: str) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    method, _ = both(lm, TEXT)
    whole, ids = scored(method, lm, TEXT[:20]), ids_of(lm, TEXT[:20])
    for cuts in ([20], [1] * 20, [7, 1, 1, 11]):
        model = method.adapted([method.init(lm), method.init(lm)], lm)
        cache, parts, at = model.start(), [], 0
        for cut in cuts:
            log_probs, cache = model.step(ids[:, at : at + cut].repeat(2, 1), cache)
            parts.append(log_probs)
            at += cut
        found = torch.cat(parts, 1).gather(-1, ids[:, 1:].repeat(2, 1)[..., None])[..., 0]
        assert torch.allclose(found, whole.expand(2, -1), atol=1e-9)


def test_what_was_read_weighs_as_it_was_scored(tmp_path: Path) -> None:
    lm = toys.lm(window=24, dtype=torch.float64)
    method, _ = both(lm, TEXT)
    segment = Segment(TEXT, "so ")
    _, (state,) = method.read([method.init(lm)], lm, [segment], Context())
    (taken,) = method.adapt([method.init(lm)], lm, [method.evidence_of(segment)], Context())
    start = method.init(lm).weights
    assert torch.equal(taken.weights, state.weights) and not torch.allclose(taken.weights, start, atol=1e-3)
    save_state(state, tmp_path / "state")
    loaded = load_state(FastWeightState, tmp_path / "state", lm)
    assert torch.equal(loaded.weights, state.weights) and loaded.sums.count == state.sums.count


def test_its_loss_is_what_it_scores_and_moves_an_untrained_layer() -> None:
    lm = toys.lm()
    method = FWL(weights="untrained", rate_scale=0.0, base_weight=0.5)
    network = method.fresh(lm)
    (episode,) = method.episodes(lm, TrainingData((Document("a", TEXT * 2),)))
    loss = method.loss(network, lm, episode)
    expected = -scored(method, lm, TEXT * 2).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    loss.backward()
    moved = [each.grad for each in network.parameters() if each.grad is not None]
    assert any(each.abs().max() > 1e-4 for each in moved)


def test_weights_that_cannot_be_are_refused() -> None:
    for weight in (-0.1, 1.0, math.nan):
        with pytest.raises(BadInput, match=f"base_weight {weight}: use a probability below 1"):
            FWL(base_weight=weight)
    with pytest.raises(BadInput, match="shares"):
        FWL(base_weight=0.5, shares=(2.0,))
    with pytest.raises(BadInput, match=r"base_weight 0\.5 beside trainable=lora"):
        FWL(base_weight=0.5, trainable=LoRA())
