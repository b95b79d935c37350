"""Adapters whose matrices are sums of Kronecker products: Compacter (Mahabadi 2021, arXiv 2106.04647)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from uptake.adaptation.delta.overlay import Hook, Overlay, check_free, on_output
from uptake.adaptation.delta.part import Name, Part

NAMES = ("down_s", "down_t", "down_bias", "up_s", "up_t", "up_bias")


@dataclass(frozen=True, eq=False)
class HypercomplexAdapters(Part):
    """Adds to the output of several modules what an adapter of each makes of it: up(gelu(down x)).

    A matrix [in, out] is sum_i kron(shared[i], s[i] @ t[i]): `shared` [n, n, n] is that of all of them, s is
    [n, in/n, 1] and t [n, 1, out/n]. `values` holds each one's s, t and bias as `module|down_s` and so on. It
    can be neither added nor scaled, for what it computes is not linear in its parameters.
    """

    shared: Tensor
    values: Mapping[str, Tensor]

    def apply(self, site: Overlay[Any], name: Name) -> dict[str, nn.Parameter]:
        key = f"compacter_of_{name.owner}"
        shared = nn.Parameter(site.alike(self.shared), requires_grad=False)
        found = {"shared": shared}
        for path in dict.fromkeys(each.partition("|")[0] for each in self.values):
            module = site.submodule(path)
            check_free(module, key)
            own = {
                each: nn.Parameter(site.alike(self.values[f"{path}|{each}"]), requires_grad=False)
                for each in NAMES
            }
            module.add_module(key, _Adapter(shared, own))
            module.register_forward_hook(_Run(key))
            found |= {f"values/{path}|{each}": parameter for each, parameter in own.items()}
        return found


class _Adapter(nn.Module):
    def __init__(self, shared: nn.Parameter, own: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.shared = shared
        for name, parameter in own.items():
            self.register_parameter(name, parameter)

    down_bias: Tensor
    up_bias: Tensor

    def forward(self, given: Tensor) -> Tensor:
        inner = functional.gelu(given @ self._matrix("down") + self.down_bias)
        return inner @ self._matrix("up") + self.up_bias

    def _matrix(self, name: str) -> Tensor:
        low = getattr(self, f"{name}_s") @ getattr(self, f"{name}_t")
        found = torch.einsum("nij,npq->ipjq", self.shared, low)
        return found.flatten(2).flatten(0, 1)


@dataclass(frozen=True)
class _Run(Hook):
    key: str

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        return on_output(
            output, lambda tensor: (tensor + module.get_submodule(self.key)(tensor)).to(tensor.dtype)
        )
