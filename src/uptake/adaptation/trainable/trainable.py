"""What every kind of trainable is: private copies of a module with fresh parameters to train.

`copy` gives such a copy; `delta` on what it returns gives how the parameters have changed. This folder knows
no language model, only modules.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from uptake.adaptation.delta import Delta
from uptake.adaptation.delta.delta import WEIGHTS
from uptake.adaptation.delta.part import Part


@dataclass(frozen=True)
class TrainableCopy:
    """A private module and its trainable parameters by name; `delta()` returns the difference."""

    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    delta: Callable[[], Delta]


class Trainable(ABC):
    """A choice of what is trained. Its parts of a delta are `owner`'s; those of others stay as they are."""

    owner: str = WEIGHTS
    neutral: bool = True  # a copy that has taken no step computes what the model at its start does

    @property
    def stacks(self) -> bool:
        """Whether `stackable` gives all that it trains, so that rows of a batch can share passes."""
        return False

    @abstractmethod
    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        """Return a private copy of `module` that stands at `start`, ready to train.

        `generator` makes whatever has to begin at random. The module itself is not touched. Raises BadInput
        for a module that has no place for what is trained.
        """

    def stackable(
        self, module: nn.Module, start: Delta, generator: torch.Generator
    ) -> Mapping[str, Part] | None:
        """Return the parts that `copy` would train, standing at `start`, by what they stand on.

        They are for `side_by_side`, which trains those of many rows at once; None where they, or what else
        `start` holds, do not stack.
        """
        return None
