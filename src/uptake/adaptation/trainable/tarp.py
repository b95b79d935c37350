"""TARP: weights of attention rescaled at low rank, and a low-rank map of the input (arXiv 2207.03509)."""

from dataclasses import dataclass

import torch
from torch import nn

from uptake.adaptation.delta import Delta, Part
from uptake.adaptation.delta.delta import check_owner
from uptake.adaptation.delta.tarp import InputDependent, Rescaled
from uptake.adaptation.trainable.opening import open_parts
from uptake.adaptation.trainable.places import attention_matrices, check_rank, sides
from uptake.adaptation.trainable.trainable import Trainable, TrainableCopy
from uptake.errors import BadInput


@dataclass(frozen=True)
class TARP(Trainable):
    """The task-adaptive reparameterisation of "learning the difference", on all linear layers of attention.

    The published one scales every weight by 0.69 before it has learnt anything; here nothing changes before
    the first step. `layers` says of how many upper blocks.
    """

    rank: int = 4
    layers: int | None = None
    owner: str = "tarp"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise BadInput(f"TARP rank {self.rank}: use 1 or more")
        check_owner(self.owner)

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        return open_parts(module, tarp_parts(module, self.rank, self.layers, generator), self.owner, start)


def tarp_parts(
    module: nn.Module, rank: int, layers: int | None, generator: torch.Generator
) -> dict[str, Part]:
    """Return TARP's parts for all linear layers of attention, by what they stand on; they change nothing."""
    parts: dict[str, Part] = {}
    matrices = attention_matrices(module, layers)
    check_rank(module, rank, matrices)
    for name, transposed in matrices.items():
        layer = name.removesuffix(".weight")
        into, out = sides(module.get_submodule(layer))
        down = 0.02 * torch.randn(rank, into, generator=generator)
        parts[name] = Rescaled(torch.zeros(out, rank), down, transposed)
        parts[layer] = InputDependent.fresh(into, out, rank, generator)
    return parts
