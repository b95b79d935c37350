"""TTT-NN that cannot lose: mixed with its base by Bayes' rule, at most one bit a query worse."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.wrappers import Bayes
from uptake.methods.contract.composed import Wrapping
from uptake.methods.contract.method import MethodSpec
from uptake.methods.finetune import Finetune, WeightState


@dataclass(frozen=True)
class Guarded(Wrapping[WeightState]):
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
    def within(self) -> Finetune:
        return self.inner

    @classmethod
    def example(cls) -> Self:
        return cls(Finetune.example())

    def adapted(self, states: Sequence[WeightState], lm: LM) -> LM:
        return Bayes(lm, self.inner.adapted(states, lm), self.prior)


spec = MethodSpec(Guarded())
