"""What a scope lets through at every threshold, and the threshold that is chosen."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import toys
from recipe_modules import imported
from uptake.methods.gated_memory.trained import Trained
from uptake.tasks.edits import Edit, Probe

EDITS = tuple(
    Edit(
        name, f"the home of {name} is", " x", name, rephrases=(f"so {name} lives in",),
        loose=(f"it is. {name} lives in",), neighbours=(Probe(f"the home of {other} is", " y"),),
        relation="home",
    )
    for name, other in (("Anna", "Dora"), ("Boris", "Boria"), ("Cindy", "Anna Cind"))
)  # fmt: skip


@pytest.fixture(name="recipe")
def recipe_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from imported("scope_figures", monkeypatch)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 0.9])
def test_one_look_at_all_prompts_tells_what_every_threshold_lets_through(
    recipe: Any, threshold: float
) -> None:
    lm, scope = toys.lm("llama"), Trained(weights="untrained", size=4)
    asked = recipe.nearest(scope, lm, EDITS)
    expected = recipe.through(replace(scope, threshold=threshold), lm, EDITS)
    assert recipe.through_at(threshold, asked, EDITS) == expected
    told = recipe.let_in(threshold, asked, EDITS)
    near = [one for one in asked if one.kind == "neighbours"]
    assert told["neighbours"] == len(near) == 3
    assert told["open"] == sum(one.p > threshold for one in near) == told["same_relation"]


def test_the_threshold_is_the_least_that_keeps_enough_neighbours_out(recipe: Any) -> None:
    asked = [recipe.Nearest("neighbours", 0, "a", EDITS[0], p) for p in (0.1, 0.2, 0.62, 0.9)] + [
        recipe.Nearest("tight", 0, "a", EDITS[0], 0.999)
    ]
    assert recipe.threshold_at(0.0, asked) == pytest.approx(0.9)
    assert recipe.threshold_at(0.25, asked) == pytest.approx(0.625)
    assert recipe.threshold_at(1.0, asked) == min(recipe.THRESHOLDS)
    always = [recipe.Nearest("neighbours", 0, "a", EDITS[0], 1.0)]
    assert recipe.threshold_at(0.0, always) == max(recipe.THRESHOLDS)


def test_the_area_under_the_curve_counts_pairs(recipe: Any) -> None:
    inside, outside = [0.9, 0.5, 0.5], [0.1, 0.5, 0.7]
    pairs = [(a > b) + (a == b) / 2 for a in inside for b in outside]
    assert recipe.auc(inside, outside) == pytest.approx(sum(pairs) / 9)
