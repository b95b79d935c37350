"""Keeps what the lowest blocks of a model make of a text, while only blocks above them are trained."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import skeleton
from uptake.adaptation.trainable.places import blocks
from uptake.lm.bounded_table import BoundedTable

KEPT = 1 << 28  # bytes of hidden states that stay in memory


class FrozenLayers:
    """What the lowest `count` blocks of a module make of a text; of the latest texts it is kept.

    `run(module, ids)` runs a module on ids [1, time]. The module itself gets no hook and stays as it is.
    """

    def __init__(
        self, module: nn.Module, count: int, run: Callable[[nn.Module, Tensor], object], kept: int = KEPT
    ) -> None:
        self.count, self._run = count, run
        self._module = skeleton(module)
        _, stack = blocks(self._module)
        self._device = next(module.parameters()).device
        self.returns_tuple = False  # what the blocks of some families return, with hidden states alone in it
        self.supported = True  # False: the block above takes more from below than hidden states
        stack[count - 1].register_forward_hook(self._see)
        stack[count].register_forward_pre_hook(_stop, with_kwargs=True)
        self._kept = BoundedTable[Tensor](kept)
        self.of((0,))

    def of(self, ids: tuple[int, ...]) -> Tensor:
        """Return what enters the first block above for these tokens, [1, time, width]."""
        if (known := self._kept.get(ids)) is not None:
            return known
        with torch.no_grad():
            try:
                self._run(self._module, torch.tensor([ids], device=self._device))
            except _ReachedError as reached:
                hidden = reached.hidden
            else:
                raise AssertionError("the block above the frozen ones was not run")
        self._kept.put(ids, hidden)
        return hidden

    def _see(self, block: nn.Module, inputs: object, output: Any) -> None:
        self.returns_tuple = isinstance(output, tuple)
        self.supported = isinstance(output, Tensor) or (self.returns_tuple and len(output) == 1)


class _ReachedError(Exception):
    """The pass has reached the first block above, with these hidden states."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def _stop(block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    raise _ReachedError(inputs[0] if inputs else named["hidden_states"])
