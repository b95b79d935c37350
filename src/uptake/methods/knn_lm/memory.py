"""Tokens that are searched by key: what a mixture needs of a memory, and one of a few thousand tokens."""

from collections.abc import Hashable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uptake.text.near import Near

Floats = NDArray[np.floating]
Places = NDArray[np.int64]


class SearchableTokens(Protocol):
    """What a model searches: the part of `text.Tokens` that prediction needs."""

    def search(self, keys: Floats, k: int) -> Near: ...

    def search_each(self, keys: Floats, k: int) -> Near: ...

    @property
    def reads(self) -> Hashable: ...

    def measure(self, keys: Floats, places: Places) -> Near: ...

    def after(self, places: Places) -> Places: ...


class TokenMemory:
    """A few thousand tokens in memory, searched exactly: `keys` [tokens, width], `values` [tokens].

    `ends` [tokens] marks the last token of each text.
    """

    def __init__(self, keys: Tensor, values: Tensor, ends: Tensor) -> None:
        self._keys = keys.double()
        self._values, self._ends = values.numpy(), ends.numpy()
        self._lengths = (self._keys**2).sum(-1)

    def search(self, keys: Floats, k: int) -> Near:
        wide = torch.from_numpy(keys).double()
        losses = (wide**2).sum(-1, keepdim=True) + self._lengths - 2 * wide @ self._keys.T
        near = losses.topk(min(k, len(self._keys)), largest=False).indices
        return self.measure(keys, near.numpy())

    def search_each(self, keys: Floats, k: int) -> Near:
        # A product's last bits depend on how many keys there are.
        return Near.joined([self.search(keys[row : row + 1], k) for row in range(len(keys))])

    @property
    def reads(self) -> Hashable:
        return id(self)

    def measure(self, keys: Floats, places: Places) -> Near:
        here = torch.from_numpy(np.maximum(places, 0))
        losses = np.stack([
            ((self._keys[row] - key) ** 2).sum(-1).numpy()
            for row, key in zip(here, torch.from_numpy(keys).double(), strict=True)
        ]) if len(keys) else np.empty(places.shape)  # fmt: skip
        losses = np.where(places >= 0, losses, np.inf)
        order = np.argsort(losses, axis=1, kind="stable")
        places, losses = np.take_along_axis(places, order, 1), np.take_along_axis(losses, order, 1)
        return Near(places, losses, np.where(places >= 0, self._values[np.maximum(places, 0)], 0))

    def after(self, places: Places) -> Places:
        return np.where((places >= 0) & ~self._ends[np.maximum(places, 0)], places + 1, -1)
