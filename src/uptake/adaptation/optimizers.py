"""How a gradient becomes a step: SGD, AdamW, and the RMS update of dynamic evaluation with its decay.

Each rule is written twice, as a PyTorch optimiser that goes in place and as a pure function that
can be differentiated; tests hold the two together.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from uptake.adaptation.gradient_statistics import read_rms
from uptake.errors import BadInput

OptimizerState = Mapping[str, Tensor]  # "name of the parameter|what is remembered" -> tensor
Values = Mapping[str, Tensor]
LearningRate = float | Literal["auto"]
AUTO: Literal["auto"] = "auto"  # a learning rate that is chosen before anything is read
TRIED = 200_000_000  # weights of the largest model that the usual rates were tried on, rounded up
EVEN = "even"  # in place of a file of statistics


class Optimizer(ABC):
    """How a gradient becomes a step."""

    learning_rate: LearningRate
    usual: ClassVar[float] = 1e-4  # the learning rate where none can be chosen
    start: ClassVar[float] = 1e-4  # where a search for it begins

    @property
    def rate(self) -> float:
        """The learning rate as a number. Raises BadInput where it is still to be chosen."""
        if self.learning_rate == AUTO:
            raise BadInput(
                "learning_rate=auto is chosen on the documents of a store: give a store, or a rate, such as "
                "learning_rate=1e-4"
            )
        return float(self.learning_rate)

    def at(self, rate: float) -> Self:
        """Return the same rule at this learning rate."""
        return cast(Self, replace(cast(Any, self), learning_rate=rate))

    def usual_for(self, weights: int) -> float:
        """Return a learning rate that does no harm to a model of so many weights, where none can be chosen.

        It is `usual` up to the size that was tried and falls as one over the size beyond, the way published
        rates do: TTT-NN takes 2e-5 for GPT-2 of 117 million weights, 5e-6 for GPT-Neo of 1.3 billion.
        """
        return self.usual * min(1.0, TRIED / max(1, weights))

    def settled(self, weights: int) -> Self:
        """Return the same rule, at the usual rate for a model of so many weights if its own is still open."""
        return self.at(self.usual_for(weights)) if self.learning_rate == AUTO else self

    @property
    def informed(self) -> bool:
        """Whether there is something to know of parameters before the first step: `known`."""
        return False

    def times(self, share: float) -> Self:
        """Return the same rule at this share of its learning rate."""
        return self.at(share * self.rate)

    def known(self, parameters: Mapping[str, Tensor], base: str) -> dict[str, Tensor]:
        """Return what the rule has to know of these parameters of a base before its first step.

        As in the optimizer's state, `name|what` -> tensor; it is no part of the state that steps leave.
        Raises BadInput or Mismatch where a file that it needs is missing or another model's.
        """
        return {}

    @abstractmethod
    def torch_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return a fresh optimiser over the parameters."""

    @abstractmethod
    def update(
        self, values: Values, gradients: Values, optimizer_state: OptimizerState
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return values and memory after one step, nothing changed in place; no gradient, no step."""


@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); but for the rate, as TTT-NN has it."""

    learning_rate: LearningRate = AUTO
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise BadInput(f"{name} {beta}: use 0 or more, and less than 1")
        _check_not_negative("epsilon", self.epsilon)
        _check_not_negative("weight_decay", self.weight_decay)

    def torch_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameters,
            lr=self.rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def update(
        self, values: Values, gradients: Values, optimizer_state: OptimizerState
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        values, state = dict(values), dict(optimizer_state)
        for name, gradient in gradients.items():
            step = state.get(f"{name}|step", torch.zeros(())) + 1
            mean = state.get(f"{name}|exp_avg", torch.zeros_like(gradient))
            square = state.get(f"{name}|exp_avg_sq", torch.zeros_like(gradient))
            mean = self.beta1 * mean + (1 - self.beta1) * gradient
            square = self.beta2 * square + (1 - self.beta2) * gradient * gradient
            # Epsilon within the root, because a root has no derivative where a gradient is zero.
            root = (square / (1 - self.beta2**step) + self.epsilon**2).sqrt()
            decayed = values[name] * (1 - self.rate * self.weight_decay)
            values[name] = decayed - self.rate * mean / (1 - self.beta1**step) / root
            state |= {f"{name}|step": step, f"{name}|exp_avg": mean, f"{name}|exp_avg_sq": square}
        return values, state


@dataclass(frozen=True)
class SGD(Optimizer):
    """Plain gradient descent, with momentum if that is set."""

    usual: ClassVar[float] = 1e-3
    start: ClassVar[float] = 1e-2
    learning_rate: LearningRate = AUTO
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)
        _check_not_negative("momentum", self.momentum)
        _check_not_negative("weight_decay", self.weight_decay)

    def torch_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters,
            lr=self.rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            foreach=True,
        )

    def update(
        self, values: Values, gradients: Values, optimizer_state: OptimizerState
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        values, state = dict(values), dict(optimizer_state)
        for name, gradient in gradients.items():
            direction = gradient + self.weight_decay * values[name] if self.weight_decay else gradient
            if self.momentum:
                before = state.get(f"{name}|momentum_buffer")
                direction = direction if before is None else self.momentum * before + direction
                state[f"{name}|momentum_buffer"] = direction
            values[name] = values[name] - self.rate * direction
        return values, state


@dataclass(frozen=True)
class RMS(Optimizer):
    """Dynamic evaluation's rule (Krause et al. 2018): steps by the gradients' usual size, pulled back.

    theta <- theta + decay * r * (theta_0 - theta) - learning_rate * g / (rms + epsilon), where rms
    is the root mean square of training gradients, r is rms over its mean, decay * r is at most 1
    and theta_0 is where training began. `statistics` is the file in which `uptake train
    dynamic-evaluation` counted them, or `even`: every rms is 1, which makes this plain descent with
    an even decay.
    """

    usual: ClassVar[float] = 5e-5
    start: ClassVar[float] = 5e-5
    learning_rate: LearningRate = AUTO
    decay: float = 0.002
    epsilon: float = 2e-5
    statistics: str = ""

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)
        if not 0 <= self.decay <= 1 or self.epsilon < 0:
            raise BadInput(f"decay {self.decay}, epsilon {self.epsilon}: use 0 to 1, and 0 or more")

    @property
    def informed(self) -> bool:
        return self.statistics != EVEN

    def known(self, parameters: Mapping[str, Tensor], base: str) -> dict[str, Tensor]:
        if self.statistics == EVEN:
            return {}
        if not self.statistics:
            raise BadInput(
                "optimizer=rms wants gradient statistics: count them with `uptake train dynamic-evaluation`, "
                "give them with --set statistics=FILE; statistics=even, optimizer=sgd and optimizer=adamw "
                "do without"
            )
        counted = read_rms(Path(self.statistics), base)
        if unknown := sorted(parameters.keys() - counted.keys()):
            raise BadInput(
                f"statistics={self.statistics} has none of {unknown[0]}: let weights of the model itself "
                "move, trainable=all or trainable=top, or set statistics=even"
            )
        return {f"{name}|rms": counted[name].to(value) for name, value in parameters.items()}

    def torch_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return _RMSOptimizer(parameters, self)

    def update(
        self, values: Values, gradients: Values, optimizer_state: OptimizerState
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        values, state = dict(values), dict(optimizer_state)
        mean = _mean_rms(state.get(f"{name}|rms") for name in values)
        for name, gradient in gradients.items():
            start = state.setdefault(f"{name}|start", values[name])
            values[name] = values[name] + self.change(
                values[name], gradient, start, state.get(f"{name}|rms"), mean
            )
        return values, state

    def change(
        self, value: Tensor, gradient: Tensor, start: Tensor, rms: Tensor | None, mean: Tensor | float
    ) -> Tensor:
        """Return what one step adds to a parameter; `mean` is that of all parameters' rms."""
        if rms is None:
            return self.decay * (start - value) - self.rate / (1 + self.epsilon) * gradient
        pull = (self.decay * rms / mean).clamp(max=1.0)
        return pull * (start - value) - self.rate * gradient / (rms + self.epsilon)


class _RMSOptimizer(torch.optim.Optimizer):
    """The RMS rule in place."""

    def __init__(self, parameters: list[nn.Parameter], optimizer: RMS) -> None:
        super().__init__(parameters, {})
        self.optimizer = optimizer

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        every = [parameter for group in self.param_groups for parameter in group["params"]]
        mean = _mean_rms(self.state[parameter].get("rms") for parameter in every)
        for parameter in every:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if "start" not in state:
                state["start"] = parameter.detach().clone()
            parameter += self.optimizer.change(
                parameter, parameter.grad, state["start"], state.get("rms"), mean
            )


def _mean_rms(found: Iterable[Tensor | None]) -> Tensor | float:
    known = [rms for rms in found if rms is not None]
    if not known:
        return 1.0
    return torch.stack([rms.sum() for rms in known]).sum() / sum(rms.numel() for rms in known)


def _check_rate(rate: LearningRate) -> None:
    if rate != AUTO and not 0 <= rate < float("inf"):
        raise BadInput(f"learning rate {rate}: use a finite number, 0 or more")


def _check_not_negative(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise BadInput(f"{name} {value}: use a finite number, 0 or more")
