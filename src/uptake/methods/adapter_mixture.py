"""Mixtures of adapters by task: a router gives each layer a share of every expert (Ye et al. 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta, LowRank
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.trainable import LoRA, Trainable, TrainableCopy
from uptake.adaptation.trainable.lora import factor_names
from uptake.adaptation.trainable.places import block_matrices, blocks, check_rank, width
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.examples import Example
from uptake.lm.scoring import losses, per_token
from uptake.lm.task_training import task_vector
from uptake.methods.contract.editor import only_causal
from uptake.methods.contract.few_shot import shots_of
from uptake.methods.contract.method import MethodSpec
from uptake.methods.contract.task_learner import TaskLearner, opened_once
from uptake.tasks.few_shot import Task

OWNER = "mixture"


@dataclass(frozen=True)
class Matrix:
    """A weight matrix with experts: its name, its block's number from below, its sides, how it is stored."""

    name: str
    block: int
    into: int
    out: int
    transposed: bool


class Experts(nn.Module):
    """Low-rank factors of `experts` experts for each matrix, and a router from a task to their shares."""

    def __init__(self, matrices: Sequence[Matrix], width: int, experts: int, rank: int, hidden: int) -> None:
        super().__init__()
        self.matrices, self.experts = list(matrices), experts
        self.blocks = sorted({matrix.block for matrix in matrices})
        self.down = nn.ParameterList(
            torch.randn(experts, rank, matrix.into) / matrix.into**0.5 for matrix in matrices
        )
        self.up = nn.ParameterList(torch.zeros(experts, matrix.out, rank) for matrix in matrices)
        self.router = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, len(self.blocks) * experts)
        )

    def shares(self, task: Tensor, choose: str) -> Tensor:
        """Return the share of each expert in each block, [blocks, experts]: rows sum to one.

        `hard` gives one of them the whole, and passes gradients on as if it were soft.
        """
        logits = self.router(task).view(len(self.blocks), self.experts)
        soft: Tensor = logits.softmax(-1)
        if choose == "average":
            return torch.full_like(soft, 1 / self.experts)
        if choose == "soft":
            return soft
        one: Tensor = nn.functional.one_hot(soft.argmax(-1), self.experts).to(soft)
        return one + soft - soft.detach()

    def factors(self, shares: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return up [out, experts * rank] and down of each matrix: their product is the mixture."""
        found = []
        for matrix, up, down in zip(self.matrices, self.up, self.down, strict=True):
            own = shares[self.blocks.index(matrix.block)]
            weighed = up * own[:, None, None]
            found.append((weighed.transpose(0, 1).flatten(1), down.flatten(0, 1)))
        return found


@dataclass(frozen=True, kw_only=True)
class AdapterMixture(TaskLearner):
    """`experts` LoRA experts in the upper `layers` blocks, mixed by a router that reads a task's examples.

    The router sees the mean of the base's last hidden states over the examples and gives each block its own
    shares, which sum to one: `soft` as they are, `hard` the largest alone, `average` all alike (MHR-mu,
    arXiv 2211.03831). What is mixed is one low-rank difference, and trains on from there for `steps` steps.
    With one expert this is LoRA that was trained on the other tasks.
    """

    experts: int = 4
    rank: int = 4
    layers: int | None = None
    hidden: int = 128
    choose: Literal["soft", "hard", "average"] = "soft"

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.experts, self.rank, self.hidden) < 1:
            raise BadInput(
                f"experts {self.experts}, rank {self.rank}, hidden {self.hidden}: use 1 or more of each"
            )
        if self.choose not in ("soft", "hard", "average"):
            raise BadInput(f"choose {self.choose!r}: use soft, hard or average")

    @classmethod
    def example(cls) -> Self:
        return cls(weights="untrained", experts=2, rank=2, hidden=8, optimizer=SGD(learning_rate=0.5))

    def trainable_for(self, lm: LM, examples: Sequence[Example]) -> Trainable:
        # Of a scale of 1: what the experts make is taken as it is.
        rank = self.experts * self.rank
        return LoRA(rank=rank, alpha=rank, owner=OWNER, layers=self.layers)

    def begin(self, lm: LM, opened: TrainableCopy, examples: Sequence[Example]) -> None:
        with torch.no_grad():
            for name, value in self.mixed(self.network(lm), lm, examples).items():
                opened.parameters[name].copy_(value)

    def mixed(self, network: nn.Module, lm: LM, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return the factors of the mixture for a task, by the names that peft gives them."""
        assert isinstance(network, Experts)
        shares = network.shares(task_vector(lm, examples), self.choose)
        found: dict[str, Tensor] = {}
        for matrix, (up, down) in zip(network.matrices, network.factors(shares), strict=True):
            down_name, up_name = factor_names(matrix.name)
            found |= {down_name: down, up_name: up}
        return found

    def delta(self, network: nn.Module, lm: LM, task: Task) -> Delta:
        """Return the mixture for a task as a delta, before any step on it."""
        assert isinstance(network, Experts)
        with torch.no_grad():
            shares = network.shares(task_vector(lm, shots_of(lm, task.support)), self.choose)
            factors = network.factors(shares)
        parts = {
            matrix.name: LowRank(up, down, 1.0, matrix.transposed)
            for matrix, (up, down) in zip(network.matrices, factors, strict=True)
        }
        return Delta.of(lm.fingerprint, parts, OWNER)

    def build(self, lm: LM) -> Experts:
        causal = only_causal(lm, "a mixture of adapters")
        return Experts(self._matrices(causal), width(causal.module), self.experts, self.rank, self.hidden)

    def _matrices(self, lm: Causal) -> list[Matrix]:
        stack, _ = blocks(lm.module)
        found, matrices = list[Matrix](), block_matrices(lm.module, self.layers)
        check_rank(lm.module, self.experts * self.rank, matrices)
        for name, transposed in matrices.items():
            first, second = lm.module.get_parameter(name).shape
            into, out = (first, second) if transposed else (second, first)
            block = int(name.removeprefix(f"{stack}.").partition(".")[0])
            found.append(Matrix(name, block, into, out, transposed))
        return found

    def loss(self, network: nn.Module, lm: LM, episode: Task) -> Tensor:
        """Return how badly the mixture for a task, without a step on it, says the answers asked, a token."""
        causal = only_causal(lm, "a mixture of adapters")
        opened = opened_once(causal, self.trainable_for(lm, ()))
        values = self.mixed(network, lm, shots_of(lm, episode.support))
        asked = shots_of(lm, episode.asked)
        answering = causal.around(opened.module).with_parameters(values)
        return per_token(losses(answering, asked), asked)


spec = MethodSpec(AdapterMixture())
