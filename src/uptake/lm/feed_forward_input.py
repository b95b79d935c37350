"""Reads the input of a transformer's last feed-forward on a private copy; the module itself has no hook."""

import threading
from typing import Any

from torch import Tensor, nn

from uptake.adaptation.delta import skeleton
from uptake.adaptation.trainable.places import blocks
from uptake.errors import BadInput

_FEED_FORWARDS = ("mlp", "fc1")  # what families of models call it; `fc1` is its first half


class FeedForwardInput:
    """A copy of a module that shares every tensor and stores the latest input of its last feed-forward.

    That is the hidden state after the norm before it, in sequential blocks (GPT-2, Llama, Qwen) and
    parallel ones (NeoX, GPT-J) alike. Raises BadInput for a module without a feed-forward by a known name.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = skeleton(module)
        self._last = threading.local()  # two threads may run one model
        _, stack = blocks(self.module)
        part = next((getattr(stack[-1], name) for name in _FEED_FORWARDS if hasattr(stack[-1], name)), None)
        if not isinstance(part, nn.Module):
            raise BadInput(
                f"{type(module).__name__}: its last block has no {' or '.join(_FEED_FORWARDS)} whose input "
                "could be a key; use a GPT-2, Llama, Qwen or NeoX shape"
            )
        part.register_forward_pre_hook(self._see)

    def seen(self) -> Tensor:
        """Return what entered at this thread's last forward pass, [batch, time, width], and forget it."""
        found: Tensor = self._last.__dict__.pop("seen")
        return found

    def _see(self, part: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._last.seen = inputs[0]
