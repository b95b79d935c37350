"""Neighbours in the weights and in the window: TTT-NN, and the nearest passages before the prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from uptake.lm import LM
from uptake.method import Context, Evidence, Method, State, Way, same_length
from uptake.methods.finetune import Finetune, Moved
from uptake.methods.in_context import Before, InContext


@dataclass(frozen=True, kw_only=True)
class Both(State):
    """What the weights have learnt, and what stands before the text."""

    weights: Moved
    before: Before


@dataclass(frozen=True)
class WeightsAndContext(Method[Both]):
    """Trains on the passages, then also reads them in context with what was trained."""

    weights: Finetune = field(default_factory=Finetune)
    context: InContext = field(default_factory=InContext)

    @property
    def sequential(self) -> bool:
        return self.weights.sequential

    @property
    def cumulative(self) -> bool:
        return self.weights.cumulative

    @classmethod
    def example(cls) -> Self:
        return cls(Finetune.example(), InContext.example())

    def init(self, lm: LM) -> Both:
        return Both(base=lm.fingerprint, weights=self.weights.init(lm), before=self.context.init(lm))

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
        before = self.context.take([state.before for state in states], lm, evidence, context, donate)
        rows = zip(states, evidence, weights, before, strict=True)
        return [state.after(read, context, weights=moved, before=put) for state, read, moved, put in rows]

    def on(self, states: Sequence[Both], lm: LM) -> LM:
        trained = self.weights.on([state.weights for state in states], lm)
        return self.context.on([state.before for state in states], trained)

    def follow(self, state: Both, lm: LM) -> Both:
        fresh = self.init(lm)
        return Both(base=fresh.base, weights=self.weights.follow(state.weights, lm), before=fresh.before)


way = Way(WeightsAndContext())
