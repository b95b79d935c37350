"""A network put into the model at a named place, with parameters under its own names.

`Inserted` is what every such kind is; `Bottleneck` is the adapter of Houlsby et al. (2019, arXiv 1902.00751).
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from uptake.adaptation.delta.overlay import Hook, Overlay, check_free, on_output
from uptake.adaptation.delta.part import Name, Part
from uptake.adaptation.draws import drawing_from
from uptake.errors import BadInput, Mismatch


@dataclass(frozen=True, eq=False)
class Inserted(Part):
    """A network on the output of a module; `values` are its parameters by their names in it.

    It can be neither added nor scaled, for what it computes is not linear in its parameters.
    """

    values: Mapping[str, Tensor]

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the network, with any values: of the sizes that `values` have."""

    def run(self, network: nn.Module, output: Tensor, inputs: tuple[Any, ...]) -> Tensor:
        """Return what takes the place of the module's output: that and the network's answer to it.

        `inputs` are what the module was given by place.
        """
        found: Tensor = network(output)
        return output + found

    def apply(self, site: Overlay[Any], name: Name) -> dict[str, nn.Parameter]:
        module, key = site.submodule(name.path), f"inserted_by_{name.owner}"
        check_free(module, key)
        # Layers draw from the global generator as they are made, though their values are replaced.
        with drawing_from(torch.Generator()):
            network = self.build().requires_grad_(False)
        try:
            network.load_state_dict(
                {name: site.alike(value) for name, value in self.values.items()}, assign=True
            )
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()[:200]
            raise Mismatch(f"an inserted {type(self).__name__} has other parameters ({reason})") from None
        module.add_module(key, network)
        module.register_forward_hook(_Run(key, self.run))
        return {f"values/{inner}": parameter for inner, parameter in network.named_parameters()}


@dataclass(frozen=True)
class _Run(Hook):
    key: str
    run: Any

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return on_output(output, lambda tensor: self.run(module.get_submodule(self.key), tensor, inputs))


@dataclass(frozen=True, eq=False)
class Bottleneck(Inserted):
    """Adds to the output what a narrow feed-forward makes of it."""

    activation: Literal["relu", "gelu"] = "relu"

    def __post_init__(self) -> None:
        if self.activation not in ("relu", "gelu"):
            raise BadInput(f"activation {self.activation!r}: use relu or gelu")

    def build(self) -> nn.Module:
        inner, width = self.values["down.weight"].shape
        act = nn.ReLU() if self.activation == "relu" else nn.GELU()
        layers = {"down": nn.Linear(width, inner), "act": act, "up": nn.Linear(inner, width)}
        network = nn.Sequential()
        for name, layer in layers.items():
            network.add_module(name, layer)
        return network

    @classmethod
    def fresh(cls, width: int, inner: int, generator: torch.Generator) -> Self:
        """Return one that changes nothing yet: what leads in is random, what leads out zero."""
        down = (2 * torch.rand(inner, width, generator=generator) - 1) / width**0.5
        zeros = {"down.bias": torch.zeros(inner), "up.bias": torch.zeros(width)}
        return cls({"down.weight": down, "up.weight": torch.zeros(width, inner), **zeros})
