"""A vector that scales what enters or leaves a module, as in (IA)^3 (Liu et al. 2022, arXiv 2205.05638)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from uptake.adaptation.delta.overlay import Hook, Overlay, on_output
from uptake.adaptation.delta.part import Name, Part
from uptake.errors import BadInput, Mismatch

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class Scale(Part):
    """Multiplies the last dimension of a module's `on` by 1 + `change` [width]; zeros change nothing.

    With `ranges`, (start, end) each, it is for these entries alone, one after another: those of keys and
    values where one layer makes queries, keys and values. Parts of one name add in `change`; under different
    owners their factors multiply.
    """

    change: Tensor
    on: Literal["output", "input"] = "output"
    ranges: Ranges = ()

    def __post_init__(self) -> None:
        if self.on not in ("output", "input"):
            raise BadInput(f"scale on {self.on!r}: use output or input")
        edges = [edge for both in self.ranges for edge in both]
        if self.ranges and (
            edges != sorted(set(edges))
            or edges[0] < 0
            or sum(end - start for start, end in self.ranges) != len(self.change)
        ):
            raise BadInput(
                f"scale of {len(self.change)} entries for the ranges {self.ranges}: give ranges in order, "
                "and as many entries as they have"
            )

    def apply(self, site: Overlay[Any], name: Name) -> dict[str, nn.Parameter]:
        module, key = site.submodule(name.path), key_of(name.owner)
        parameter = site.register(module, key, self.change)
        if self.on == "output":
            module.register_forward_hook(_ScaleOutput(key, self.ranges))
        else:
            module.register_forward_pre_hook(_ScaleInput(key, self.ranges))
        return {"change": parameter}

    def plus(self, other: Self) -> Self:
        if self.on != other.on:
            raise Mismatch("one part scales what enters and one what leaves: give them different owners")
        if self.ranges != other.ranges:
            raise Mismatch("two parts scale different entries of one module: give them different owners")
        return type(self)(self.change + other.change, self.on, self.ranges)

    def times(self, factor: float) -> Self:
        return type(self)(self.change * factor, self.on, self.ranges)


def key_of(owner: str) -> str:
    """Return what the parameter of an owner's scale is called in the module that it stands on."""
    return f"scale_of_{owner}"


def scaled(tensor: Tensor, change: Tensor, ranges: Ranges = ()) -> Tensor:
    """Return the tensor [..., width] times 1 + `change`, [width] or [rows, 1, width]; of `ranges` alone."""
    width = tensor.shape[-1]
    if ranges and ranges[-1][1] <= width:
        change = _spread(change, ranges, width)
    if change.shape[-1] != width:
        raise Mismatch(
            f"scale of {change.shape[-1]} entries on a tensor of width {width}: use the base it was made on"
        )
    # Where the base is bfloat16, 1 + change is not: a small change would be lost.
    return (tensor * (1 + change)).to(tensor.dtype)


@dataclass(frozen=True)
class _ScaleOutput(Hook):
    key: str
    ranges: Ranges

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return on_output(output, lambda tensor: scaled(tensor, getattr(module, self.key), self.ranges))


@dataclass(frozen=True)
class _ScaleInput(Hook):
    key: str
    ranges: Ranges

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return scaled(inputs[0], getattr(module, self.key), self.ranges), *inputs[1:]


def _spread(change: Tensor, ranges: Ranges, width: int) -> Tensor:
    """Return the change of all entries, zero outside of the ranges."""
    sizes = [end - start for start, end in ranges]
    gaps = [start - end for (_, end), (start, _) in pairwise([(0, 0), *ranges, (width, width)])]
    parts = [change.new_zeros(*change.shape[:-1], gaps[0])]
    for own, gap in zip(torch.split(change, sizes, -1), gaps[1:], strict=True):
        parts += [own, change.new_zeros(*change.shape[:-1], gap)]
    return torch.cat(parts, -1)
