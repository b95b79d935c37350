"""A vector that scales what enters or leaves a module, as in (IA)^3 (Liu et al. 2022, arXiv 2205.05638)."""

from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import Tensor, nn

from uptake.adaptation.delta.overlay import Hook, Overlay, on_output
from uptake.adaptation.delta.part import Name, Part
from uptake.errors import BadInput, Mismatch


@dataclass(frozen=True, eq=False)
class Scale(Part):
    """Multiplies the last dimension of a module's `on` by 1 + `change` [width]; zeros change nothing.

    Parts of one name add in `change`; under different owners their factors multiply.
    """

    change: Tensor
    on: Literal["output", "input"] = "output"

    def __post_init__(self) -> None:
        if self.on not in ("output", "input"):
            raise BadInput(f"scale on {self.on!r}: use output or input")

    def apply(self, site: Overlay[Any], name: Name) -> dict[str, nn.Parameter]:
        module, key = site.submodule(name.path), f"scale_of_{name.owner}"
        parameter = site.register(module, key, self.change)
        if self.on == "output":
            module.register_forward_hook(_ScaleOutput(key))
        else:
            module.register_forward_pre_hook(_ScaleInput(key))
        return {"change": parameter}

    def plus(self, other: Self) -> Self:
        if self.on != other.on:
            raise Mismatch("one part scales what enters and one what leaves: give them different owners")
        return type(self)(self.change + other.change, self.on)

    def times(self, factor: float) -> Self:
        return type(self)(self.change * factor, self.on)


@dataclass(frozen=True)
class _ScaleOutput(Hook):
    key: str

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return on_output(output, lambda tensor: _scaled(tensor, module, self.key))


@dataclass(frozen=True)
class _ScaleInput(Hook):
    key: str

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return _scaled(inputs[0], module, self.key), *inputs[1:]


def _scaled(tensor: Tensor, module: nn.Module, key: str) -> Tensor:
    change: Tensor = getattr(module, key)
    if tensor.shape[-1:] != change.shape:
        raise Mismatch(
            f"scale of {len(change)} entries on a tensor of width {tensor.shape[-1]}: use the base it was "
            "made on"
        )
    # Where the base is bfloat16, 1 + change is not: a small change would be lost.
    return (tensor * (1 + change)).to(tensor.dtype)
