"""Adds the output of a function behind the attention of some blocks of a transformer, on a private copy.

A sequential block computes h = x + a, a its attention's part, and from h its feed-forward. `find`
finds, in one small forward pass, the module that gives `a`; `AttentionHook` adds to what it gives, so that
everything behind it sees h + add(h). It knows no method, and no model by name.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import skeleton
from uptake.adaptation.trainable.places import blocks
from uptake.errors import BadInput

Add = Callable[[int, Tensor], Tensor | None]  # of a block's number and h; None adds nothing


class AttentionHook:
    """A private module whose blocks add something to h; `places` are what `find` gave for it."""

    def __init__(self, module: nn.Module, places: Mapping[int, str]) -> None:
        self.module = module
        self._now = threading.local()  # two threads may run one model
        _, stack = blocks(module)
        for number, name in places.items():
            stack[number].register_forward_pre_hook(partial(self._enter, number), with_kwargs=True)
            stack[number].get_submodule(name).register_forward_hook(partial(self._leave, number))

    @contextmanager
    def adding(self, add: Add) -> Iterator[None]:
        """Let the module add this, in this thread, for as long as the context lasts."""
        self._now.add, self._now.entered = add, {}
        try:
            yield
        finally:
            self._now.__dict__.clear()

    def _enter(self, number: int, block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if hasattr(self._now, "add"):
            self._now.entered[number] = inputs[0] if inputs else named["hidden_states"]

    def _leave(self, number: int, part: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if not hasattr(self._now, "add"):
            return None
        own = _first(output)
        entered = self._now.entered.pop(number)
        more = self._now.add(number, entered + own.reshape(entered.shape))
        if more is None:
            return None
        # Some models flatten batch and time; some return attention weights besides their output.
        whole = own + more.to(own.dtype).reshape(own.shape)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole


def find(module: nn.Module, layers: Sequence[int]) -> dict[int, str]:
    """Return for each of these blocks the name, in it, of the module that gives `a` of h = x + a.

    Raises BadInput where a block has no h: where attention and feed-forward stand side by side (NeoX,
    GPT-J), where sums are normed before they go on (OPT-350m), or where parts are scaled (Granite).
    """
    private = skeleton(module)
    if getattr(getattr(private, "config", None), "is_encoder_decoder", False):
        raise BadInput(
            f"{type(module).__name__} is an encoder-decoder, which reads no text chunk by chunk: use "
            "a causal model"
        )
    _, stack = blocks(private)
    for layer in layers:
        if not 0 <= layer < len(stack):
            raise BadInput(f"layer {layer + 1}: the model has {len(stack)} blocks, use 1 to {len(stack)}")
    seen = {layer: _Seen(stack[layer]) for layer in layers}
    ids = torch.arange(1, 5, device=next(module.parameters()).device)[None]
    with torch.no_grad():
        private(input_ids=ids)
    return {layer: one.place(type(module).__name__) for layer, one in seen.items()}


class _Seen:
    """What went through one block and through every module of it, in one forward pass."""

    def __init__(self, block: nn.Module) -> None:
        self.given: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}
        for name, part in block.named_modules():
            part.register_forward_pre_hook(partial(self._give, name), with_kwargs=True)
            part.register_forward_hook(partial(self._make, name))

    def _give(self, name: str, part: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        found = inputs[0] if inputs else named.get("hidden_states")
        if isinstance(found, Tensor):
            self.given[name] = found

    def _make(self, name: str, part: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(first := _first(output), Tensor):
            self.made[name] = first

    def place(self, kind: str) -> str:
        """Return the outermost module whose output plus x is what goes on and what is added to at the end."""
        x, out = self.given.pop(""), self.made.pop("")
        for name in sorted(self.made, key=lambda name: name.count(".")):
            own = self.made[name]
            if own.numel() != x.numel():
                continue
            h = x + own.reshape(x.shape)
            goes_on = any(_is_sum(given, x, own) for given in self.given.values())
            if goes_on and any(_is_sum(out, h, made) for made in self.made.values()):
                return name
        raise BadInput(
            f"{kind}: its blocks do not add attention first and a feed-forward of the sum then, so there is "
            "no place between; use a GPT-2, Llama or Qwen shape"
        )


def _is_sum(whole: Tensor, one: Tensor, other: Tensor) -> bool:
    """Whether `whole` is the sum of both, entry by entry, up to rounding.

    An entry is off by what its own terms lose: in trained models a few of the stream's are thousands of times
    the rest, and of many a time what a block adds to them.
    """
    if not whole.numel() == one.numel() == other.numel():
        return False
    one, other = one.reshape(whole.shape), other.reshape(whole.shape)
    lost = 32 * torch.finfo(whole.dtype).eps * (one.abs() + other.abs())
    return bool(((one + other - whole).abs() <= lost).all())


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output
