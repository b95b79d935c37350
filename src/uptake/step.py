"""The one inner loop: token-weighted loss, clip, update rule.

Test-time training, online fine-tuning, dynamic evaluation and edits are this loop with other
texts and settings. It knows no language model: `loss_of` gives the loss of one batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from uptake.errors import BadInput

BatchT = TypeVar("BatchT")


class Rule(ABC):
    """How a gradient becomes a step."""

    @abstractmethod
    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return a fresh optimiser over the parameters."""


@dataclass(frozen=True)
class AdamW(Rule):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); defaults as TTT-NN publishes them."""

    learning_rate: float = 2e-5
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameters,
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            weight_decay=self.weight_decay,
            fused=True,
        )


@dataclass(frozen=True)
class SGD(Rule):
    """Plain gradient descent, with momentum if asked."""

    learning_rate: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)

    def optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            foreach=True,
        )


def _check_rate(rate: float) -> None:
    if not 0 <= rate < float("inf"):
        raise BadInput(f"learning rate {rate}: use a finite number, 0 or more")


def token_loss(log_probs: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean negative log-likelihood of the targets, each token times its weight.

    log_probs is [batch, time, vocabulary], targets and weights [batch, time]. The normaliser is
    the number of tokens, not the sum of weights: halving all weights halves the step.
    """
    nll = -log_probs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return nll.mean() if weights is None else (nll * weights).mean()


def descend(
    loss_of: Callable[[BatchT], Tensor],
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[BatchT],
    rule: Rule,
    clip: float | None = 1.0,
    memory: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Take one step a batch, in order, in place; return the optimiser's memory afterwards.

    `memory`, as an earlier call returned it, lets the optimiser go on where it stopped: two calls
    over halves of the batches are one call over the whole. `clip` bounds the gradient's norm.
    """
    optimizer = rule.optimizer(list(parameters.values()))
    remember(optimizer, parameters, memory or {})
    for batch in batches:
        gradients = torch.autograd.grad(loss_of(batch), list(parameters.values()), allow_unused=True)
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters.values(), clip)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {
        f"{name}|{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def remember(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], memory: Mapping[str, Tensor]
) -> None:
    """Put an optimiser's memory back; tensors are copied, so the caller's stay as they are."""
    for full_name, value in memory.items():
        name, key = full_name.rsplit("|", 1)
        if name in parameters:
            optimizer.state[parameters[name]][key] = value.clone()
