"""A part that is active for some inputs only: a gate reads what enters a module, position by position.

That is what edits need that leave all other inputs as they were (GRACE, Hartvigsen et al. 2023,
arXiv 2211.11031). The module is computed with the part and without, and the gate picks.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from uptake.adaptation.delta.overlay import Hook, Overlay, check_free, wide
from uptake.adaptation.delta.part import Name, Part, Stored
from uptake.errors import BadInput, Mismatch


class Gate(Stored, ABC):
    """Says where a part applies. Each place by itself, for a token knows none that come later."""

    @abstractmethod
    def opens(self, inputs: Tensor) -> Tensor:
        """Return which places [rows, time] of what enters the module [rows, time, width] it is open at."""


@dataclass(frozen=True, eq=False)
class Near(Gate):
    """Open where the input is within `radius` of one of `keys` [keys, width], by Euclidean distance."""

    keys: Tensor
    radius: float

    def __post_init__(self) -> None:
        if not self.radius >= 0:
            raise BadInput(f"gate radius {self.radius}: use 0 or more")

    def opens(self, inputs: Tensor) -> Tensor:
        inputs = wide(inputs)
        # Differences, not products: what is equal is at distance zero.
        apart = (inputs.unsqueeze(-2) - self.keys.to(inputs)).norm(dim=-1)
        near: Tensor = apart <= self.radius
        return near.any(-1)


@dataclass(frozen=True, eq=False)
class Gated(Part):
    """`inner`, on what is `within` the module that this part is named after, wherever the `gate` is open.

    It scales as `inner` does; two of one name add only under the very same gate.
    """

    inner: Part
    gate: Gate
    within: str = ""
    order = 2

    def __post_init__(self) -> None:
        if self.inner.input_tokens:
            raise BadInput("a soft prompt cannot be gated: it is there before any input is seen")

    @property
    def holds_weights(self) -> bool:
        return self.inner.order <= 0

    def apply(self, site: Overlay[Any], name: Name) -> dict[str, nn.Parameter]:
        module, key = site.submodule(name.path), f"gated_by_{name.owner}"
        check_free(module, key)
        inside = Overlay(module)
        found = self.inner.apply(inside, Name(name.owner, self.within))
        module.add_module(key, inside.module)
        module.register_forward_hook(_Pick(key, self.gate), with_kwargs=True)
        return {f"inner/{inner}": parameter for inner, parameter in found.items()}

    def plus(self, other: Self) -> Self:
        mine, theirs = self.gate.tensors(), other.gate.tensors()
        same = mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
        alike = type(self.gate) is type(other.gate) and self.gate.settings() == other.gate.settings()
        if not (same and alike) or self.within != other.within or type(self.inner) is not type(other.inner):
            raise Mismatch("two gated parts with different gates cannot be added: give them different owners")
        return type(self)(self.inner.plus(other.inner), self.gate, self.within)

    def times(self, factor: float) -> Self:
        return type(self)(self.inner.times(factor), self.gate, self.within)


@dataclass(frozen=True)
class _Pick(Hook):
    key: str
    gate: Gate

    def __call__(
        self, module: nn.Module, inputs: tuple[Any, ...], more: dict[str, Any], output: Any
    ) -> Tensor:
        if more or len(inputs) != 1 or not isinstance(output, Tensor):
            raise BadInput(
                f"a gate on a {type(module).__name__}, which takes or returns more than one tensor: put it "
                "on a feed-forward or a linear layer"
            )
        changed: Tensor = module.get_submodule(self.key)(inputs[0])
        return torch.where(self.gate.opens(inputs[0])[..., None], changed, output)
