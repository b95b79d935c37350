"""Selections hand on what the source gives them, and ask it for nothing that leaks."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from uptake.errors import BadInput
from uptake.text.select import Nearest, Random, Select
from uptake.text.types import Found, Passage


class Ten:
    """A source of ten passages, nearest first."""

    found = Found(
        tuple(Passage(i, f"passage {i}") for i in range(10)),
        tuple(range(10, 0, -1)),
        (0.0,) * 10,
        (0.0,) * 10,
    )

    def search(self, k: int) -> Found:
        return self.found.part(0, k)

    def sample(self, k: int, generator: np.random.Generator) -> Found:
        drawn = generator.permutation(10)[:k]
        return Found(
            tuple(self.found.passages[i] for i in drawn),
            (0.0,) * len(drawn),
            (0.0,) * len(drawn),
            (0.0,) * len(drawn),
        )

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return np.zeros((len(ids), 2), np.float32)


def test_nearest_keeps_the_order_of_the_source() -> None:
    found = Nearest().choose(Ten(), 3, np.random.default_rng(0))
    assert [passage.id for passage in found.passages] == [0, 1, 2]


@pytest.mark.parametrize(("least", "read"), [(0.0, 10), (0.1, 10), (0.5, 6), (0.91, 1), (1.0, 1)])
def test_neighbours_far_behind_the_best_are_left_out(least: float, read: int) -> None:
    found = Nearest(least).choose(Ten(), 99, np.random.default_rng(0))
    assert [passage.id for passage in found.passages] == list(range(read))
    # The first of them do not depend on how many were asked for.
    assert Nearest(least).choose(Ten(), 3, np.random.default_rng(0)).passages == found.passages[:3]


def test_a_share_of_a_score_needs_a_share_and_a_score() -> None:
    for least in (-0.1, 1.1, float("nan")):
        with pytest.raises(BadInput, match="use a share of the best score"):
            Nearest(least)

    class Distances(Ten):
        found = replace(Ten.found, scores=tuple(-1.0 * place for place in range(1, 11)))

    with pytest.raises(BadInput, match="the best score is -1"):
        Nearest(0.5).choose(Distances(), 3, np.random.default_rng(0))
    assert len(Nearest().choose(Distances(), 3, np.random.default_rng(0)).passages) == 3


def test_random_is_drawn_by_the_generator_alone() -> None:
    draws = [Random().choose(Ten(), 5, np.random.default_rng(seed)).passages for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert len({passage.id for passage in draws[0]}) == 5


@pytest.mark.parametrize("select", [Nearest(), Random()])
def test_any_selection(select: Select) -> None:
    assert select.name == type(select).__name__.lower()
    assert len(select.choose(Ten(), 99, np.random.default_rng(0)).passages) == 10
    with pytest.raises(BadInput, match="k is 0"):
        select.choose(Ten(), 0, np.random.default_rng(0))
