"""Where nobody says what is trained: all of a small model, the last blocks of a larger one."""

from dataclasses import dataclass

import torch
from torch import nn

from uptake.adaptation import by_size
from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable.all import All
from uptake.adaptation.trainable.places import blocks
from uptake.adaptation.trainable.top import Top
from uptake.adaptation.trainable.trainable import Trainable, TrainableCopy
from uptake.errors import BadInput


@dataclass(frozen=True)
class Auto(Trainable):
    """`all` up to 50 million weights, `top(layers=4)` beyond."""

    def of(self, module: nn.Module) -> Trainable:
        """Return what is trained of this model; all of it where it has no list of blocks."""
        if by_size.weights_of(module) <= by_size.SMALL:
            return All()
        try:
            _, stack = blocks(module)
        except BadInput:
            return All()
        return Top(min(by_size.BLOCKS, len(stack)))

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        return self.of(module).copy(module, start, generator)
