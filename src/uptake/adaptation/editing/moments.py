"""Mean and spread of rows that come in parts, by Welford's merge: one row is no NaN."""

from dataclasses import dataclass

import torch
from torch import Tensor

from uptake.adaptation.delta.part import Stored


@dataclass(frozen=True, eq=False)
class Moments(Stored):
    """Of `count` rows [width]: their mean, and the sum of their squared distances from it, float64."""

    mean: Tensor
    squares: Tensor
    count: int = 0

    @classmethod
    def empty(cls, width: int) -> "Moments":
        """Return those of no row."""
        return cls(torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))

    @classmethod
    def of(cls, rows: Tensor) -> "Moments":
        """Return those of rows [n, width]."""
        rows = rows.detach().double()
        if not len(rows):
            return cls.empty(rows.shape[1])
        mean = rows.mean(0)
        return cls(mean, (rows - mean).square().sum(0), len(rows))

    def merged(self, other: "Moments") -> "Moments":
        """Return those of the rows of both."""
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        squares = self.squares + other.squares + apart.square() * (self.count * other.count / count)
        return Moments(mean, squares, count)

    def standardised(self, rows: Tensor, epsilon: float = 1e-7) -> Tensor:
        """Return rows less the mean over the standard deviation (n - 1); as they are before two were seen."""
        if self.count < 2:
            return rows
        spread = (self.squares / (self.count - 1)).sqrt() + epsilon
        return (rows - self.mean.to(rows)) / spread.to(rows)
