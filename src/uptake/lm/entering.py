"""What enters one block of a model for many texts at once; the blocks above it are not run.

`FrozenLayers` keeps it of single texts; this keeps nothing.
"""

from typing import Any

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import skeleton
from uptake.adaptation.trainable.places import blocks
from uptake.lm.causal import Causal


class Entering:
    """A private copy of a model that stops before block `number`."""

    def __init__(self, lm: Causal, number: int) -> None:
        module = skeleton(lm.module)
        blocks(module)[1][number].register_forward_pre_hook(_stop, with_kwargs=True)
        self._lower = lm.around(module)

    def of(self, ids: Tensor) -> Tensor:
        """Return what enters the block for ids [texts, time], [texts, time, width]."""
        with torch.no_grad():
            try:
                self._lower.hidden(ids)
            except _ReachedError as reached:
                return reached.hidden
        raise AssertionError("the block was not run")


class _ReachedError(Exception):
    """The pass has reached the block, with these hidden states: neither it nor those above need run."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def _stop(block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    raise _ReachedError((inputs[0] if inputs else named["hidden_states"]).detach())
