"""Where noise and draws come from: the operating system's entropy, or a seed, which hides nothing."""

import math
import os
from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

_AT_ONCE = 1 << 20  # numbers drawn at once


class Randomness(ABC):
    """Normal numbers, and units that are in a step."""

    secret: bool

    @abstractmethod
    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal numbers of the shape, type and device of a tensor."""

    @abstractmethod
    def chosen(self, count: int, rate: float) -> list[int]:
        """Return which of `count` units are drawn, each by itself at probability `rate` (Poisson)."""


class Secret(Randomness):
    """From the operating system: nobody can compute the draws again, from no seed and no other draw.

    Each normal number is half the sum of four, so that the gaps between floating-point numbers do not give
    the value without noise away (Mironov 2012; Holohan & Braghin 2021, arXiv 2107.10138).
    """

    secret = True

    def normal(self, like: Tensor) -> Tensor:
        drawn = np.empty(like.numel(), dtype=np.float64)
        for start in range(0, len(drawn), _AT_ONCE):
            part = drawn[start : start + _AT_ONCE]
            part[:] = sum(_normal(len(part)) for _ in range(4)) / 2
        return torch.from_numpy(drawn).reshape(like.shape).to(like)

    def chosen(self, count: int, rate: float) -> list[int]:
        return np.flatnonzero(_uniform(count) <= rate).tolist()


class Seeded(Randomness):
    """From a seed, for tests and controls: whoever knows it can take the noise off again."""

    secret = False

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, like: Tensor) -> Tensor:
        drawn = torch.randn(
            like.shape, generator=self._generator, dtype=torch.promote_types(like.dtype, torch.float32)
        )
        return drawn.to(like)

    def chosen(self, count: int, rate: float) -> list[int]:
        drawn = torch.rand(count, generator=self._generator, dtype=torch.float64)
        return torch.nonzero(drawn < rate)[:, 0].tolist()


def _uniform(count: int) -> "np.typing.NDArray[np.float64]":
    """Return numbers above 0 and up to 1, of 53 random bits each."""
    whole = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)
    return (whole.astype(np.float64) + 1.0) * 2.0**-53


def _normal(count: int) -> "np.typing.NDArray[np.float64]":
    """Return standard normal numbers, by Box and Muller's transform."""
    half = -(-count // 2)
    radius, turn = np.sqrt(-2 * np.log(_uniform(half))), 2 * math.pi * _uniform(half)
    return np.concatenate([radius * np.cos(turn), radius * np.sin(turn)])[:count]
