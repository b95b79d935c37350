"""Keeps what the lowest blocks of a model make of a text, while only blocks above them are trained."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import skeleton
from uptake.adaptation.trainable.places import blocks

KEPT = 1 << 28  # bytes of hidden states that stay in memory


class FrozenLayers:
    """What the lowest `count` blocks of a module make of a text; of the latest texts it is kept.

    `run(module, ids)` runs a module on ids [1, time]. The module itself gets no hook and stays as it is.
    """

    def __init__(
        self, module: nn.Module, count: int, run: Callable[[nn.Module, Tensor], object], kept: int = KEPT
    ) -> None:
        self.count, self._run, self._most = count, run, kept
        self._module = skeleton(module)
        _, stack = blocks(self._module)
        self._device = next(module.parameters()).device
        self.returns_tuple = False  # what the blocks of some families return, with hidden states alone in it
        self.supported = True  # False: the block above takes more from below than hidden states
        stack[count - 1].register_forward_hook(self._see)
        stack[count].register_forward_pre_hook(_stop, with_kwargs=True)
        self._kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self.of((0,))

    def of(self, ids: tuple[int, ...]) -> Tensor:
        """Return what enters the first block above for these tokens, [1, time, width]."""
        with self._lock:
            if ids in self._kept:
                self._kept.move_to_end(ids)
                return self._kept[ids]
        with torch.no_grad():
            try:
                self._run(self._module, torch.tensor([ids], device=self._device))
            except _ReachedError as reached:
                hidden = reached.hidden
            else:
                raise AssertionError("the block above the frozen ones was not run")
        with self._lock:
            if ids not in self._kept:
                self._kept[ids] = hidden
                self._bytes += hidden.nbytes
            while self._bytes > self._most and self._kept:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.nbytes
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
