"""Sets of 64-bit hashes as sorted arrays: what two texts are compared by."""

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

BASE = np.uint64(0x9E3779B97F4A7C15)  # of polynomial hashes; odd, so it has an inverse modulo 2^64


def distinct(hashes: Hashes) -> Hashes:
    """Return these hashes sorted, each once; the array given is sorted in place."""
    # np.unique would put millions of hashes into a table first: 15 times slower than a sort.
    hashes.sort()
    first = np.ones(len(hashes), bool)
    first[1:] = hashes[1:] != hashes[:-1]
    return hashes[first]


def shared(one: Hashes, other: Hashes) -> int:
    """Count what two sorted sets have in common, in time ruled by the smaller."""
    small, large = sorted((one, other), key=len)
    if not len(small):
        return 0
    places = np.minimum(np.searchsorted(large, small), len(large) - 1)
    return int(np.count_nonzero(large[places] == small))


def rolled(units: Hashes, length: int) -> Hashes:
    """Return one hash for each run of `length` units, in order; none where there are fewer."""
    count = len(units) - length + 1
    found = units[: max(count, 0)].copy()
    for offset in range(1, length if count > 0 else 1):
        found *= BASE
        found += units[offset : offset + count]
    return found
