"""All weights of the model."""

from dataclasses import dataclass

import torch
from torch import nn

from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable.opening import open_weights
from uptake.adaptation.trainable.trainable import Trainable, TrainableCopy


@dataclass(frozen=True)
class All(Trainable):
    """Every weight of the model."""

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        return open_weights(module, [name for name, _ in module.named_parameters()], start)
