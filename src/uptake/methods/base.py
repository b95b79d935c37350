"""The base model, not adapted. Every gain is measured against it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from uptake.lm.base import LM
from uptake.methods.contract.method import Context, Evidence, Method, MethodSpec, State, same_length


@dataclass(frozen=True)
class Base(Method[State]):
    """Reads nothing and answers as the base."""

    reads: ClassVar[bool] = False

    @classmethod
    def example(cls) -> Self:
        return cls()

    def init(self, lm: LM) -> State:
        return State(base=lm.fingerprint)

    def adapt(
        self,
        states: Sequence[State],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[State]:
        same_length(states, evidence)
        return list(states)

    def adapted(self, states: Sequence[State], lm: LM) -> LM:
        return lm


spec = MethodSpec(Base())
