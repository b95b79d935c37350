"""The base model as it is: takes nothing up. Every gain is measured against it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from uptake.lm import LM
from uptake.method import Context, Evidence, Method, State, Way, same_length


@dataclass(frozen=True)
class Base(Method[State]):
    """Reads nothing and answers as the base."""

    reads: ClassVar[bool] = False

    @classmethod
    def example(cls) -> Self:
        return cls()

    def init(self, lm: LM) -> State:
        return State(base=lm.fingerprint)

    def take(
        self,
        states: Sequence[State],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[State]:
        same_length(states, evidence)
        return list(states)

    def on(self, states: Sequence[State], lm: LM) -> LM:
        return lm


way = Way(Base())
