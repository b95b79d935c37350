"""Methods made of other methods: one within another, or one that trains the weights with one beside it.

It knows no method by name; those in methods/ say which they are made of.
"""

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from uptake.lm.base import LM
from uptake.methods.contract.method import Context, Evidence, Method, State, same_length


@dataclass(frozen=True, kw_only=True)
class Both(State):
    """What the weights have learnt, and what stands beside them; final classes name the two kinds."""

    weights: State
    beside: State


StateT = TypeVar("StateT", bound=State)
BothT = TypeVar("BothT", bound=Both)


class Around(Method[StateT]):
    """A method that leaves to another, `within`, whatever it does not say itself."""

    @property
    @abstractmethod
    def within(self) -> Method[StateT]:
        """The method it stands around."""

    @property
    def sequential(self) -> bool:
        return self.within.sequential

    @property
    def cumulative(self) -> bool:
        return self.within.cumulative

    def init(self, lm: LM) -> StateT:
        return self.within.init(lm)

    def adapt(
        self,
        states: Sequence[StateT],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[StateT]:
        return self.within.adapt(states, lm, evidence, context, donate)

    def adapted(self, states: Sequence[StateT], lm: LM) -> LM:
        return self.within.adapted(states, lm)

    def next_state(self, state: StateT, lm: LM) -> StateT:
        return self.within.next_state(state, lm)


class Beside(Method[StateT]):
    """A method that moves no weight of the model and can so stand beside one whose weights were moved."""

    def under(self, lm: LM) -> LM:
        """Return the LM whose weights may be moved under it: `lm`, unless it brings a base of its own."""
        return lm

    @abstractmethod
    def around(self, states: Sequence[StateT], lm: LM, base: LM) -> LM:
        """Return `lm`, which is `under(base)` or what became of it, with these states of `base` beside it."""

    def adapted(self, states: Sequence[StateT], lm: LM) -> LM:
        return self.around(states, self.under(lm), lm)


class Together(Method[BothT]):
    """Trains the model's weights on what is read, and lets another method read it beside them.

    Final classes have a setting for each of the two and return them in `init` as their own `Both`.
    """

    weights: Method[Any]

    @property
    @abstractmethod
    def beside(self) -> Beside[Any]:
        """The method that stands beside the trained model."""

    @property
    def sequential(self) -> bool:
        return self.weights.sequential

    @property
    def cumulative(self) -> bool:
        return self.weights.cumulative

    def adapt(
        self,
        states: Sequence[BothT],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[BothT]:
        same_length(states, evidence)
        under = self.beside.under(lm)
        weights = self.weights.adapt([state.weights for state in states], under, evidence, context, donate)
        beside = self.beside.adapt([state.beside for state in states], lm, evidence, context, donate)
        rows = zip(states, evidence, weights, beside, strict=True)
        return [state.after(read, context, weights=moved, beside=kept) for state, read, moved, kept in rows]

    def adapted(self, states: Sequence[BothT], lm: LM) -> LM:
        trained = self.weights.adapted([state.weights for state in states], self.beside.under(lm))
        return self.beside.around([state.beside for state in states], trained, lm)

    def forget(self, state: BothT, lm: LM, ids: Sequence[int], context: Context | None = None) -> BothT:
        # A state that searches a store drops there; reading again would leave it without the store.
        beside = self.beside.forget(state.beside, lm, ids, context)
        return dataclasses.replace(super().forget(state, lm, ids, context), beside=beside)

    def next_state(self, state: BothT, lm: LM) -> BothT:
        return dataclasses.replace(self.init(lm), weights=self.weights.next_state(state.weights, lm))
