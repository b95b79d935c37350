"""What is trained where nobody says: all weights of a small model, the last blocks of a larger one.

The one place of that rule. With SmolLM2-135M the last 4 of 30 blocks cost a fifth of all weights (0.63
against 3.14 CPU seconds a passage of 1,024 characters), need a fifth of the memory beyond the model's own,
and gained as much or more: docs/tuning.md has the figures.
"""

from dataclasses import dataclass

import torch
from torch import nn

from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable import All, Top, Trainable, TrainableCopy, blocks
from uptake.errors import BadInput

SMALL = 50_000_000  # weights up to which a model counts as small
BLOCKS = 4  # that are trained of a larger one


def weights_of(module: nn.Module) -> int:
    """Return how many weights a model has; tied ones count once."""
    return sum(parameter.numel() for parameter in module.parameters())


@dataclass(frozen=True)
class Auto(Trainable):
    """`all` for a small model, `top(layers=4)` for a larger one."""

    def of(self, module: nn.Module) -> Trainable:
        """Return what is trained of this model; all of it where it has no list of blocks."""
        if weights_of(module) <= SMALL:
            return All()
        try:
            _, stack = blocks(module)
        except BadInput:
            return All()
        return Top(min(BLOCKS, len(stack)))

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        return self.of(module).copy(module, start, generator)
