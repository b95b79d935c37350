"""Neighbours in the weights and in a memory of tokens: TTT-NN under kNN-LM."""

from dataclasses import dataclass, field
from typing import Self

from uptake.lm.base import LM
from uptake.methods.contract.composed import Both, Together
from uptake.methods.contract.method import MethodSpec
from uptake.methods.finetune import Finetune, WeightState
from uptake.methods.knn_lm import KnnLm, Remembered


@dataclass(frozen=True, kw_only=True)
class WeightsAndTokensState(Both):
    """What the weights have learnt, and what is remembered."""

    weights: WeightState
    beside: Remembered


@dataclass(frozen=True)
class WeightsAndTokens(Together[WeightsAndTokensState]):
    """Trains on the passages and mixes in the store's tokens, whose keys are the untrained model's."""

    weights: Finetune = field(default_factory=Finetune)
    tokens: KnnLm = field(default_factory=KnnLm)

    @property
    def beside(self) -> KnnLm:
        return self.tokens

    @classmethod
    def example(cls) -> Self:
        return cls(Finetune.example(), KnnLm.example())

    def init(self, lm: LM) -> WeightsAndTokensState:
        weights, beside = self.weights.init(lm), self.tokens.init(lm)
        return WeightsAndTokensState(base=lm.fingerprint, weights=weights, beside=beside)


spec = MethodSpec(WeightsAndTokens())
