"""Selections hand on what the source gives them, and ask it for nothing that leaks."""

from collections.abc import Sequence

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
