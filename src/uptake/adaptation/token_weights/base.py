"""The contract of token weights, and the plainest of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uptake.errors import BadInput
from uptake.text.types import Passage

Spans = Sequence[tuple[int, int]]  # of characters, one a token, in order


class TokenWeights(ABC):
    """A choice of what counts."""

    @abstractmethod
    def of(self, passage: Passage, spans: Spans, before: Sequence[Passage] = ()) -> Tensor:
        """Return one weight, 0 or more, for each token of the passage's text, given their spans.

        `before` is what was read before this passage, as far as the reader remembers it.
        """


@dataclass(frozen=True)
class Uniform(TokenWeights):
    """Every token counts alike."""

    def of(self, passage: Passage, spans: Spans, before: Sequence[Passage] = ()) -> Tensor:
        return torch.ones(len(spans))


class ByLoss(TokenWeights):
    """A choice that goes by the loss of the model itself, before it has learnt anything, on each token."""

    @abstractmethod
    def of_losses(self, passage: Passage, losses: Tensor) -> Tensor:
        """Return one weight, 0 or more, for each token of the passage's text, given their losses in nats.

        A token that is not learnt, as the first one without an opening token, has the loss 0.
        """

    def of(self, passage: Passage, spans: Spans, before: Sequence[Passage] = ()) -> Tensor:
        name = type(self).__name__.lower()
        raise BadInput(f"token_weights={name} goes by a model's losses, which this method does not give it")


def covering(spans: Spans, marked: Spans) -> Tensor:
    """Return 1 for each span that shares a character with one of the `marked` spans, else 0."""
    # Sorted by their beginnings, the marked spans are walked along once.
    waiting = sorted((start, end) for start, end in marked if start < end)
    out, place, furthest = torch.zeros(len(spans)), 0, 0
    for token, (start, end) in enumerate(spans):
        while place < len(waiting) and waiting[place][0] < end:
            furthest = max(furthest, waiting[place][1])
            place += 1
        out[token] = float(start < furthest and start < end)
    return out
