"""The second moment of what enters a layer: how much each direction of its input is used by ordinary text."""

from dataclasses import dataclass

import torch
from torch import Tensor

from uptake.errors import BadInput, Mismatch


@dataclass(frozen=True, eq=False)
class KeyCovariance:
    """C = E[k kᵀ], uncentred, over `count` inputs; `total` [width, width] is the sum of k kᵀ, float64.

    Parts of a text can be seen in any order and merged: the sum is the same up to rounding.
    """

    total: Tensor
    count: int = 0

    @classmethod
    def empty(cls, width: int) -> "KeyCovariance":
        """Return that of nothing seen."""
        return cls(torch.zeros(width, width, dtype=torch.float64))

    def seen(self, keys: Tensor) -> "KeyCovariance":
        """Return this with more inputs [..., width]. Raises Mismatch for another width."""
        rows = keys.detach().reshape(-1, keys.shape[-1]).to(self.total)
        if rows.shape[1] != len(self.total):
            raise Mismatch(f"inputs of width {rows.shape[1]} in statistics of width {len(self.total)}")
        return KeyCovariance(self.total + rows.T @ rows, self.count + len(rows))

    def merged(self, other: "KeyCovariance") -> "KeyCovariance":
        """Return that of both."""
        if other.total.shape != self.total.shape:
            raise Mismatch(f"statistics of widths {len(self.total)} and {len(other.total)} cannot be merged")
        return KeyCovariance(self.total + other.total, self.count + other.count)

    def matrix(self, ridge: float = 0.0) -> Tensor:
        """Return C [width, width] with `ridge` times its mean diagonal added to the diagonal.

        The ridge keeps it invertible in directions that the text never used. Raises BadInput where nothing
        was seen.
        """
        if not self.count:
            raise BadInput("no input was seen: give some text to take the statistics from")
        found = self.total / self.count
        return found + ridge * found.diagonal().mean() * torch.eye(len(found), dtype=found.dtype)
