"""A table within its bytes: what is forgotten, and what is not kept."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uptake.lm.bounded_table import BoundedTable

TENSORS = [torch.ones(2) * number for number in range(4)]  # 8 bytes each


def filled(forgets: bool) -> BoundedTable[torch.Tensor]:
    kept = BoundedTable[torch.Tensor](20, forgets)
    for number in (0, 1):
        kept.put(number, TENSORS[number])
    assert kept.get(0) is TENSORS[0]
    kept.put(2, TENSORS[2])
    return kept


def test_the_one_used_longest_ago_is_forgotten() -> None:
    kept = filled(forgets=True)  # the first was asked for since: the second goes
    assert kept.get(1) is None and kept.get(0) is TENSORS[0] and kept.get(2) is TENSORS[2]


def test_where_nothing_is_forgotten_the_first_stay() -> None:
    kept = filled(forgets=False)
    assert kept.get(2) is None and kept.get(0) is TENSORS[0] and kept.get(1) is TENSORS[1]


@pytest.mark.parametrize("forgets", [True, False])
def test_what_never_fits_drives_nothing_out(forgets: bool) -> None:
    kept = filled(forgets)
    kept.put("large", torch.ones(6))
    assert kept.get("large") is None and len(kept) == 2 and kept.bytes == 16


@given(st.booleans(), st.integers(0, 60), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9))))
def test_bytes_are_those_of_what_is_there(forgets: bool, most: int, put: list[tuple[int, int]]) -> None:
    kept = BoundedTable[torch.Tensor](most, forgets)
    for key, size in put:
        kept.put(key, torch.ones(size))
        there = [found for key in range(6) if (found := kept.get(key)) is not None]
        assert kept.bytes == sum(found.nbytes for found in there) <= most and len(kept) == len(there)
