"""A difference of every entry of a parameter."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from uptake.adaptation.delta.part import WeightPart


@dataclass(frozen=True, eq=False)
class Dense(WeightPart):
    """A difference of the parameter's own shape."""

    values: Tensor

    def difference(self) -> Tensor:
        return self.values

    def plus(self, other: Self) -> Self:
        return type(self)(self.values + other.values)

    def times(self, factor: float) -> Self:
        return type(self)(self.values * factor)
