"""The factors of a loss's gradient at linear layers: what enters each, and the gradient of what leaves it.

The gradient of a weight W in y = W x is the sum over tokens of δ uᵀ, u being the input and δ = ∂loss/∂y.
Editors that work on it (MEND, UltraEdit) want u and δ apart, token by token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import skeleton, wide
from uptake.adaptation.delta.overlay import Hook
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.feed_forward import LinearPlace


class Factors(NamedTuple):
    """Inputs u [rows, time, in] and output gradients δ [rows, time, out] at one layer."""

    inputs: Tensor
    gradients: Tensor

    def tokens(self) -> "Factors":
        """Return them as [tokens, width], without tokens of which either is all zero, such as padding."""
        u, d = self.inputs.flatten(0, 1), self.gradients.flatten(0, 1)
        used = (u != 0).any(1) & (d != 0).any(1)
        return Factors(u[used], d[used])

    def weight_gradient(self) -> Tensor:
        """Return Σ δ uᵀ, [out, in]."""
        return torch.einsum("bto,bti->oi", self.gradients, self.inputs)


def gradient_factors(
    lm: Causal, places: Sequence[LinearPlace], loss_of: Callable[[LM], Tensor]
) -> tuple[Tensor, list[Factors]]:
    """Return the loss, a scalar, that `loss_of` makes of a private copy, and its factors at each place.

    The copy may be passed once. Weights get no gradient; the model itself has no hook.
    """
    module = skeleton(lm.module)
    seen = [_Passed() for _ in places]
    for place, passed in zip(places, seen, strict=True):
        module.get_submodule(place.path).register_forward_hook(_Keep(passed))
    with torch.enable_grad():
        loss = loss_of(lm.around(module))
        gradients = torch.autograd.grad(loss, [passed.outputs for passed in seen])
    pairs = zip(seen, gradients, strict=True)
    return loss.detach(), [Factors(wide(passed.inputs.detach()), wide(found)) for passed, found in pairs]


@dataclass
class _Passed:
    inputs: Tensor = field(default_factory=lambda: torch.empty(0))
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class _Keep(Hook):
    passed: _Passed

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        # Below the first of the layers nothing asks for gradients: they begin here.
        found = output if output.requires_grad else output.detach().requires_grad_()
        self.passed.inputs, self.passed.outputs = inputs[0], found
        return found
