"""How much each token of what is read counts: an argument of every gradient method, not a method.

Weights are of characters' spans, not of some tokenizer's tokens, so that one choice serves every
model. A choice with files or networks behind it loads them when it is first asked.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uptake.text import Passage

Spans = Sequence[tuple[int, int]]  # of characters, one a token, in order


class TokenWeights(ABC):
    """A choice of what counts."""

    @abstractmethod
    def of(self, passage: Passage, spans: Spans) -> Tensor:
        """Return one weight, 0 or more, for each token of the passage's text, given their spans."""


@dataclass(frozen=True)
class Uniform(TokenWeights):
    """Every token counts alike."""

    def of(self, passage: Passage, spans: Spans) -> Tensor:
        return torch.ones(len(spans))
