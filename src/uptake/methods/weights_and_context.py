"""Neighbours in the weights and in the window: TTT-NN, and the nearest passages before the prompt."""

from dataclasses import dataclass, field
from typing import Self

from uptake.lm.base import LM
from uptake.methods.contract.composed import Both, Together
from uptake.methods.contract.method import MethodSpec
from uptake.methods.finetune import Finetune, WeightState
from uptake.methods.in_context import Before, InContext


@dataclass(frozen=True, kw_only=True)
class WeightsAndContextState(Both):
    """What the weights have learnt, and what stands before the text."""

    weights: WeightState
    beside: Before


@dataclass(frozen=True)
class WeightsAndContext(Together[WeightsAndContextState]):
    """Trains on the passages, then also reads them in context with what was trained."""

    weights: Finetune = field(default_factory=Finetune)
    context: InContext = field(default_factory=InContext)

    @property
    def beside(self) -> InContext:
        return self.context

    @classmethod
    def example(cls) -> Self:
        return cls(Finetune.example(), InContext.example())

    def init(self, lm: LM) -> WeightsAndContextState:
        weights, beside = self.weights.init(lm), self.context.init(lm)
        return WeightsAndContextState(base=lm.fingerprint, weights=weights, beside=beside)


spec = MethodSpec(WeightsAndContext())
