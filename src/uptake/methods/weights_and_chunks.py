"""Neighbours in the weights and beside the chunks of the text: TTT-NN under RETRO."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from uptake.lm import LM
from uptake.method import Context, Evidence, Method, State, Way, same_length
from uptake.methods.finetune import Finetune, Moved
from uptake.methods.retro import Consults, Retro


@dataclass(frozen=True, kw_only=True)
class Both(State):
    """What the weights have learnt, and where chunks are looked for."""

    weights: Moved
    consults: Consults


@dataclass(frozen=True)
class WeightsAndChunks(Method[Both]):
    """Trains the model's own weights on the passages, then reads chunks by RETRO's new parts in it."""

    weights: Finetune = field(default_factory=Finetune)
    chunks: Retro = field(default_factory=Retro)

    @property
    def sequential(self) -> bool:
        return self.weights.sequential

    @property
    def cumulative(self) -> bool:
        return self.weights.cumulative

    @classmethod
    def example(cls) -> Self:
        return cls(Finetune.example(), Retro.example())

    def init(self, lm: LM) -> Both:
        return Both(base=lm.fingerprint, weights=self.weights.init(lm), consults=self.chunks.init(lm))

    def take(
        self,
        states: Sequence[Both],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[Both]:
        same_length(states, evidence)
        under = self.chunks.under(lm)
        weights = self.weights.take([state.weights for state in states], under, evidence, context, donate)
        consults = self.chunks.take([state.consults for state in states], lm, evidence, context, donate)
        rows = zip(states, evidence, weights, consults, strict=True)
        return [state.after(read, context, weights=moved, consults=kept) for state, read, moved, kept in rows]

    def on(self, states: Sequence[Both], lm: LM) -> LM:
        trained = self.weights.on([state.weights for state in states], self.chunks.under(lm))
        return self.chunks.around([state.consults for state in states], trained, lm)

    def drop(self, state: Both, lm: LM, ids: Sequence[int], context: Context | None = None) -> Both:
        left = super().drop(state, lm, ids, context)
        if state.consults.chunks is None:
            return left
        return dataclasses.replace(left, consults=self.chunks.drop(state.consults, lm, ids, context))

    def follow(self, state: Both, lm: LM) -> Both:
        fresh = self.init(lm)
        return Both(base=fresh.base, weights=self.weights.follow(state.weights, lm), consults=fresh.consults)


way = Way(WeightsAndChunks())
