"""The one inner loop: a loss for each example, a chain of gradient transforms, the optimizer's step.

Test-time training, online fine-tuning, dynamic evaluation, meta-training and edits are this loop
with other texts and settings. It knows no language model: `losses_of` gives the losses of one batch.
`gradient_descent` is fast and in place; `unroll` takes the same steps and can be differentiated.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from uptake.adaptation.optimizers import Optimizer, OptimizerState
from uptake.adaptation.transforms import (
    Gradients,
    GradientTransform,
    Losses,
    check,
    gradients_of,
    transformed,
)
from uptake.adaptation.update_masks import REMEMBERED, Mixing, keeping, masks_of, mixed_by
from uptake.errors import BadInput, Diverged

BatchT = TypeVar("BatchT")


def token_loss(log_probs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean negative log-likelihood of the targets, each token times its weight.

    log_probs is [batch, time, vocabulary], targets and weights [batch, time]. The normaliser is
    the number of tokens, not the sum of weights: halving all weights halves the step.
    """
    nll = -log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return nll.mean() if weights is None else (nll * weights).mean()


class GradientDescent:
    """Trains parameters in place: one `step` a batch, and the optimizer state to continue from.

    `optimizer_state`, as an earlier descent left it, lets this one continue where that stopped; its tensors
    are copied. `transforms` stand between each gradient and its step; those that draw do so from
    `generator`. Raises BadInput for a chain that cannot be run.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: Optimizer,
        transforms: Sequence[GradientTransform] = (),
        optimizer_state: OptimizerState | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check(transforms, generator)
        self.parameters, self.transforms, self._generator = parameters, transforms, generator
        # A network may have no parameters that steps change, only statistics that reading fills.
        self._optimizer = optimizer.torch_optimizer([*parameters.values()] or [nn.Parameter(torch.zeros(()))])
        self._mask_state: dict[str, Tensor] = {}
        self._mixing: dict[str, Mixing] = {}
        self._own: dict[str, Tensor] = {}  # values of parameters that are mixed now
        for full_name, value in (optimizer_state or {}).items():
            name, key = full_name.rsplit("|", 1)
            # A state that was read from a file lies in the processor's memory, wherever the network is.
            own = value.to(parameters[name].device if name in parameters else value.device, copy=True)
            if key.startswith(REMEMBERED):
                self._mask_state[full_name] = own
            elif name in parameters:
                self._optimizer.state[parameters[name]][key] = own

    def step(self, losses: Losses) -> None:
        """Take one step down from the losses. Raises Diverged, and takes none, where one is not finite."""
        check_loss(losses.values.sum())
        chain = keeping(self.transforms, self._mixing)
        self._apply(gradients_of(losses, self.parameters, chain, self._generator))

    def apply(self, gradients: Sequence[Tensor | None]) -> None:
        """Take one step down from one document's gradient, a tensor a parameter. Raises Diverged."""
        found = {
            name: gradient
            for name, gradient in zip(self.parameters, gradients, strict=True)
            if gradient is not None
        }
        self._apply(transformed(found, keeping(self.transforms, self._mixing), self._generator))

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let parameters stand where the next gradient is to be taken, until that step or the block's end.

        Under a mask with mixout that is elsewhere; a step under one needs this block.
        """
        self._mixing, self._mask_state = mixed_by(
            self.transforms, self.parameters, self._mask_state, self._generator
        )
        with torch.no_grad():
            for name, mixing in self._mixing.items():
                parameter = self.parameters[name]
                self._own[name] = parameter.detach().clone()
                parameter.copy_(mixing.of(parameter))
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        with torch.no_grad():
            for name, value in self._own.items():
                self.parameters[name].copy_(value)
        self._own, self._mixing = {}, {}

    def _apply(self, gradients: Gradients) -> None:
        self._release()
        masks, self._mask_state = masks_of(self.transforms, gradients, self._mask_state, self._generator)
        before = {name: self.parameters[name].detach().clone() for name in masks}
        for name, parameter in self.parameters.items():
            gradient = gradients.get(name)
            if gradient is not None and gradient.stride() != parameter.stride():
                # PyTorch's fused optimizers read a gradient as if it lay in memory as its parameter does.
                gradient = torch.empty_like(parameter).copy_(gradient)
            parameter.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, mask in masks.items():
                self.parameters[name].copy_(torch.where(mask, self.parameters[name], before[name]))

    @property
    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimizer state of each parameter, as `name|key`, and what masks of the update remember."""
        return self._mask_state | {
            f"{name}|{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self._optimizer.state[parameter].items()
            if isinstance(value, Tensor)
        }


def _is_mask(full_name: str) -> bool:
    return full_name.rpartition("|")[2].startswith(REMEMBERED)


def check_loss(loss: Tensor) -> None:
    """Raise Diverged where the loss is not finite."""
    if not torch.isfinite(loss):
        raise Diverged(f"the loss is {loss.item()}: use a smaller learning rate")


def gradient_descent(
    losses_of: Callable[[BatchT], Losses],
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[BatchT],
    optimizer: Optimizer,
    transforms: Sequence[GradientTransform] = (),
    optimizer_state: OptimizerState | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Take one step a batch, in order, in place; return the optimizer state afterwards.

    Two calls over halves of the batches, the second with the first one's state, are one call over
    the whole. Raises Diverged at the first loss or clipped gradient that is not finite.
    """
    descent = GradientDescent(parameters, optimizer, transforms, optimizer_state, generator)
    for batch in batches:
        with descent.reading():
            descent.step(losses_of(batch))
    return descent.optimizer_state


def unroll(
    losses_of: Callable[[Mapping[str, Tensor], BatchT], Losses],
    start: Mapping[str, Tensor],
    batches: Iterable[BatchT],
    optimizer: Optimizer,
    order: Literal[0, 1, 2] = 2,
    transforms: Sequence[GradientTransform] = (),
    optimizer_state: OptimizerState | None = None,
    generator: torch.Generator | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return where `gradient_descent` ends from `start`, and the optimizer state, as functions of the start.

    `order` says what a gradient through the result sees: 0 nothing; 1 the start alone, inner
    gradients taken as constants (FOMAML, Finn et al. 2017); 2 everything, the losses' own
    parameters (token weights) included. Every tensor of `start` must require a gradient. For order 2
    the network needs kernels that can be differentiated twice; `LM.with_parameters` sees to it.
    """
    if order not in (0, 1, 2):
        raise BadInput(f"order {order}: use 0, 1 or 2")
    check(transforms, generator)
    values, state = dict(start), dict(optimizer_state or {})
    for batch in batches:
        if order == 0:
            values = {name: value.detach().requires_grad_() for name, value in values.items()}
        remembered = {name: value for name, value in state.items() if _is_mask(name)}
        mixing, remembered = mixed_by(transforms, values, remembered, generator)
        read = {name: mixing[name].of(value) if name in mixing else value for name, value in values.items()}
        chain = keeping(transforms, mixing)
        gradients = gradients_of(losses_of(read, batch), read, chain, generator, order == 2)
        masks, remembered = masks_of(transforms, gradients, remembered, generator)
        before = values
        values, state = optimizer.update(values, gradients, state)
        for name, mask in masks.items():
            values[name] = torch.where(mask, values[name], before[name])
        state |= remembered
    if order == 0:
        values = {name: value.detach() for name, value in values.items()}
    return values, state
