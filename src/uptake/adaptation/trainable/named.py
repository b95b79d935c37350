"""The weights whose names have a part in common."""

from dataclasses import dataclass

import torch
from torch import nn

from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable.opening import open_weights
from uptake.adaptation.trainable.trainable import Trainable, TrainableCopy
from uptake.errors import BadInput


@dataclass(frozen=True)
class Named(Trainable):
    """Every weight whose name holds `part`, as `layers.1.mlp.down_proj` does for one matrix."""

    part: str = "mlp"

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        names = [name for name, _ in module.named_parameters()]
        if not (some := [name for name in names if self.part in name]):
            raise BadInput(
                f"part {self.part!r}: no weight is called so, use a part of {', '.join(names[:3])}"
            )
        return open_weights(module, some, start)
