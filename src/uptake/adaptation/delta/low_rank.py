"""A low-rank difference of a weight matrix (Hu et al. 2021)."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from uptake.adaptation.delta.overlay import Hook, Overlay, check_free, on_output, wide
from uptake.adaptation.delta.part import Name, WeightPart
from uptake.errors import BadInput, Mismatch


@dataclass(frozen=True, eq=False)
class LowRank(WeightPart):
    """A difference `scale * up @ down`; up is [out, rank], down [rank, in].

    `transposed` says that the weight it belongs to is stored [in, out], as in GPT-2's Conv1D.
    """

    up: Tensor
    down: Tensor
    scale: float = 1.0
    transposed: bool = False

    def __post_init__(self) -> None:
        up, down = self.up.shape, self.down.shape
        if len(up) != 2 or len(down) != 2 or up[1] != down[0]:
            raise BadInput(
                f"low-rank factors of shapes {tuple(up)} and {tuple(down)}: give [out, rank] and [rank, in]"
            )

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight it belongs to."""
        sides = (len(self.up), self.down.shape[1])
        return torch.Size(sides[::-1] if self.transposed else sides)

    def difference(self) -> Tensor:
        product = (self.up @ self.down) * self.scale
        return product.T if self.transposed else product

    def lead(self, site: Overlay[Any], name: Name) -> dict[str, nn.Parameter]:
        """Add the product to what the layer makes of its input, so that the factors can be trained."""
        layer, _, last = name.path.rpartition(".")
        if last != "weight" or site.parameter(name.path).shape != self.shape:
            raise Mismatch(
                f"delta has {name.path!r} of shape {tuple(self.shape)}: name the weight of a linear layer of "
                "that shape"
            )
        module, key = site.submodule(layer), f"low_rank_by_{name.owner}"
        check_free(module, f"{key}_up")
        halves = {
            half: site.register(module, f"{key}_{half}", value)
            for half, value in (("up", self.up), ("down", self.down))
        }
        module.register_forward_hook(_AddProduct(key, self.scale))
        return halves

    def plus(self, other: Self) -> Self:
        """Return the exact sum, by putting the ranks side by side."""
        if self.transposed != other.transposed:
            raise Mismatch(
                "two low-rank parts of one weight disagree on its orientation: they are of different models"
            )
        up = torch.cat([self.up * self.scale, other.up * other.scale], dim=1)
        return type(self)(up, torch.cat([self.down, other.down]), 1.0, self.transposed)

    def times(self, factor: float) -> Self:
        return type(self)(self.up, self.down, self.scale * factor, self.transposed)


@dataclass(frozen=True)
class _AddProduct(Hook):
    key: str
    scale: float

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        up, down = (getattr(module, f"{self.key}_{half}") for half in ("up", "down"))
        product = functional.linear(functional.linear(wide(inputs[0]), down), up) * self.scale
        return on_output(output, lambda tensor: tensor + product.to(tensor.dtype))
