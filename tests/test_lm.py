"""Scoring, generation and the wrappers, against plain forward passes."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
from uptake.errors import BadInput
from uptake.lm.base import LM, Segment
from uptake.lm.causal import Causal
from uptake.lm.experts import Experts, FixedShare
from uptake.lm.generation import Decoding
from uptake.lm.wrappers import Prefixed, Routed
from uptake.text.tokenizer import Tokenizer


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_score_is_the_forward_pass(shape: str) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    context, text = "so ", "thé cat"
    ids = torch.tensor([[0, *lm.tokenizer.encode(context)[0], *lm.tokenizer.encode(text)[0]]])
    logits = torch.log_softmax(lm.module(ids).logits[0], -1)
    count = len(text.encode())
    expected = logits[-count - 1 : -1].gather(-1, ids[0, -count:, None])[:, 0]
    (scores,) = lm.score([Segment(text, context)])
    assert torch.allclose(scores.log_probs, expected, atol=1e-12)
    assert scores.bytes == count and scores.bits == pytest.approx(-float(expected.sum()) / math.log(2))


def test_base_equals_lm_evaluation_harness() -> None:
    models = pytest.importorskip("lm_eval.models.huggingface", reason="needs lm_eval")
    instance = pytest.importorskip("lm_eval.api.instance")
    texts = ["a short one", "long enough for several windows, " * 9, "x", "naïve café " * 20]
    for shape in toys.SHAPES:
        lm = toys.lm(shape)
        harness = models.HFLM(
            pretrained=lm.module, tokenizer=toys.tokenizer(), batch_size=2, device="cpu", max_length=64
        )
        requests = [
            instance.Instance("loglikelihood_rolling", {}, (text,), i, metadata=("t", i, 1))
            for i, text in enumerate(texts)
        ]
        expected = harness.loglikelihood_rolling(requests, disable_tqdm=True)
        ours = [scores.log_probs.sum().item() for scores in lm.score([Segment(text) for text in texts])]
        assert ours == pytest.approx(expected, rel=1e-5)


def wrapped(lm: LM) -> dict[str, LM]:
    other = toys.lm("llama", seed=5)
    return {
        "base": lm,
        "prefixed": Prefixed(lm, [[0, 40, 41, 42]]),
        "mixed": toys.mixed([lm, other], [0.3, 0.7]),
        "routed": Routed([other]),
        "bayes": Experts([lm, other], FixedShare((0.6, 0.4), (0.0, 0.1))),
        "nested": Prefixed(toys.mixed([lm, Routed([other])], [0.5, 0.5]), [[0, 40, 41]]),
    }


@pytest.mark.parametrize("name", wrapped(toys.lm()))
def test_cached_decoding_is_the_full_forward(name: str) -> None:
    model = wrapped(toys.lm())[name]
    ids = torch.randint(1, 200, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full, _ = model.step(ids)
        cache, parts = model.start(), []
        for start, end in ((0, 7), (7, 8), (8, 20)):
            log_probs, cache = model.step(ids[:, start:end], cache)
            parts.append(log_probs)
    assert torch.allclose(torch.cat(parts, 1), full, atol=1e-5)


@pytest.mark.parametrize("name", wrapped(toys.lm()))
def test_greedy_generation_takes_the_likeliest_token(name: str) -> None:
    model = wrapped(toys.lm())[name]
    text = model.generate("ab", tokens=6)
    ids = [0, *model.tokenizer.encode("ab")[0]]
    expected: list[int] = []
    for _ in range(6):
        with torch.no_grad():
            expected.append(int(model.step(torch.tensor([ids + expected]))[0][0, -1].argmax()))
    assert text == model.tokenizer.decode(expected)


def test_generation_stops_streams_and_repeats() -> None:
    lm = toys.lm("gpt2")
    assert lm.generate("ab", tokens=0) == ""
    sampled = lm.generate("ab", 30, temperature=1.0, seed=4)
    assert (
        sampled
        == lm.generate("ab", 30, temperature=1.0, seed=4)
        != lm.generate("ab", 30, temperature=1.0, seed=5)
    )
    decoding = Decoding(tokens=30, temperature=1.0, seed=4)
    assert "".join(token.text for token in lm.stream("ab", decoding)) == sampled
    word = sampled[6:8]
    assert lm.generate("ab", 30, 1.0, 4, stop=[word]) == sampled[: sampled.index(word)]
    # Longer than the window: goes on from its later half.
    assert len(lm.tokenizer.encode(lm.generate("ab" * 100, 80, temperature=1.0))[0]) >= 40
    with pytest.raises(BadInput, match="temperature"):
        lm.generate("ab", temperature=-1)


@settings(max_examples=30)
@given(st.text(max_size=50), st.text(max_size=50))
def test_any_text_is_scored_byte_for_byte(text: str, context: str) -> None:
    (scores,) = toys.lm().score([Segment(text, context)])
    assert scores.bytes == len(text.encode()) == len(scores.log_probs)
    assert len(scores.spans) == len(scores.log_probs) and bool(torch.isfinite(scores.log_probs).all())


def test_rows_must_match() -> None:
    model = Routed([toys.lm(), toys.lm()])
    with pytest.raises(BadInput, match="2 rows"):
        model.score([Segment("a")])
    assert len(model.at([1]).score([Segment("a")])) == 1
    with pytest.raises(BadInput, match="use a shorter one"):
        Prefixed(toys.lm(), [[1] * 64])
    with pytest.raises(BadInput, match="adding up to 1"):
        toys.mixed([toys.lm()], [0.5])


def test_a_batch_of_ragged_texts_equals_one_at_a_time() -> None:
    lm = toys.lm()
    texts = ["a", "some words " * 20, "", "mid length text"]
    together = lm.score([Segment(text, "c ") for text in texts], batch_tokens=100)
    for text, scores in zip(texts, together, strict=True):
        assert torch.allclose(scores.log_probs, lm.score([Segment(text, "c ")])[0].log_probs, atol=1e-5)


def test_a_bayes_mixture_never_loses_more_than_a_bit_and_is_one_distribution() -> None:
    base, other = toys.lm("llama", dtype=torch.float64), toys.lm("llama", seed=5, dtype=torch.float64)
    segments = [Segment("some text to score", "so "), Segment("and another, quite long one " * 6)]
    for prior in (0.5, 0.1):
        mixed = Experts([base, other], FixedShare((1 - prior, prior))).score(segments)
        for one, b, o in zip(mixed, base.score(segments), other.score(segments), strict=True):
            whole = math.log2((1 - prior) * 2 ** (-b.bits + o.bits) + prior) - o.bits
            assert one.bits == pytest.approx(-whole, rel=1e-9)
            assert one.bits <= b.bits + math.log2(1 / (1 - prior)) + 1e-9
    assert torch.equal(
        Experts([base, base], FixedShare((0.5, 0.5), (0.0, 0.1))).score(segments)[1].log_probs,
        base.score(segments)[1].log_probs,
    )
    # As a model of text it is the same mixture: the chain of its steps multiplies to it.
    ids = torch.randint(1, 200, (1, 15), generator=torch.Generator().manual_seed(0))
    chains = []
    for model in (Experts([base, other], FixedShare((0.5, 0.5))), base, other):
        log_probs = model.step(ids)[0][0, :-1].gather(-1, ids[0, 1:, None])
        chains.append(log_probs.sum().exp().item())
    assert chains[0] == pytest.approx((chains[1] + chains[2]) / 2, rel=1e-9)


def test_the_window_is_told_by_the_model_or_its_tokenizer_and_never_guessed() -> None:
    module, names = toys.module("llama", window=48), copy.deepcopy(toys.tokenizer())
    assert Causal(module, Tokenizer(names)).window == 48
    module.config = SimpleNamespace()  # as of a model without position embeddings
    names.model_max_length = 40
    assert Causal(module, Tokenizer(names)).window == 40
    names.model_max_length = int(1e30)
    with pytest.raises(BadInput, match="model_max_length"):
        Causal(module, Tokenizer(names))


def test_more_rows_than_models_are_refused() -> None:
    with pytest.raises(BadInput, match="give one a row"):
        Routed([toys.lm()]).step(torch.zeros(2, 3, dtype=torch.long))
