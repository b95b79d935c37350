"""TARP (Hou et al. 2022, arXiv 2207.03509): a low-rank rescaling of weights, and a map that depends on the
input."""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from uptake.adaptation.delta.module import Inserted
from uptake.adaptation.delta.overlay import Hook, Overlay, check_free, on_output, wide
from uptake.adaptation.delta.part import Name, Part
from uptake.errors import BadInput, Mismatch

ONE = math.log(math.e - 1)  # softplus of it is one


@dataclass(frozen=True, eq=False)
class Rescaled(Part):
    """Multiplies a weight matrix by 1 + softplus(up @ down + ln(e - 1)) - softplus(ln(e - 1)), entry by
    entry.

    That is the published softplus(up @ down), moved so that zero leaves the weight exactly as it is. `up` is
    [out, rank], `down` [rank, in]; `transposed` says that the weight is stored [in, out]. It scales the
    base's weight, before any difference is added to it, and can be neither added nor scaled itself.
    """

    up: Tensor
    down: Tensor
    transposed: bool = False
    order = -1

    def __post_init__(self) -> None:
        if self.up.ndim != 2 or self.down.ndim != 2 or self.up.shape[1] != self.down.shape[0]:
            raise BadInput(
                f"factors of shapes {tuple(self.up.shape)} and {tuple(self.down.shape)}: give [out, rank] "
                "and [rank, in]"
            )

    def apply(self, site: Overlay[Any], name: Name) -> dict[str, nn.Parameter]:
        stands = self._checked(wide(site.parameter(name.path).detach()), name)
        change = _change(self.up.to(stands), self.down.to(stands), self.transposed)
        site.replace(name.path, stands + change * stands)
        return {}

    def lead(self, site: Overlay[Any], name: Name) -> dict[str, nn.Parameter]:
        layer, _, last = name.path.rpartition(".")
        if last != "weight":
            raise BadInput(f"{name.path!r} cannot be rescaled: name the weight of a linear layer")
        weight = self._checked(site.parameter(name.path).detach(), name)
        module, key = site.submodule(layer), f"rescaled_by_{name.owner}"
        check_free(module, f"{key}_weight")
        halves = {
            half: site.register(module, f"{key}_{half}", value)
            for half, value in (("up", self.up), ("down", self.down))
        }
        # Whatever is added to the weight later is not rescaled.
        module.register_buffer(f"{key}_weight", weight, persistent=False)
        module.register_forward_hook(_AddRescaled(key, self.transposed))
        return halves

    def _checked(self, weight: Tensor, name: Name) -> Tensor:
        sides = (len(self.up), self.down.shape[1])
        if tuple(weight.shape) != (sides[::-1] if self.transposed else sides):
            raise Mismatch(
                f"delta rescales {name.path!r} as of [out, in] {sides}, the model has "
                f"{tuple(weight.shape)}: use the base it was made on"
            )
        return weight


def _change(up: Tensor, down: Tensor, transposed: bool) -> Tensor:
    one = torch.full((), ONE, dtype=up.dtype, device=up.device)
    change = functional.softplus(up @ down + one) - functional.softplus(one)
    return change.T if transposed else change


@dataclass(frozen=True)
class _AddRescaled(Hook):
    key: str
    transposed: bool

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        up, down, weight = (getattr(module, f"{self.key}_{each}") for each in ("up", "down", "weight"))
        added = _change(up, down, self.transposed) * wide(weight)
        product = functional.linear(inputs[0].to(added), added.T if self.transposed else added)
        return on_output(output, lambda tensor: tensor + product.to(tensor.dtype))


@dataclass(frozen=True, eq=False)
class InputDependent(Inserted):
    """Adds p(Phi(x) q(x)) to a linear layer's output: Phi(x) [rank, rank] is a linear function of its input
    x.

    Between p [out, rank] and q [rank, in] stands another matrix at every place. It is no difference of
    weights.
    """

    def build(self) -> nn.Module:
        rank, into = self.values["q.weight"].shape
        return _Dynamic(into, rank, len(self.values["p.weight"]))

    def run(self, network: nn.Module, output: Tensor, inputs: tuple[Any, ...]) -> Tensor:
        found: Tensor = network(inputs[0])
        return output + found.to(output.dtype)

    @classmethod
    def fresh(cls, into: int, out: int, rank: int, generator: torch.Generator) -> Self:
        """Return one that changes nothing yet: p is zero, all else as published."""

        def drawn(*shape: int) -> Tensor:
            return 0.02 * torch.randn(shape, generator=generator)

        zeros = {"phi.bias": torch.zeros(rank * rank), "p.weight": torch.zeros(out, rank)}
        return cls({"phi.weight": drawn(rank * rank, into), "q.weight": drawn(rank, into), **zeros})


class _Dynamic(nn.Module):
    def __init__(self, into: int, rank: int, out: int) -> None:
        super().__init__()
        self.phi = nn.Linear(into, rank * rank)
        self.q = nn.Linear(into, rank, bias=False)
        self.p = nn.Linear(rank, out, bias=False)

    def forward(self, given: Tensor) -> Tensor:
        inner: Tensor = self.q(given)
        rank = inner.shape[-1]
        middle = self.phi(given).unflatten(-1, (rank, rank))
        found: Tensor = self.p((middle @ inner[..., None])[..., 0])
        return found
