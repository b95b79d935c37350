"""How much of a prediction the neighbours make: a fixed share, one by distance, or what predicts best."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from uptake.errors import BadInput
from uptake.lm.experts import FixedShare


class Weight(ABC):
    """How much of the prediction the neighbours make."""

    @abstractmethod
    def of(self, nearest: Tensor) -> Tensor:
        """Return the share, 0 to below 1, for each squared distance of the nearest neighbour."""


@dataclass(frozen=True)
class Constant(Weight):
    """The same share everywhere, as in the paper."""

    share: float = 0.25

    def __post_init__(self) -> None:
        _check_share(self.share)

    def of(self, nearest: Tensor) -> Tensor:
        return torch.full_like(nearest, self.share)


@dataclass(frozen=True)
class DistanceDecay(Weight):
    """`most` times exp(-d / reach), d the nearest neighbour's squared distance: the nearer, the more.

    Drozdov et al. (2022, arXiv 2210.15859) let the share depend on how near the nearest is, by bins
    chosen on validation text; this is a smooth function of the same, with two numbers to choose.
    """

    most: float = 0.5
    reach: float = 100.0

    def __post_init__(self) -> None:
        _check_share(self.most)
        if not 0 < self.reach < float("inf"):
            raise BadInput(f"reach {self.reach}: use a positive squared distance")

    def of(self, nearest: Tensor) -> Tensor:
        return self.most * torch.exp(-nearest / self.reach)


@dataclass(frozen=True)
class Bayes(Weight):
    """The share and the temperature that have predicted the text best so far, by Bayes' rule.

    Every pair of a share and a temperature is an expert, and the model by itself is one: it begins with
    `base_weight`, the others with the rest in equal parts. Each token is predicted by all of them, weighed by
    the probability they gave to the tokens before. A text costs at most log2(1 / base_weight) bits more than
    under the model by itself. `temperatures` are multiples of the method's.
    """

    shares: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4)
    temperatures: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
    base_weight: float = 0.5

    def __post_init__(self) -> None:
        for share in self.shares:
            _check_share(share)
        if not self.shares or not self.temperatures or not min(self.temperatures) > 0:
            raise BadInput(
                f"shares {self.shares}, temperatures {self.temperatures}: give one or more, above 0"
            )
        if not 0 < self.base_weight < 1:
            raise BadInput(f"base_weight {self.base_weight}: use a probability between 0 and 1")

    def of(self, nearest: Tensor) -> Tensor:
        raise NotImplementedError("it has many shares: see `experts`")

    @cached_property
    def sharing(self) -> FixedShare:
        """How the weights of the experts begin and change."""
        count = len(self.shares) * len(self.temperatures)
        return FixedShare((self.base_weight, *[(1 - self.base_weight) / count] * count))

    def experts(self, own: Tensor, right: Tensor) -> Tensor:
        """Return the log-probability of tokens by every expert, [tokens, experts], the model's own first.

        `own` [tokens] is the model's log-probability, `right` [tokens, temperatures] what neighbours give.
        """
        shares = own.new_tensor(self.shares)[:, None]
        mixed = torch.logaddexp(torch.log1p(-shares) + own[:, None, None], (shares * right[:, None]).log())
        return torch.cat([own[:, None], mixed.flatten(1)], 1)

    def combined(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the experts' log-weights [places, experts] come to.

        That is the logarithm of the model's own share, [places, 1], and the neighbours' at each temperature,
        [places, temperatures].
        """
        shares = weights.new_tensor(self.shares)[:, None]
        each = weights[:, 1:].exp().reshape(-1, len(self.shares), len(self.temperatures))
        neighbours = (each * shares).sum(1)
        return torch.log1p(-neighbours.sum(-1, keepdim=True)), neighbours


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise BadInput(f"share {share}: use 0 or more, and less than 1")
