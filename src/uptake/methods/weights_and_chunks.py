"""Neighbours in the weights and beside the chunks of the text: TTT-NN under RETRO."""

from dataclasses import dataclass, field
from typing import Self

from uptake.lm.base import LM
from uptake.methods.contract.composed import Both, Together
from uptake.methods.contract.method import MethodSpec
from uptake.methods.finetune import Finetune, WeightState
from uptake.methods.retro import Consults, Retro


@dataclass(frozen=True, kw_only=True)
class WeightsAndChunksState(Both):
    """What the weights have learnt, and where chunks are looked for."""

    weights: WeightState
    beside: Consults


@dataclass(frozen=True)
class WeightsAndChunks(Together[WeightsAndChunksState]):
    """Trains the model's own weights on the passages, then reads chunks by RETRO's new parts in it."""

    weights: Finetune = field(default_factory=Finetune)
    chunks: Retro = field(default_factory=Retro)

    @property
    def beside(self) -> Retro:
        return self.chunks

    @classmethod
    def example(cls) -> Self:
        return cls(Finetune.example(), Retro.example())

    def init(self, lm: LM) -> WeightsAndChunksState:
        weights, beside = self.weights.init(lm), self.chunks.init(lm)
        return WeightsAndChunksState(base=lm.fingerprint, weights=weights, beside=beside)


spec = MethodSpec(WeightsAndChunks())
