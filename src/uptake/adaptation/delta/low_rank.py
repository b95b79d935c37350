"""A low-rank difference of a weight matrix (Hu et al. 2021)."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from uptake.adaptation.delta.part import WeightPart
from uptake.errors import BadInput, Mismatch


@dataclass(frozen=True, eq=False)
class LowRank(WeightPart):
    """A difference `scale * up @ down`; up is [out, rank], down [rank, in].

    `transposed` says that the weight it belongs to is stored [in, out], as in GPT-2's Conv1D.
    """

    up: Tensor
    down: Tensor
    scale: float = 1.0
    transposed: bool = False

    def __post_init__(self) -> None:
        up, down = self.up.shape, self.down.shape
        if len(up) != 2 or len(down) != 2 or up[1] != down[0]:
            raise BadInput(
                f"low-rank factors of shapes {tuple(up)} and {tuple(down)}: give [out, rank] and [rank, in]"
            )

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight it belongs to."""
        sides = (len(self.up), self.down.shape[1])
        return torch.Size(sides[::-1] if self.transposed else sides)

    def difference(self) -> Tensor:
        product = (self.up @ self.down) * self.scale
        return product.T if self.transposed else product

    def plus(self, other: Self) -> Self:
        """Return the exact sum, by putting the ranks side by side."""
        if self.transposed != other.transposed:
            raise Mismatch(
                "two low-rank parts of one weight disagree on its orientation: they are of different models"
            )
        up = torch.cat([self.up * self.scale, other.up * other.scale], dim=1)
        return type(self)(up, torch.cat([self.down, other.down]), 1.0, self.transposed)

    def times(self, factor: float) -> Self:
        return type(self)(self.up, self.down, self.scale * factor, self.transposed)
