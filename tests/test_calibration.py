"""Calibration of answers: each metric against a naive version, by properties, and on mutants."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uptake.errors import BadInput
from uptake.report.calibrated import metrics

SURE = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.50001, 0.75, 0.9, 1.0])
ANSWERS = st.lists(st.tuples(SURE, st.integers(0, 1)), min_size=1, max_size=90)


def columns(answers):
    return [sure for sure, _ in answers], [float(right) for _, right in answers]


def naive_bins(answers):
    """Each answer goes to the bin of the first that is as sure, by its rank among all."""
    ordered = sorted(answers)
    found = {}
    for sure, right in answers:
        rank = [other for other, _ in ordered].index(sure)
        found.setdefault(min(rank * 10 // len(answers), 9), []).append((sure, right))
    return [found[place] for place in sorted(found)]


def naive_error(answers):
    total = 0.0
    for some in naive_bins(answers):
        gap = abs(math.fsum(sure for sure, _ in some) - math.fsum(right for _, right in some))
        total += gap / len(answers)
    return total


def naive_area(answers):
    """The mean of the accuracy among the k surest, a tie's answers each worth their mean."""
    worth = {sure: np.mean([right for other, right in answers if other == sure]) for sure, _ in answers}
    ordered = sorted((sure for sure, _ in answers), reverse=True)
    accuracies = [math.fsum(worth[sure] for sure in ordered[:k]) / k for k in range(1, len(ordered) + 1)]
    return math.fsum(accuracies) / len(accuracies)


@given(ANSWERS)
def test_the_metrics_are_their_definitions(answers):
    sure, right = columns(answers)
    found = metrics.calibration_error(sure, right)
    if len(answers) < 50:
        assert found is None and metrics.floor(sure) is None
    else:
        assert found == pytest.approx(naive_error(answers), abs=1e-12)
    told = metrics.bins(sure, right)
    assert [one.answers for one in told] == [len(some) for some in naive_bins(answers)]
    for one, some in zip(told, naive_bins(answers), strict=True):
        assert one.confidence == pytest.approx(np.mean([s for s, _ in some]))
        assert one.right == pytest.approx(np.mean([r for _, r in some]))
    assert metrics.selective_area(sure, right) == pytest.approx(naive_area(answers), abs=1e-12)
    assert metrics.brier(sure, right) == pytest.approx(
        math.fsum((s - r) ** 2 for s, r in answers) / len(answers), abs=1e-12
    )
    shares, accuracy = metrics.selective(sure, right)
    assert shares[-1] == 1.0 and accuracy[-1] == pytest.approx(np.mean(right))
    assert accuracy.mean() == pytest.approx(naive_area(answers), abs=1e-12)


@given(ANSWERS, st.randoms())
def test_no_figure_depends_on_the_order_of_the_answers(answers, random):
    shuffled = list(answers)
    random.shuffle(shuffled)
    one, other = columns(answers), columns(shuffled)
    for metric in (metrics.calibration_error, metrics.selective_area, metrics.brier):
        assert metric(*one) == pytest.approx(metric(*other), abs=1e-12)


@given(ANSWERS)
def test_bounds(answers):
    sure, right = columns(answers)
    accuracy = np.mean(right)
    error = metrics.calibration_error(sure, right)
    if error is not None:
        # By the triangle inequality no binning hides the gap of the means.
        assert abs(np.mean(sure) - accuracy) - 1e-12 <= error <= 1.0
    area, best = metrics.selective_area(sure, right), metrics.best_area(right)
    worst = metrics.selective_area(1 - np.array(right), right)
    assert worst - 1e-12 <= area <= best + 1e-12 and 0 <= area <= 1
    # Any confidence that keeps the order keeps the area.
    assert metrics.selective_area(np.array(sure) ** 3 / 2, right) == pytest.approx(area)
    assert metrics.selective_area(np.full(len(right), 0.3), right) == pytest.approx(accuracy)


def test_mutants_are_told_from_a_calibrated_model():
    generator = np.random.default_rng(0)
    truth = generator.random(4000)
    right = (generator.random(4000) < truth).astype(float)
    calibrated = metrics.calibration_error(truth, right)
    floor = metrics.floor(truth)
    assert calibrated < 0.03 and floor == pytest.approx(calibrated, abs=0.01)
    constant = np.full(4000, right.mean())
    assert metrics.calibration_error(constant, right) == pytest.approx(0.0, abs=1e-12)
    assert len(metrics.bins(constant, right)) == 1, "equal confidences are never told apart"
    assert metrics.selective_area(constant, right) == pytest.approx(right.mean())
    assert metrics.brier(constant, right) > metrics.brier(truth, right) + 0.05
    overconfident = truth ** (1 / 8)
    assert metrics.calibration_error(overconfident, right) > 0.3
    # To be sure of everything changes no order: selective accuracy alone does not see it.
    assert metrics.selective_area(overconfident, right) == pytest.approx(metrics.selective_area(truth, right))
    assert metrics.selective_area(truth, right) > right.mean() + 0.2


def test_the_floor_is_the_error_of_calibrated_models_drawn():
    sure = np.random.default_rng(1).random(60)
    drawn = []
    for seed in range(300):
        right = (np.random.default_rng(seed).random(60) < sure).astype(float)
        drawn.append(naive_error(list(zip(sure.tolist(), right.tolist(), strict=True))))
    assert metrics.floor(sure) == pytest.approx(np.mean(drawn), rel=0.05)


@pytest.mark.parametrize(
    ("metric", "naive"), [(metrics.errors, naive_error), (metrics.areas, naive_area)], ids=["errors", "areas"]
)
def test_a_draw_counts_an_answer_as_often_as_its_group_is_drawn(metric, naive):
    generator = np.random.default_rng(2)
    sure = generator.choice([0.1, 0.4, 0.4001, 0.8, 0.9], 70)
    right = generator.integers(0, 2, 70).astype(float)
    weights = generator.integers(0, 4, (5, 70)).astype(float)
    found = metric(sure, right, weights)
    for value, often in zip(found, weights.astype(int), strict=True):
        copies = [(s, r) for s, r, times in zip(sure, right, often, strict=True) for _ in range(times)]
        assert value == pytest.approx(naive(copies), abs=1e-12)


def test_intervals_draw_groups_and_pair_the_models():
    generator = np.random.default_rng(3)
    groups = [f"g{place // 4}" for place in range(80)]
    sure, right = generator.random(80), generator.integers(0, 2, 80).astype(float)
    found = metrics.intervals((sure, right), groups, seed=5)
    # The naive way: one draw after the other.
    drawn = np.random.default_rng(5).integers(0, 20, size=(metrics.RESAMPLES, 20))
    for name, naive in (("error", naive_error), ("area", naive_area)):
        ends = found[name]
        few = [
            naive([(sure[at], right[at]) for group in row for at in range(4 * group, 4 * group + 4)])
            for row in drawn[:100]
        ]
        low, high = np.quantile(few, [0.1, 0.9])
        assert ends[0] < low < high < ends[1]
    losses = ((sure - right) ** 2).reshape(20, 4).mean(1)
    naive = np.quantile(losses[drawn].mean(1), [0.025, 0.975])
    assert found["brier"] == pytest.approx(tuple(naive))
    same = metrics.intervals((sure, right), groups, (sure, right))
    assert set(same.values()) == {(0.0, 0.0)}, "both share each draw"
    assert set(metrics.intervals((sure, right), ["one"] * 80).values()) == {None}
    assert metrics.intervals((sure[:40], right[:40]), groups[:40])["error"] is None, "too few"


@pytest.mark.parametrize(
    ("sure", "right"),
    [([], []), ([0.5], [1.0, 0.0]), ([1.5], [1.0]), ([float("nan")], [0.0]), ([0.5], [2.0])],
)
def test_what_is_no_confidence_or_mark_is_refused(sure, right):
    with pytest.raises(BadInput, match="give"):
        metrics.brier(sure, right)
    with pytest.raises(BadInput, match="name one group a question"):
        metrics.intervals(([0.5, 0.5], [0.0, 1.0]), ["a"])
