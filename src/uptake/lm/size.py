"""How large the model underneath an LM is: what defaults go by."""

from dataclasses import dataclass

import torch
from torch import nn

from uptake.adaptation.by_size import weights_of
from uptake.adaptation.delta import Delta, skeleton
from uptake.adaptation.optimizers import AUTO, Optimizer
from uptake.adaptation.trainable import Trainable, TrainableCopy
from uptake.lm.base import LM


@dataclass(frozen=True)
class _Nothing(Trainable):
    """No weight at all: for a private copy to look at."""

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        return TrainableCopy(skeleton(module), {}, lambda: start)


def module_of(lm: LM) -> nn.Module:
    """Return a private copy of the module underneath; it shares every tensor."""
    return lm.trainable_copy(_Nothing(), Delta(lm.fingerprint), torch.Generator())[1].module


def size_of(lm: LM) -> int:
    """Return how many weights the model underneath has."""
    return weights_of(module_of(lm))


def settled(optimizer: Optimizer, lm: LM) -> Optimizer:
    """Return the optimizer; where nobody has chosen its learning rate, at the usual one for this model."""
    return optimizer.settled(size_of(lm)) if optimizer.learning_rate == AUTO else optimizer
