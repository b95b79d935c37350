"""Span corruption: undone exactly at every length, with the published counts."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import toys
from uptake.errors import BadInput
from uptake.tasks.span_corruption import SpanCorruption
from uptake.text.tokenizer import Tokenizer

PUBLISHED = SpanCorruption(tuple(range(32_099, 31_999, -1)))


@pytest.mark.parametrize("corruption", [PUBLISHED, SpanCorruption((7_001, 7_000), 0.5, 1.0)])
def test_it_is_undone_exactly_at_every_length(corruption: SpanCorruption) -> None:
    generator = np.random.default_rng(0)
    for length in range(2, 301):
        ids = generator.integers(0, 5_000, length).tolist()
        inputs, target = corruption.corrupt(ids, generator)
        taken, spans = corruption.counts(length)
        assert corruption.restored(inputs, target) == ids
        assert sum(token in corruption.sentinels for token in inputs) == spans
        assert len(target) == taken + spans and len(inputs) == length - taken + spans
        assert [t for t in target if t in corruption.sentinels] == [*corruption.sentinels[:spans]]
        # A token stays before each span, and each span has one at least.
        assert inputs[0] not in corruption.sentinels and target[-1] not in corruption.sentinels
        for row in (inputs, target):
            marks = [place for place, token in enumerate(row) if token in corruption.sentinels]
            assert all(after - before > 1 for before, after in pairwise(marks))


@given(
    ids=st.lists(st.integers(0, 99), min_size=2, max_size=60),
    share=st.floats(0.01, 0.99),
    mean_length=st.floats(1, 10),
    sentinels=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_any_text_comes_back(
    ids: list[int], share: float, mean_length: float, sentinels: int, seed: int
) -> None:
    corruption = SpanCorruption(tuple(range(100, 100 + sentinels)), share, mean_length)
    inputs, target = corruption.corrupt(ids, np.random.default_rng(seed))
    assert corruption.restored(inputs, target) == ids


def test_the_published_lengths() -> None:
    # T5: 568 tokens give an input of 512 and a target of 114, an end token behind each (google-research/t5).
    assert PUBLISHED.raw_tokens(512) == 568
    inputs, target = PUBLISHED.corrupt([1] * 568, np.random.default_rng(0))
    assert (len(inputs) + 1, len(target) + 1) == (512, 114)


def test_every_way_of_cutting_is_as_likely_as_any_other() -> None:
    corruption, generator = SpanCorruption((9, 8), 0.5, 2.0), np.random.default_rng(0)
    seen = [tuple(corruption.corrupt([1, 2, 3, 4, 5, 6, 7, 0], generator)[0]) for _ in range(1800)]
    # Four tokens that stay and four that go, each in two parts: three ways and three ways.
    assert len({*seen}) == 9 and all(140 < seen.count(one) < 260 for one in {*seen})


def test_sentinels_are_found_by_their_names_and_what_cannot_be_is_refused() -> None:
    with pytest.raises(BadInput, match="no <extra_id_0>"):
        SpanCorruption.of(Tokenizer(toys.tokenizer()))
    inner = toys.tokenizer.__wrapped__()
    inner.add_special_tokens({"additional_special_tokens": [f"<extra_id_{n}>" for n in (2, 1, 0)]})
    found = SpanCorruption.of(Tokenizer(inner))
    assert found.sentinels == (259, 258, 257)
    with pytest.raises(BadInput, match="a text of 1 tokens: give at least 2"):
        found.corrupt([1], np.random.default_rng(0))
    with pytest.raises(BadInput, match="the text holds sentinel 258 itself"):
        found.corrupt([1, 258, 2], np.random.default_rng(0))
    with pytest.raises(BadInput, match="the target has nothing for sentinel 259"):
        found.restored([1, 259, 2], [258, 5])
    for wrong in ({"share": 0.0}, {"share": 1.0}, {"mean_length": 0.5}, {"sentinels": ()}):
        with pytest.raises(BadInput, match="at least one sentinel"):
            SpanCorruption(**{"sentinels": (1,), **wrong})  # type: ignore[arg-type]
