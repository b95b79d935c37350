"""The metrics against naive loops, and the bootstrap's interval against what it promises."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uptake.errors import BadInput
from uptake.report import metrics


def drawn(queries=60, documents=15, seed=3):
    """Bits of two ways and of the base, and the document of each query."""
    generator = np.random.default_rng(seed)
    base = generator.uniform(500, 3000, queries)
    bits = base * generator.normal(0.92, 0.05, queries)
    other = base * generator.normal(0.97, 0.03, queries)
    names = [f"document {n}" for n in generator.integers(0, documents, queries)]
    return bits, other, base, names


def naive_interval(above, below, documents, seed, resamples):
    """The same bootstrap, written the slow and obvious way."""
    groups = {}
    for number, name in enumerate(documents):
        groups.setdefault(name, []).append(number)
    groups = list(groups.values())
    generator = np.random.default_rng(seed)
    ratios = []
    for _ in range(resamples):
        total_above = total_below = 0.0
        for pick in generator.integers(0, len(groups), size=len(groups)):
            for query in groups[pick]:
                total_above += above[query]
                total_below += below[query]
        ratios.append(total_above / total_below)
    return tuple(np.percentile(ratios, [2.5, 97.5]))


def test_totals_match_loops():
    bits, _, base, _ = drawn()
    sizes = np.arange(1, 61)
    assert metrics.bits_per_byte(bits, sizes) == pytest.approx(sum(bits) / sum(sizes), rel=1e-12)
    assert metrics.gain(bits, base) == pytest.approx((sum(base) - sum(bits)) / sum(base), rel=1e-12)
    helped = sum(1 for mine, theirs in zip(bits, base, strict=True) if mine < theirs) / 60
    assert metrics.share_helped(bits, base) == helped


def test_interval_matches_a_naive_loop():
    bits, _, base, names = drawn()
    mine = metrics.gain_interval(bits, base, names, seed=5, resamples=700)
    assert mine == pytest.approx(naive_interval(base - bits, base, names, 5, 700), rel=1e-12)


def test_interval_does_not_depend_on_the_block(monkeypatch):
    """Many documents are drawn in several blocks; the stream of draws is one."""
    generator = np.random.default_rng(0)
    base = generator.uniform(1, 2, 3000)
    bits = base * generator.uniform(0.8, 1.1, 3000)
    names = [str(n) for n in range(3000)]
    mine = metrics.gain_interval(bits, base, names, resamples=800)
    picks = np.random.default_rng(0).integers(0, 3000, size=(800, 3000))
    ratios = (base - bits)[picks].sum(axis=1) / base[picks].sum(axis=1)
    assert mine == pytest.approx(tuple(np.percentile(ratios, [2.5, 97.5])), rel=1e-12)


def test_difference_is_the_difference_of_gains_and_narrower_than_either():
    bits, other, base, names = drawn()
    hard = np.random.default_rng(1).normal(1, 0.2, 60)  # what helps or hurts both alike
    bits, other = bits * hard, other * hard
    found = metrics.gain_difference(bits, other, base, names)
    assert found.value == pytest.approx(metrics.gain(bits, base) - metrics.gain(other, base))
    low, high = metrics.gain_interval(bits, base, names)
    assert found.interval[0] < found.value < found.interval[1]
    assert found.interval[1] - found.interval[0] < high - low
    saved = other - bits
    small = metrics.gain_difference(bits, other, base, names, seed=2, resamples=300).interval
    assert small == pytest.approx(naive_interval(saved, base, names, 2, 300), rel=1e-12)


def test_same_seed_same_interval():
    bits, _, base, names = drawn()
    first = metrics.gain_interval(bits, base, names, seed=9)
    assert first == metrics.gain_interval(bits, base, names, seed=9)
    assert first != metrics.gain_interval(bits, base, names, seed=10)
    assert metrics.gain_interval(bits, base, names, seed=-9) == first  # torch takes negative seeds too


def test_documents_are_what_is_resampled():
    """Copies of a query inside its document add no certainty; as documents of their own they would."""
    bits, _, base, _ = drawn(queries=10)
    own = [str(n) for n in range(10)]
    once = metrics.gain_interval(bits, base, own)
    inside = metrics.gain_interval(np.repeat(bits, 8), np.repeat(base, 8), np.repeat(own, 8).tolist())
    apart = metrics.gain_interval(np.repeat(bits, 8), np.repeat(base, 8), [str(n) for n in range(80)])
    assert inside == pytest.approx(once)
    assert apart[1] - apart[0] < 0.6 * (once[1] - once[0])


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        base = generator.uniform(500, 1500, 40)
        bits = base * (0.9 + generator.normal(0, 0.1, 40))
        low, high = metrics.gain_interval(bits, base, [str(n) for n in range(40)], resamples=400)
        hits += low <= 0.1 <= high
    assert 0.89 <= hits / 300 <= 0.98


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_documents_give_no_interval(count):
    ones = np.ones(count)
    assert metrics.gain_interval(ones, ones, ["a"] * count) is None
    assert metrics.gain_difference(ones, ones, ones, ["a"] * count).interval is None


def test_nothing_gives_nan_and_no_base_bits_give_no_interval():
    assert math.isnan(metrics.bits_per_byte([], []))
    assert math.isnan(metrics.gain([], []))
    assert math.isnan(metrics.share_helped([], []))
    assert math.isnan(metrics.gain([1.0, 2.0], [0.0, 0.0]))
    assert metrics.gain_interval([1.0, 2.0], [0.0, 0.0], ["a", "b"]) is None


def test_names_that_numpy_would_confuse_stay_apart():
    assert metrics.gain_interval([1.0, 1.0], [1.0, 2.0], ["a", "a\0"]) is not None


def test_uneven_columns_are_refused():
    with pytest.raises(BadInput, match="one number a query"):
        metrics.gain([1.0], [1.0, 2.0])
    with pytest.raises(BadInput, match="one document a query"):
        metrics.gain_interval([1.0], [1.0], ["a", "b"])


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(1e-3, 1e6), st.sampled_from("abcd")), max_size=20))
def test_interval_is_ordered_and_never_above_one(queries):
    bits, base, names = ([q[i] for q in queries] for i in range(3))
    interval = metrics.gain_interval(bits, base, names, resamples=50)
    if interval is None:
        assert len(set(names)) < 2
    else:
        assert interval[0] <= interval[1] <= 1 + 1e-9


def test_many_means_share_their_draws_and_are_what_one_by_one_gives() -> None:
    values = [("a", 1.0), ("a", 0.0), ("b", 1.0), ("c", 0.0), ("d", 1.0), ("d", 1.0)]
    column: dict[str, tuple[float, int]] = {}
    for name, value in values:
        total, count = column.get(name, (0.0, 0))
        column[name] = total + value, count + 1
    alone = metrics.ratio_interval(
        [value for _, value in values], [1.0] * len(values), [name for name, _ in values], seed=3
    )
    lacking = {"a": (1.0, 1)}
    assert metrics.mean_intervals([column, lacking, column], seed=3) == [
        pytest.approx(alone), None, pytest.approx(alone)
    ]  # fmt: skip
    assert metrics.mean_intervals([], seed=3) == [] and metrics.mean_intervals([lacking], seed=3) == [None]
