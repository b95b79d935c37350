"""Methods that learn a task from a few examples, and whose network is trained on other tasks beforehand."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable import Trainable, TrainableCopy
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.methods.contract.few_shot import FewShotMethod
from uptake.methods.contract.learned import Learned, TrainingData
from uptake.methods.contract.weight_state import WeightState
from uptake.tasks.few_shot import Task, tasks_of

_DOT = "/"  # in the place of a dot, which names of parameters of a network cannot have


@dataclass(frozen=True, kw_only=True)
class TaskLearner(Learned[WeightState, Task], FewShotMethod):
    """Learns a task's examples from where its network says training begins.

    `support` and `asked` are how many examples an episode of training learns from and is judged by.
    """

    support: int = 5
    asked: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.support, self.asked) < 1:
            raise BadInput(f"support {self.support}, asked {self.asked}: use 1 or more of each")

    def init(self, lm: LM) -> WeightState:
        self.network(lm)  # a missing file raises its error before anything is read
        return super().init(lm)

    def episodes(self, lm: LM, material: TrainingData) -> Sequence[Task]:
        """Return an episode for each task of the questions. Raises BadInput where none has enough of them."""
        return tasks_of(material.questions, material.documents, self.support, self.asked)


def opened_once(lm: Causal, trainable: Trainable) -> TrainableCopy:
    """Return a copy of the base opened for training, the same one each time: for `with_parameters` alone."""

    def make() -> TrainableCopy:
        opened = trainable.copy(lm.module, Delta(lm.fingerprint), torch.Generator().manual_seed(0))
        opened.module.eval()
        return opened

    return lm.derived(("opened once", trainable), make)


def values_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters that a network keeps for a model's own, by their names in the model."""
    kept: Any = network.start
    return {name.replace(_DOT, "."): value for name, value in kept.items()}


def as_start(opened: TrainableCopy) -> nn.ParameterDict:
    """Return copies of what was opened, to be trained as a network's."""
    return nn.ParameterDict(
        {name.replace(".", _DOT): value.detach().clone() for name, value in opened.parameters.items()}
    )
