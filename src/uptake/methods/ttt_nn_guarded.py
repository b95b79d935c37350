"""TTT-NN mixed with its base by Bayes' rule: never more than one bit a query worse than the base."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.experts import Experts, FixedShare
from uptake.methods.contract.composed import MethodWrapper
from uptake.methods.contract.method import MethodSpec
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.finetune import Finetune


@dataclass(frozen=True)
class Guarded(MethodWrapper[WeightState]):
    """The base and the adapted model as one mixture, whose weights follow the tokens scored.

    With prior p on the adapted model a text costs at most log2(1 / (1 - p)) bits more than under
    the base, whatever was read: one bit at the default. It costs the base's forward pass as well.
    """

    inner: Finetune = field(default_factory=Finetune)
    prior: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.prior < 1:
            raise BadInput(f"prior {self.prior}: use a probability between 0 and 1")

    @property
    def wrapped(self) -> Finetune:
        return self.inner

    @classmethod
    def example(cls) -> Self:
        return cls(Finetune.example())

    def adapted(self, states: Sequence[WeightState], lm: LM) -> LM:
        return Experts([lm, self.inner.adapted(states, lm)], FixedShare((1 - self.prior, self.prior)))


spec = MethodSpec(Guarded())
