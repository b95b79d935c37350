"""The one inner loop: token-weighted loss, clip, update rule.

Test-time training, online fine-tuning, dynamic evaluation, meta-training and edits are this loop
with other texts and settings. It knows no language model: `loss_of` gives the loss of one batch.
`descend` goes in place and fast; `unroll` is the same walk as a function that can be differentiated.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from uptake.adaptation.optimizers import Optimizer, OptimizerState
from uptake.errors import BadInput, Diverged

BatchT = TypeVar("BatchT")
Gradients = Sequence[Tensor | None]


def token_loss(log_probs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean negative log-likelihood of the targets, each token times its weight.

    log_probs is [batch, time, vocabulary], targets and weights [batch, time]. The normaliser is
    the number of tokens, not the sum of weights: halving all weights halves the step.
    """
    nll = -log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return nll.mean() if weights is None else (nll * weights).mean()


@dataclass(frozen=True)
class Piece:
    """The tokens of one step: inputs [1, time], and how much each of their successors counts."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor


def piece_losses(log_probs: Tensor, pieces: Sequence[Piece]) -> Tensor:
    """Return the `token_loss` of each piece, [pieces].

    log_probs is [rows, time, vocabulary]; row i begins with what follows the tokens of piece i, and what
    stands after that counts for nothing.
    """
    rows, time, _ = log_probs.shape
    targets = torch.zeros(rows, time, dtype=torch.long, device=log_probs.device)
    for row, piece in enumerate(pieces):
        targets[row, : piece.targets.shape[1]] = piece.targets[0]
    # Picked for all rows at once: a slice of log_probs would cost each row a gradient as large as the whole.
    nll = -log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    weighed = [
        (nll[row, : piece.weights.shape[1]] * piece.weights[0]).mean() for row, piece in enumerate(pieces)
    ]
    return torch.stack(weighed)


class Descent:
    """Parameters on their way down, in place: one `step` a batch, and the memory to go on from later.

    `memory`, as an earlier descent left it, lets this one go on where that stopped; its tensors are
    copied. `clip` bounds the gradient's norm.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        optimizer: Optimizer,
        clip: float | None = 1.0,
        optimizer_state: OptimizerState | None = None,
    ) -> None:
        self.parameters, self.clip = parameters, clip
        # A network may have nothing that steps move, only statistics that reading fills.
        self._optimizer = optimizer.torch_optimizer([*parameters.values()] or [nn.Parameter(torch.zeros(()))])
        for full_name, value in (optimizer_state or {}).items():
            name, key = full_name.rsplit("|", 1)
            if name in parameters:
                self._optimizer.state[parameters[name]][key] = value.clone()

    def step(self, loss: Tensor) -> None:
        """Take one step down from the loss. Raises Diverged, and takes none, where it is not finite."""
        check_loss(loss)
        self.apply(torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True))

    def apply(self, gradients: Gradients) -> None:
        """Take one step down from gradients, one a parameter. Raises Diverged, as `step` does."""
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        if self.clip is not None:
            norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
            if not torch.isfinite(norm):
                raise Diverged(f"the gradient's norm is {norm.item()}: use a smaller learning rate")
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    @property
    def optimizer_state(self) -> dict[str, Tensor]:
        """What the rule remembers of each parameter, as `name|key`."""
        return {
            f"{name}|{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self._optimizer.state[parameter].items()
            if isinstance(value, Tensor)
        }


def check_loss(loss: Tensor) -> None:
    """Raise Diverged where the loss is not finite."""
    if not torch.isfinite(loss):
        raise Diverged(f"the loss is {loss.item()}: use a smaller learning rate")


def descend(
    loss_of: Callable[[BatchT], Tensor],
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[BatchT],
    optimizer: Optimizer,
    clip: float | None = 1.0,
    optimizer_state: OptimizerState | None = None,
) -> dict[str, Tensor]:
    """Take one step a batch, in order, in place; return the rule's memory afterwards.

    Two calls over halves of the batches, the second with the first one's memory, are one call over
    the whole. Raises Diverged at the first loss or gradient that is not finite.
    """
    descent = Descent(parameters, optimizer, clip, optimizer_state)
    for batch in batches:
        descent.step(loss_of(batch))
    return descent.optimizer_state


def unroll(
    loss_of: Callable[[Mapping[str, Tensor], BatchT], Tensor],
    start: Mapping[str, Tensor],
    batches: Iterable[BatchT],
    optimizer: Optimizer,
    order: Literal[0, 1, 2] = 2,
    clip: float | None = None,
    optimizer_state: OptimizerState | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return where `descend` would end from `start`, and the memory, as functions of the start.

    `order` says what a gradient through the result sees: 0 nothing; 1 the start alone, inner
    gradients taken as constants (FOMAML, Finn et al. 2017); 2 everything, the losses' own
    parameters (token weights) included. Every tensor of `start` must want a gradient. For order 2
    the network needs kernels that can be differentiated twice; `LM.given` sees to it.
    """
    if order not in (0, 1, 2):
        raise BadInput(f"order {order}: use 0, 1 or 2")
    values, kept = dict(start), dict(optimizer_state or {})
    for batch in batches:
        if order == 0:
            values = {name: value.detach().requires_grad_() for name, value in values.items()}
        found = torch.autograd.grad(
            loss_of(values, batch), list(values.values()), create_graph=order == 2, allow_unused=True
        )
        gradients = {
            name: gradient for name, gradient in zip(values, found, strict=True) if gradient is not None
        }
        values, kept = optimizer.update(values, clipped(gradients, clip), kept)
    if order == 0:
        values = {name: value.detach() for name, value in values.items()}
    return values, kept


def clipped(gradients: Mapping[str, Tensor], most: float | None) -> Mapping[str, Tensor]:
    """Return the gradients scaled down together so that their joint norm is at most `most`."""
    if most is None or not gradients:
        return gradients
    # As nn.utils.clip_grad_norm_, small addend and all, but differentiable.
    squares = torch.stack([gradient.pow(2).sum() for gradient in gradients.values()])
    factor = (most / (squares.sum().clamp(min=1e-30).sqrt() + 1e-6)).clamp(max=1.0)
    return {name: gradient * factor for name, gradient in gradients.items()}
