"""The weights of the upper blocks."""

from dataclasses import dataclass

import torch
from torch import nn

from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable.opening import open_weights
from uptake.adaptation.trainable.places import upper_blocks
from uptake.adaptation.trainable.trainable import Trainable, TrainableCopy


@dataclass(frozen=True)
class Top(Trainable):
    """Every weight of the last `layers` blocks."""

    layers: int = 2

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        prefixes = tuple(f"{name}." for name in upper_blocks(module, self.layers))
        return open_weights(
            module, [n for n, _ in module.named_parameters() if n.startswith(prefixes)], start
        )
