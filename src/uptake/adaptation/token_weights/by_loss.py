"""A share of the tokens counts, those that the model predicts worst: the others are cheap to leave out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uptake.adaptation.token_weights.base import ByLoss, Spans, TokenWeights
from uptake.errors import BadInput
from uptake.text.types import Passage


@dataclass(frozen=True)
class BaseLoss(ByLoss):
    """The `share` of a passage's tokens that the model itself predicts worst weigh 1, all others 0.

    Its losses come from the store's activations where these are used (`activations=view`), else they cost a
    pass. The model makes no logits for tokens that count for nothing. At least one token counts; of equal
    losses those of earlier tokens are taken.
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        _check(self.share)

    def of_losses(self, passage: Passage, losses: Tensor) -> Tensor:
        order = torch.sort(losses, descending=True, stable=True).indices
        return _first(order, self.share)


@dataclass(frozen=True)
class RandomTokens(TokenWeights):
    """The control of `baseloss`: as many tokens of a passage, drawn at random, the same ones each time."""

    share: float = 0.25

    def __post_init__(self) -> None:
        _check(self.share)

    def of(self, passage: Passage, spans: Spans, before: Sequence[Passage] = ()) -> Tensor:
        draws = torch.Generator().manual_seed(passage.id)
        return _first(torch.randperm(len(spans), generator=draws), self.share)


def _first(order: Tensor, share: float) -> Tensor:
    weights = torch.zeros(len(order))
    weights[order[: max(1, round(share * len(order)))]] = 1.0
    return weights


def _check(share: float) -> None:
    if not 0 < share <= 1:
        raise BadInput(f"share {share}: use a number above 0 and up to 1")
