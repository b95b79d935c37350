"""T-Few's losses for examples with wrong answers beside the right one (Liu et al. 2022, arXiv 2205.05638)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.examples import Example

SMALL = 0.01  # added to 1 - p, as published: the loss of a wrong token is at most -log of it
Wrong = Mapping[Example, Sequence[Example]]


@dataclass(frozen=True)
class Choices:
    """How much each loss counts: `unlikely`, that wrong answers are unlikely, token by token; `length`, that
    the right one is the likeliest of all, their likelihoods a token compared. The published weights are 1.
    """

    unlikely: float = 1.0
    length: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.unlikely < float("inf") and 0 <= self.length < float("inf")):
            raise BadInput(f"unlikely {self.unlikely}, length {self.length}: use 0 or a positive number")

    def losses(self, lm: LM, examples: Sequence[Example], wrong: Wrong) -> Tensor:
        """Return the loss of each example, [examples]; `wrong` gives wrong answers of those that have some.

        That of the right answer is its negative log-likelihood a token. One pass for all; differentiable.
        """
        owners = [place for place, each in enumerate(examples) for _ in wrong.get(each, ())]
        others = [other for each in examples for other in wrong.get(each, ())]
        log_probs = lm.token_log_probs([*examples, *others])
        right, bad = log_probs[: len(examples)], log_probs[len(examples) :]
        found = []
        for place, own in enumerate(right):
            mine = [each for owner, each in zip(owners, bad, strict=True) if owner == place]
            found.append(-own.mean() + (self._of(own, mine) if mine else 0.0))
        return torch.stack(found)

    def _of(self, right: Tensor, wrong: Sequence[Tensor]) -> Tensor:
        unlikely = -torch.log1p(SMALL - torch.cat([*wrong]).exp()).mean()
        scores = torch.stack([right.mean(), *(each.mean() for each in wrong)])
        return self.unlikely * unlikely - self.length * functional.log_softmax(scores, 0)[0]


def chosen(lm: LM, examples: Sequence[Example], wrong: Wrong) -> list[int]:
    """Return for each example which answer is the likeliest a token: 0 the right one, then its wrong ones."""
    told = []
    for each in examples:
        with torch.no_grad():
            scores = [float(found.mean()) for found in lm.token_log_probs([each, *wrong.get(each, ())])]
        told.append(max(range(len(scores)), key=scores.__getitem__))
    return told
