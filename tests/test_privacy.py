"""Private training: what one unit can change, what the noise is, what is claimed, and what is refused."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import toys
from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import GradientDescent
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.privacy.accountant import epsilon_of, noise_for
from uptake.adaptation.privacy.clipping import ClippedSum
from uptake.adaptation.privacy.dp import DP, Claim
from uptake.adaptation.privacy.noise import Secret, Seeded
from uptake.adaptation.token_weights.tfidf import TfIdf
from uptake.adaptation.trainable import LoRA, Top, Trainable
from uptake.adaptation.transforms import Losses
from uptake.errors import BadInput
from uptake.lm import private_training
from uptake.lm.examples import Piece, encode
from uptake.lm.private_training import noised, passes, train_privately
from uptake.lm.scoring import losses
from uptake.methods.contract.method import Context, Evidence, MethodSpec
from uptake.methods.contract.naming import method_specs
from uptake.methods.contract.spending import Budget
from uptake.methods.contract.state import load_state, save_state
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.finetune import Finetune
from uptake.text.select import Nothing
from uptake.text.types import Document, Found, Passage

NO_NOISE = DP(epsilon=None, noise=0.0, clip=math.inf, steps=1, batch=4, seed=0)
TEXTS = ["the cat sat on the mat", "a dog", "xx yy xx yy xx", "once more", "zz", "and then some"]


def units(lm: Any, texts: Sequence[Sequence[str]]) -> list[list[Piece]]:
    """One unit a sequence of texts, each text a piece of it."""
    return [
        [
            Piece(example, torch.ones(len(example.target), dtype=lm.dtype), place)
            for text in own
            for example in [encode(lm.tokenizer, "", text)]
        ]
        for place, own in enumerate(texts)
    ]


def opened(trainable: Trainable | None = None) -> tuple[Any, Any, Any]:
    lm = toys.lm(dtype=torch.float64)
    private, copy = lm.trainable_copy(
        trainable or LoRA(2), Delta(lm.fingerprint), torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        for name, parameter in copy.parameters.items():
            if "lora_B" in name:
                parameter += 0.1
    return lm, private, copy


def step(texts: Sequence[Sequence[str]], dp: DP, trainable: Trainable | None = None) -> dict[str, Tensor]:
    """The change that one training makes, by parameter, at a rate of 1 and without momentum."""
    lm, private, copy = opened(trainable)
    before = {name: parameter.detach().clone() for name, parameter in copy.parameters.items()}
    all_units = units(lm, texts)
    claim = dp.claim(len(all_units))
    train_privately(private, copy, all_units, dp, claim, GradientDescent(copy.parameters, SGD(1.0)))
    return {name: parameter.detach() - before[name] for name, parameter in copy.parameters.items()}


def size(change: dict[str, Tensor], other: dict[str, Tensor] | None = None) -> float:
    gaps = [each - (other[name] if other else 0) for name, each in change.items()]
    return math.sqrt(sum(float(gap.square().sum()) for gap in gaps))


# One unit


def summed(texts: Sequence[Sequence[str]], clip: float) -> dict[str, Tensor]:
    """The clipped sum of all units, each of them drawn."""
    dp = replace(NO_NOISE, clip=clip, batch=len(texts))
    found = step(texts, dp)
    return {name: -each * len(texts) for name, each in found.items()}


@given(
    st.lists(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3), min_size=2, max_size=4),
    st.integers(0, 3),
)
@settings(max_examples=5, deadline=None)
def test_one_unit_more_changes_the_sum_by_the_clip_at_most(texts: list[list[str]], place: int) -> None:
    """Adjacent data sets differ by a whole unit: a document or a user with all pieces, never a piece."""
    without = [own for number, own in enumerate(texts) if number != place % len(texts)]
    apart = size(summed(texts, 0.3), summed(without, 0.3))
    assert 0 < apart <= 0.3 * (1 + 1e-6)


def test_a_mutant_that_clips_pieces_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [["a dog"], [*TEXTS]]
    assert size(summed(texts, 0.3), summed(texts[:1], 0.3)) <= 0.3 * (1 + 1e-6)

    class ByPiece(ClippedSum):
        def add(self, run: Any, owners: Sequence[int]) -> None:
            super().add(run, range(len(owners)))

    monkeypatch.setattr(private_training, "ClippedSum", ByPiece)
    assert size(summed(texts, 0.3), summed(texts[:1], 0.3)) > 0.45


def test_a_user_is_all_documents_of_a_group_and_a_document_all_its_pieces() -> None:
    documents = [Document(f"d{n}", text, f"u{n % 2}") for n, text in enumerate(TEXTS)]
    found = tuple(Passage.whole(document) for document in documents)
    lm = toys.lm()

    def claims(unit: Any, passages: Sequence[Passage], **more: Any) -> Claim:
        dp = replace(NO_NOISE, unit=unit)
        method = Finetune(trainable=LoRA(2), optimizer=SGD(0.1), privacy=dp, **more)
        evidence = Evidence(Found(tuple(passages), (0.0,) * len(passages)))
        (state,) = method.adapt([method.init(lm)], lm, [evidence], Context())
        assert state.claim is not None
        return state.claim

    assert claims("document", found).units == 6 and claims("user", found).units == 2
    # However finely documents are cut.
    halves = [replace(p, id=p.id + k, text=p.text[k::2]) for p in found for k in (0, 1)]
    assert claims("document", halves, chunk_tokens=4).units == 6
    with pytest.raises(BadInput, match="kept for each document, and the text 'a' names no document"):
        claims("document", [Passage(1, "a")])
    with pytest.raises(BadInput, match="names no user: give each document the `group`"):
        claims("user", [Passage(1, "a", document="d")])


# The step


def test_without_noise_and_clip_it_is_the_plain_step() -> None:
    texts = [[text] for text in TEXTS[:4]]
    lm, private, copy = opened()
    before = {name: parameter.detach().clone() for name, parameter in copy.parameters.items()}
    pieces = [unit[0] for unit in units(lm, texts)]
    plain = GradientDescent(copy.parameters, SGD(1.0))
    values = losses(private, [p.example for p in pieces], [p.weights for p in pieces])
    plain.step(Losses(values / 4, [*range(4)]))
    found = step(texts, NO_NOISE)
    for name, parameter in copy.parameters.items():
        assert torch.allclose(found[name], parameter - before[name], rtol=1e-6, atol=1e-9), name


def test_the_expected_number_of_units_divides_whatever_was_drawn() -> None:
    """A divisor that is the number drawn would tell who was."""
    texts = [[text] for text in TEXTS]
    dp = replace(NO_NOISE, batch=3)
    drawn = Seeded(0).chosen(6, 0.5)
    assert len(drawn) not in (0, 3), "a seed that tells the two apart"
    alone = step([texts[place] for place in drawn], replace(NO_NOISE, batch=len(drawn)))
    found = step(texts, dp)
    assert size({n: found[n] * 3 for n in found}, {n: alone[n] * len(drawn) for n in alone}) < 1e-6


def test_noise_is_what_was_said_on_every_parameter_drawn_or_not() -> None:
    dp = DP(epsilon=None, noise=2.0, clip=0.5, steps=1, batch=4, delta=0.01, seed=0)
    claim = dp.claim(4)
    zeros = {"a": torch.zeros(400, 500), "b": torch.zeros(7)}
    found = noised(zeros, dp, claim, Seeded(0))
    assert float(found["a"].std()) == pytest.approx(2.0 * 0.5 / 4, rel=0.02)
    assert float(found["a"].mean()) == pytest.approx(0, abs=0.005) and found["b"].all()
    # A step whose draw is empty still takes noise, on weights that got no gradient too.
    empty = DP(epsilon=None, noise=1.0, clip=0.1, steps=1, batch=1, delta=0.01, seed=1)
    assert not Seeded(1_000_003).chosen(2, 0.5)
    assert all(change.all() for change in step([["a"], ["b"]], empty).values())


def test_a_seed_repeats_and_says_so_a_secret_does_neither() -> None:
    dp = DP(epsilon=None, noise=1.0, clip=0.1, steps=2, batch=2, delta=0.01, seed=3)
    texts = [[text] for text in TEXTS[:4]]
    assert size(step(texts, dp), step(texts, dp)) == 0
    assert size(step(texts, dp), step(texts, replace(dp, seed=4))) > 0
    assert size(step(texts, replace(dp, seed=None)), step(texts, replace(dp, seed=None))) > 0
    assert dp.claim(4).said().startswith("seeded: no privacy") and not dp.claim(4).holds
    assert replace(dp, seed=None).claim(4).holds


@pytest.mark.parametrize("source", [Secret(), Seeded(0)], ids=["secret", "seeded"])
def test_draws_are_normal_and_poisson(source: Any) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    drawn = source.normal(torch.empty(200_001, dtype=torch.float64))
    assert abs(float(drawn.mean())) < 0.02 and abs(float(drawn.var()) - 1) < 0.03
    assert abs(float(drawn.pow(4).mean()) - 3) < 0.2, "its tails"
    assert abs(float((drawn[:-1] * drawn[1:]).mean())) < 0.02, "one tells nothing of the next"
    counts = [len(source.chosen(400, 0.25)) for _ in range(200)]
    assert np.mean(counts) == pytest.approx(100, abs=4) and np.var(counts) == pytest.approx(75, rel=0.5)
    assert source.chosen(5, 1.0) == [0, 1, 2, 3, 4]
    assert torch.equal(torch.random.get_rng_state(), before), "the global state is left alone"


@given(st.lists(st.lists(st.integers(1, 9), min_size=0, max_size=4), max_size=8), st.integers(1, 30))
def test_passes_hold_whole_units_each_once(lengths: list[list[int]], most: int) -> None:
    lm = toys.lm()
    made = [
        [Piece(encode(lm.tokenizer, "", "x" * n), torch.ones(n), place) for n in own]
        for place, own in enumerate(lengths)
    ]
    groups = [*passes(made, most)]
    told = [unit[0].document for group in groups for unit in group]
    assert sorted(map(str, told)) == sorted(str(place) for place, own in enumerate(lengths) if own)
    for group in groups:
        pieces = [piece for unit in group for piece in unit]
        cells = len(pieces) * max(len(piece.example.inputs) for piece in pieces)
        assert cells <= most or len(group) == 1


# The accountant


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "right"),
    [
        (1.0, 0.1, 50, 5.1483), (0.6, 0.1, 50, 15.0115), (1.0, 0.02, 1000, 3.8991), (0.5, 0.05, 100, 18.1938),
        (2.0, 1.0, 10, 7.5113), (0.8, 1.0, 1, 5.6796), (20.0, 0.1, 50, 0.1108), (60.0, 1.0, 100, 0.5945),
    ],
)  # fmt: skip
def test_epsilon_is_that_of_another_accountant(noise: float, rate: float, steps: int, right: float) -> None:
    """The figures are dp-accounting 0.6.0's PLDAccountant, Poisson-sampled Gaussian, delta 1e-5."""
    assert right - 1e-3 <= epsilon_of(noise, rate, steps, 1e-5) <= right + 0.015


@given(st.floats(0.5, 20), st.floats(0.01, 1), st.integers(1, 200))
@settings(max_examples=3, deadline=None)
def test_the_noise_that_is_solved_for_keeps_epsilon_and_hardly_more(
    epsilon: float, rate: float, steps: int
) -> None:
    noise = noise_for(epsilon, rate, steps, 1e-5, 1e4)
    assert epsilon_of(noise, rate, steps, 1e-5) <= epsilon
    assert noise < 0.02 or epsilon_of(noise * 0.97, rate, steps, 1e-5) > epsilon - 0.02


def test_an_epsilon_that_the_steps_cannot_buy_is_refused_with_one_they_can() -> None:
    dp = DP(epsilon=0.05, steps=100, batch=8)
    with pytest.raises(
        BadInput, match=r"epsilon 0\.05 over 100 steps .* or epsilon \d+\.?\d* or more"
    ) as told:
        dp.claim(100)
    named = float(str(told.value).split("epsilon ")[-1].split(" ")[0])
    kept = replace(dp, epsilon=named).claim(100)
    assert kept.epsilon is not None and kept.epsilon <= named and kept.noise_multiplier <= 8
    assert "\n" not in str(told.value)


def test_claims_of_trainings_on_different_units_are_the_weakest() -> None:
    one = DP(epsilon=None, noise=1.0, steps=2, batch=2, delta=0.01).claim(10)
    other = DP(epsilon=None, noise=2.0, steps=2, batch=2, delta=0.02).claim(8)
    both = Claim.joined([one, other])
    assert one.epsilon is not None and other.epsilon is not None and one.epsilon > other.epsilon
    assert (both.epsilon, both.delta, both.trainings) == (one.epsilon, 0.02, 2)
    assert "the weakest of 2 on different documents" in both.said()
    seeded = Claim.joined([one, replace(other, seeded=True)])
    assert not seeded.holds
    assert not Claim.joined([one, NO_NOISE.claim(4)]).holds


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"epsilon": None}, "give one of them"),
        ({"noise": 1.0}, "give one of them"),
        ({"epsilon": 0.0}, "epsilon 0.0: use a positive number"),
        ({"epsilon": math.inf}, "epsilon inf: use a positive number"),
        ({"epsilon": 1e9}, "epsilon 1e.09: so large that it keeps nothing; use 100 or less"),
        ({"delta": 1.0}, "delta 1.0: use a number between 0 and 1"),
        ({"clip": 0.0}, "clip 0.0: use a positive norm"),
        ({"clip": math.inf}, "clip inf: noise is so many times the clip"),
        ({"steps": 0}, "steps 0, batch 64: use 1 or more"),
        ({"unit": "piece"}, "unit 'piece': use document or user"),
    ],
)
def test_settings_that_cannot_hold_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        DP(**wrong)


def test_a_delta_too_small_to_reckon_with_is_refused() -> None:
    with pytest.raises(BadInput, match=r"delta 1e-300 is too small to reckon with: use .* such as 1e-10"):
        DP(delta=1e-300, steps=2).claim(100)


def test_a_delta_at_which_a_whole_document_leaks_is_refused() -> None:
    with pytest.raises(BadInput, match=r"delta 0\.01 for 100 documents: .* less than 0\.01, such as 0\.001"):
        DP(delta=0.01).claim(100)


# The method


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"reference": True}, "reference under privacy"),
        ({"dropout": True}, "dropout under privacy"),
        ({"own_prefix": True}, "own_prefix under privacy"),
        ({"after_context": True}, "after_context under privacy"),
        ({"passes": 2}, "passes under privacy: the number of steps decides"),
        ({"max_tokens": 9}, "max_tokens under privacy: a stop that depends on the text"),
        ({"token_weights": TfIdf()}, "counts words of the other documents"),
    ],
)
def test_what_would_break_the_claim_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Finetune(**{"privacy": DP(), **more})


def test_an_open_rate_goes_by_the_model_alone() -> None:
    passages = tuple(Passage.whole(Document(name, f"text of {name}")) for name in "abc")
    lm, evidence = toys.lm(), [Evidence(Found(passages, (0.0,) * 3))]
    method = Finetune(privacy=DP(epsilon=60.0, steps=2))
    (state,) = method.adapt([method.init(lm)], lm, evidence, Context())
    moved = max(part.tensors["values"].abs().max().item() for part in state.delta.packed().parts)
    # Two steps of Adam at the usual rate for this size: noise decides where to, the rate how far.
    assert method.optimizer.learning_rate == "auto" and 1e-5 < moved < 3e-4


def test_what_is_refused_under_privacy_is_allowed_without() -> None:
    free = Finetune(reference=True, dropout=True, own_prefix=True, after_context=True, passes=2, max_tokens=9)
    assert free.privacy is None and free.passes == 2


def test_private_neighbours_are_refused() -> None:
    with pytest.raises(BadInput, match="reads what it finds in a store"):
        method_specs(["ttt-nn"], ["privacy=dp"])
    with pytest.raises(BadInput, match="reads what it finds in a store"):
        MethodSpec(Finetune(privacy=DP()))
    assert method_specs(["online"], ["privacy=dp(epsilon=3)"])["online"].method.private
    for name in ("online+in-context", "online/in-context"):
        with pytest.raises(BadInput, match="under privacy"):
            method_specs([name], ["online.privacy=dp"])
    assert not MethodSpec(Finetune(), Nothing()).method.private


def test_a_unit_is_learnt_once_and_a_budget_is_refused(tmp_path: Path) -> None:
    lm = toys.lm()
    method = Finetune(trainable=Top(1), optimizer=SGD(0.1), privacy=NO_NOISE)

    def evidence(*names: str) -> Evidence:
        passages = tuple(Passage.whole(Document(name, f"text of {name}")) for name in names)
        return Evidence(Found(passages, (0.0,) * len(passages)))

    (state,) = method.adapt([method.init(lm)], lm, [evidence("a", "b")], Context())
    with pytest.raises(BadInput, match="document 'b' was learnt before, its epsilon is spent"):
        method.adapt([state], lm, [evidence("b", "c")], Context())
    (after,) = method.adapt([state], lm, [evidence("c")], Context())
    assert len(after.claims) == 2 and len(state.claims) == 1
    save_state(after, tmp_path / "state")
    assert load_state(WeightState, tmp_path / "state", lm).claims == after.claims
    (same,) = method.adapt([state], lm, [evidence()], Context())
    assert same is state
    with pytest.raises(BadInput, match="a budget under privacy"):
        method.adapt([state], lm, [evidence("c")], Context(budget=Budget(tokens=5)))


# Opacus as the reference


def test_a_step_is_that_of_opacus() -> None:
    """By its hooks, which form each gradient, on embeddings, linear layers and a normalisation."""
    from opacus.grad_sample import GradSampleModule

    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)).double()

    ids = torch.randint(0, 9, (6, 4), generator=torch.Generator().manual_seed(1))
    mine, theirs = made(), GradSampleModule(made(), loss_reduction="sum")
    summing = ClippedSum(mine, dict(mine.named_parameters()), 0.5)

    def run(module: nn.Module) -> Tensor:
        return module(ids).square().sum((1, 2))

    summing.add(lambda rows: run(mine)[[*rows]] if len([*rows]) < 6 else run(mine), range(6))
    assert not summing.unsuited
    run(theirs).sum().backward()
    each = {name: p.grad_sample for name, p in theirs._module.named_parameters()}
    norms = torch.stack([g.flatten(1).square().sum(1) for g in each.values()]).sum(0).sqrt()
    factors = (0.5 / norms).clamp(max=1)
    for name, gradient in summing.take().items():
        right = torch.einsum("u,u...->...", factors, each[name])
        assert torch.allclose(gradient, right, rtol=1e-3, atol=1e-6), name
    assert (factors < 1).any() and max(norms) > 0.5


def test_the_weights_after_a_private_step_on_lora_are_those_of_opacus() -> None:
    """The weights, not the sums: with newer peft opacus has trained others silently (its issue 820)."""
    from opacus.grad_sample import GradSampleModule

    texts = [[text] for text in TEXTS[:4]]
    found = step(texts, replace(NO_NOISE, clip=0.3))
    lm, _, copy = opened()
    theirs = GradSampleModule(copy.module.train(), loss_reduction="sum")
    for unit in units(lm, texts):
        example = unit[0].example
        ids, targets = torch.tensor([example.inputs]), torch.tensor([example.target])
        log_probs = theirs(ids, use_cache=False).logits.log_softmax(-1)
        (-log_probs.gather(-1, targets[..., None]).mean()).backward()
        grads = [p.grad_sample[0] for p in copy.parameters.values()]
        norm = torch.stack([each.square().sum() for each in grads]).sum().sqrt()
        for p, each in zip(copy.parameters.values(), grads, strict=True):
            p.moved = getattr(p, "moved", 0) - each * min(1.0, 0.3 / norm.item()) / 4
            p.grad_sample = None
    for name, p in copy.parameters.items():
        assert torch.allclose(found[name], p.moved, rtol=1e-3, atol=1e-9), name
    assert size(found) > 0


def test_so_little_noise_that_it_keeps_nothing_is_told_and_costs_no_memory() -> None:
    with pytest.raises(BadInput, match=r"take fewer steps, a larger batch, more documents$"):
        DP(epsilon=8.0, delta=0.01, steps=100_000_000).claim(12)
    claim = DP(epsilon=None, noise=1e-3, delta=0.01, steps=100).claim(12)
    assert (
        claim.epsilon is None and not claim.holds and claim.said().startswith("too little noise: no privacy")
    )
    # Below the limit the bound is a number, and larger than what the limit stands for.
    assert 200 < epsilon_of(0.05, 1.0, 1, 1e-2) < math.inf
