"""Points of the plane as 32 bits: the seven published distributions, their Gray code, distances of samples.

A coordinate is an integer of 16 bits, its sign and the binary-reflected Gray code of its size, as in the
published experiments (Dai et al. 2020, arXiv 2011.05363). Two distances: the published one, by the kernel
`bits - Hamming distance`, which sees nothing but the mean of each bit, and that of later work (Zhang et al.
2022, arXiv 2202.01361), exp(-Hamming distance / 10), which sees everything.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Points = NDArray[np.float64]
BITS, HALF = 32, 16  # of a point, of a coordinate
BANDWIDTH = 0.1  # of the exponential kernel


def two_spirals(count: int, draw: np.random.Generator) -> Points:
    turn = np.sqrt(draw.random(count)) * 3 * math.pi
    arm = np.stack([-np.cos(turn), np.sin(turn)], 1) * turn[:, None] + draw.random((count, 2)) / 2
    sign = np.where(np.arange(count) % 2, -1.0, 1.0)
    return arm * sign[:, None] / 3 + 0.1 * draw.standard_normal((count, 2))


def eight_gaussians(count: int, draw: np.random.Generator) -> Points:
    angle = draw.integers(8, size=count) * math.pi / 4
    centre = 4 * np.stack([np.cos(angle), np.sin(angle)], 1)
    return (centre + draw.standard_normal((count, 2)) / 2) / 1.414


def circles(count: int, draw: np.random.Generator) -> Points:
    angle = draw.random(count) * 2 * math.pi
    radius = np.where(np.arange(count) % 2, 0.5, 1.0)
    ring = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]
    return 3 * (ring + 0.08 * draw.standard_normal((count, 2)))


def moons(count: int, draw: np.random.Generator) -> Points:
    angle, lower = draw.random(count) * math.pi, np.arange(count) % 2
    across = np.where(lower, 1 - np.cos(angle), np.cos(angle))
    up = np.where(lower, 0.5 - np.sin(angle), np.sin(angle))
    return 2 * (np.stack([across, up], 1) + 0.1 * draw.standard_normal((count, 2))) + [-1, -0.2]


def pinwheel(count: int, draw: np.random.Generator) -> Points:
    out = 1 + 0.3 * draw.standard_normal(count)
    beside = 0.1 * draw.standard_normal(count)
    angle = draw.integers(5, size=count) * 2 * math.pi / 5 + np.exp(out) / 4
    return 2 * np.stack(
        [out * np.cos(angle) + beside * np.sin(angle), beside * np.cos(angle) - out * np.sin(angle)], 1
    )


def swissroll(count: int, draw: np.random.Generator) -> Points:
    turn = 1.5 * math.pi * (1 + 2 * draw.random(count))
    roll = np.stack([np.cos(turn), np.sin(turn)], 1) * turn[:, None]
    return (roll + draw.standard_normal((count, 2))) / 5


def checkerboard(count: int, draw: np.random.Generator) -> Points:
    across = draw.random(count) * 4 - 2
    up = draw.random(count) - 2 * draw.integers(2, size=count) + np.floor(across) % 2
    return 2 * np.stack([across, up], 1)


SETS: dict[str, Callable[[int, np.random.Generator], Points]] = {
    "2spirals": two_spirals,
    "8gaussians": eight_gaussians,
    "circles": circles,
    "moons": moons,
    "pinwheel": pinwheel,
    "swissroll": swissroll,
    "checkerboard": checkerboard,
}


@functools.cache
def reach(name: str) -> float:
    """Return what the largest integer of a coordinate stands for: the data and the published margin of 2."""
    return float(np.abs(SETS[name](5000, np.random.default_rng(1))).max()) + 2


def to_bits(points: Points, largest: float, half: int = HALF) -> NDArray[np.int8]:
    """Return [N, 2 * half] bits: a coordinate its sign and the Gray code of its size, up to `largest`."""
    steps = 2 ** (half - 1)
    size = np.minimum(np.abs(points) * steps / largest, steps - 1).astype(np.int64)
    gray = size ^ (size >> 1)
    digits = (gray[:, :, None] >> np.arange(half - 2, -1, -1)) & 1
    return np.concatenate([(points < 0)[:, :, None], digits], 2).reshape(len(points), -1).astype(np.int8)


def to_points(bits: NDArray[np.int8], largest: float, half: int = HALF) -> Points:
    """Return the points [N, 2] of bits, what `to_bits` made them from up to one step towards zero."""
    parts = bits.reshape(len(bits), 2, half).astype(np.int64)
    digits = np.bitwise_xor.accumulate(parts[:, :, 1:], 2)
    size = digits @ (1 << np.arange(half - 2, -1, -1))
    return np.where(parts[:, :, 0] == 1, -1.0, 1.0) * size * largest / 2 ** (half - 1)


def drawn(name: str, count: int, draw: np.random.Generator) -> Tensor:
    """Return [count, 32] bits of one of the seven distributions, as float32."""
    return torch.from_numpy(to_bits(SETS[name](count, draw), reach(name))).float()


def linear(distance: Tensor, bits: int) -> Tensor:
    return bits - distance


def exponential(distance: Tensor, bits: int) -> Tensor:
    return torch.exp(-BANDWIDTH * distance)


def squared_mmd(ours: Tensor, theirs: Tensor, kernel: Callable[[Tensor, int], Tensor]) -> float:
    """Return the unbiased squared maximum mean discrepancy of two samples of bits [N, D], in float64 sums.

    It is about 0, and below 0 by chance, for two samples of one law.
    """

    def total(one: Tensor, other: Tensor) -> float:
        summed = 0.0
        for part in one.split(1000):  # a tenth of the memory
            distance = part.sum(1, keepdim=True) + other.sum(1) - 2 * part @ other.T
            summed += float(kernel(distance, ours.shape[1]).sum(dtype=torch.float64))
        return summed

    n, m = len(ours), len(theirs)
    same = float(kernel(torch.zeros(1), ours.shape[1]))
    within = (total(ours, ours) - n * same) / (n * (n - 1)) + (total(theirs, theirs) - m * same) / (
        m * (m - 1)
    )
    return within - 2 * total(ours, theirs) / (n * m)
