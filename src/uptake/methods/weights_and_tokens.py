"""Neighbours in the weights and in a memory of tokens: TTT-NN under kNN-LM."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from uptake.lm import LM
from uptake.method import Context, Evidence, Method, State, Way, same_length
from uptake.methods.finetune import Finetune, Moved
from uptake.methods.knn_lm import KnnLm, Remembered


@dataclass(frozen=True, kw_only=True)
class Both(State):
    """What the weights have learnt, and what is remembered."""

    weights: Moved
    memory: Remembered


@dataclass(frozen=True)
class WeightsAndTokens(Method[Both]):
    """Trains on the passages and mixes in the store's tokens, whose keys are the untrained model's."""

    weights: Finetune = field(default_factory=Finetune)
    tokens: KnnLm = field(default_factory=KnnLm)

    @property
    def sequential(self) -> bool:
        return self.weights.sequential

    @property
    def cumulative(self) -> bool:
        return self.weights.cumulative

    @classmethod
    def example(cls) -> Self:
        return cls(Finetune.example(), KnnLm.example())

    def init(self, lm: LM) -> Both:
        return Both(base=lm.fingerprint, weights=self.weights.init(lm), memory=self.tokens.init(lm))

    def take(
        self,
        states: Sequence[Both],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[Both]:
        same_length(states, evidence)
        weights = self.weights.take([state.weights for state in states], lm, evidence, context, donate)
        memory = self.tokens.take([state.memory for state in states], lm, evidence, context, donate)
        rows = zip(states, evidence, weights, memory, strict=True)
        return [state.after(read, context, weights=moved, memory=kept) for state, read, moved, kept in rows]

    def on(self, states: Sequence[Both], lm: LM) -> LM:
        trained = self.weights.on([state.weights for state in states], lm)
        return self.tokens.around([state.memory for state in states], trained, lm)

    def drop(self, state: Both, lm: LM, ids: Sequence[int], context: Context | None = None) -> Both:
        left = super().drop(state, lm, ids, context)
        if state.memory.view is None:
            return left
        return dataclasses.replace(left, memory=self.tokens.drop(state.memory, lm, ids, context))

    def follow(self, state: Both, lm: LM) -> Both:
        fresh = self.init(lm)
        return Both(base=fresh.base, weights=self.weights.follow(state.weights, lm), memory=fresh.memory)


way = Way(WeightsAndTokens())
