"""The n-gram memory: its counts against a recursion over dictionaries, its mixture against a plain sum."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.toys import lm
from uptake.errors import BadInput
from uptake.lm.base import LM, Segment
from uptake.lm.examples import encode
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.n_gram import NGram
from uptake.methods.n_gram.memory import NGramMemory, Smoothing
from uptake.methods.n_gram.mixture import NGramMixture

TOKENS = st.lists(st.integers(0, 3), max_size=12)
TEXTS = st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=4)
READ = ["one fish, two fish, red fish, blue fish", "one fish, two birds, and a red fish"]


def memory_of(texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> NGramMemory:
    tokens = [token for prompt, learnt in texts for token in (*prompt, *learnt)]
    return NGramMemory(np.array(tokens, np.int64), [(len(prompt), len(learnt)) for prompt, learnt in texts])


def by_recursion(
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    before: Sequence[int],
    bottom: Sequence[float],
    longest: int,
    strength: float,
    decay: float,
) -> list[float]:
    """Return p(token | before), counted one context after another."""
    estimate = list(bottom)
    for n in range(1, min(longest, len(before)) + 1):
        counts: Counter[int] = Counter()
        for prompt, learnt in texts:
            whole = [*prompt, *learnt]
            for place in range(max(n, len(prompt)), len(whole)):
                if whole[place - n : place] == list(before[-n:]):
                    counts[whole[place]] += 1
        s = strength * decay**n
        estimate = [(counts[w] + s * p) / (counts.total() + s) for w, p in enumerate(estimate)]
    return estimate


@given(TEXTS, st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(1, 6))
def test_counts_are_those_of_the_recursion(
    texts: list[tuple[list[int], list[int]]], before: list[int], longest: int
) -> None:
    memory = memory_of(texts)
    smoothing = Smoothing(longest, (0.5, 20.0), 0.7)
    found = memory.continuations(memory.along(before, longest), smoothing)
    bottom = [0.1, 0.2, 0.3, 0.4]
    assert found.mass.sum(1) + found.rest == pytest.approx([1.0, 1.0])
    for place, strength in enumerate(smoothing.strengths):
        mixed = [found.rest[place] * p + found.of(w)[place] for w, p in enumerate(bottom)]
        expected = by_recursion(texts, before, bottom, longest, strength, 0.7)
        assert mixed == pytest.approx(expected, abs=1e-12)


def test_a_match_stops_where_a_text_begins() -> None:
    memory = memory_of([([], [1, 2]), ([], [3, 2, 1])])
    assert memory.along([1, 2], 5).lengths.tolist() == [2, 1]
    assert memory.along([2, 3], 5).lengths.tolist() == [1]  # 2 ends the first text, 3 begins the second


def test_what_is_read_as_a_prompt_is_matched_and_never_predicted() -> None:
    memory = memory_of([([1, 2], [3])])
    smoothing = Smoothing(4, (1.0,))
    assert memory.continuations(memory.along([1], 4), smoothing).tokens.tolist() == []
    assert memory.continuations(memory.along([1, 2], 4), smoothing).tokens.tolist() == [3]


def naive(base: LM, method: NGram, text: str) -> float:
    """Return the log-probability of a text, each token by the recursion and the experts' weights by hand."""
    example = encode(base.tokenizer, "", text)
    (own,) = base.predictions([example])
    read = [encode(base.tokenizer, "", each) for each in READ]
    texts = [([*each.context], [*each.target]) for each in read]
    weights = np.array(method._mixing.sharing.prior)
    total, ids = 0.0, [*example.context]
    for place, token in enumerate(example.target):
        bottom = own[place].double().exp().tolist()
        each = [bottom[token]]
        for s in method.strengths:
            each.append(by_recursion(texts, ids, bottom, method.longest, s, method.decay)[token])
        total += math.log(float(weights @ np.array(each)))
        weights = weights * np.array(each) / float(weights @ np.array(each))
        ids.append(token)
    return total


def test_the_mixture_is_the_experts_sum() -> None:
    base = lm("llama")
    method = NGram(longest=4, strengths=(1.0, 50.0), shares=(0.0,))
    (state,) = method.adapt([method.init(base)], base, [Evidence.of(*READ)], Context())
    text = "one fish, two fish, a red fish"
    (scores,) = method.adapted([state], base).score([Segment(text)])
    assert scores.log_probs.sum().item() == pytest.approx(naive(base, method, text), abs=1e-4)


def test_steps_with_a_cache_are_one_pass() -> None:
    base = lm("llama")
    method = NGram.example()
    (state,) = method.adapt([method.init(base)], base, [Evidence.of(*READ)], Context())
    mixed = method.adapted([state], base)
    ids = torch.tensor([encode(base.tokenizer, "", "one fish, two fish, a red").inputs])
    whole, _ = mixed.step(ids)
    cache, pieces = mixed.start(), []
    for piece in ids.split(3, 1):
        log_probs, cache = mixed.step(piece, cache)
        pieces.append(log_probs)
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)


def test_without_a_match_it_is_the_model_bit_for_bit() -> None:
    base = lm("llama")
    memory = memory_of([([], encode(base.tokenizer, "", "xyz").target)])
    mixed = NGramMixture(base, [memory], NGram()._mixing)
    (own,), (same,) = base.score([Segment("one fish")]), mixed.score([Segment("one fish")])
    assert torch.equal(own.log_probs, same.log_probs)


def test_what_was_read_pays_and_costs_no_more_than_the_bound() -> None:
    base = lm("llama")
    method = NGram()
    (state,) = method.adapt([method.init(base)], base, [Evidence.of(*READ)], Context())
    for text, pays in ((READ[0], True), ("zq! vw? kj; pb: " * 8, False)):
        (own,), (mixed,) = (each.score([Segment(text)]) for each in (base, method.adapted([state], base)))
        assert mixed.bits <= own.bits + math.log2(len(method.shares) / method.base_weight) + 1e-6
        assert mixed.bits < 0.8 * own.bits or not pays


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"passages": 0}, "passages 0"),
        ({"longest": 0}, "longest 0"),
        ({"strengths": ()}, "strengths"),
        ({"strengths": (0.0,)}, "strengths"),
        ({"decay": 0.0}, "decay 0.0"),
        ({"base_weight": 1.0}, "base_weight 1.0"),
        ({"draw": "far"}, "draw 'far'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(BadInput, match=named.replace("(", r"\(")):
        NGram(**settings)  # type: ignore[arg-type]
