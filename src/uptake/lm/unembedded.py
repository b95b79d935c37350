"""KL at many places from last hidden states, some places at a time: no whole table of logits is kept.

Of softmax's logits the gradient of KL(p || q) is q - p, so one product per block of places in the pass
forward is all that the pass back needs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from uptake.lm.capabilities import Unembedding
from uptake.lm.scoring import divergence

PLACES = 128  # at once: a pass over the weight for each block, and two blocks of logits


def divergences_of(unembedding: Unembedding, before: Tensor, after: Tensor) -> Tensor:
    """Return KL(before || after) at each place in nats, [places], of hidden states [places, width].

    Gradients go to `after` alone, and once.
    """
    found: Tensor = _Divergences.apply(before, after, unembedding)  # type: ignore[no-untyped-call]
    return found


class _Divergences(torch.autograd.Function):
    """What `divergences_of` says; keeps the gradient of each place's value, [places, width]."""

    @staticmethod
    def forward(ctx: Any, before: Tensor, after: Tensor, unembedding: Unembedding) -> Tensor:
        values, gradients, weight = list[Tensor](), list[Tensor](), unembedding.weight
        for old, new in zip(torch.split(before, PLACES), torch.split(after, PLACES), strict=True):
            p, q = (torch.log_softmax(unembedding.logits(hidden), -1) for hidden in (old, new))
            values.append(divergence(p, q))
            if ctx.needs_input_grad[1]:
                gradients.append((q.exp_().sub_(p.exp_()).to(weight.dtype) @ weight).to(new.dtype))
        if gradients:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[None, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, gradient * outer[:, None].to(gradient.dtype), None
