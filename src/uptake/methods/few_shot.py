"""Few-shot training: T-Few's losses and all examples of a task in each step (Liu et al. 2022)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from uptake.adaptation.optimizers import SGD
from uptake.adaptation.trainable import Trainable
from uptake.adaptation.trainable.ia3 import IA3
from uptake.lm.base import LM
from uptake.lm.choices import Choices
from uptake.lm.examples import Example
from uptake.methods.contract.few_shot import FewShotMethod
from uptake.methods.contract.method import MethodSpec


@dataclass(frozen=True, kw_only=True)
class FewShot(FewShotMethod):
    """Trains (IA)^3, or whatever `trainable` says, on all examples of a task at once, `steps` steps.

    Where examples name wrong answers, `choices` adds T-Few's losses: that these are unlikely, and that the
    right answer is the likeliest a token.
    """

    trainable: Trainable = field(default_factory=IA3)
    choices: Choices | None = field(default_factory=Choices)

    @classmethod
    def example(cls) -> Self:
        return cls(optimizer=SGD(learning_rate=0.5))

    def trainable_for(self, lm: LM, examples: Sequence[Example]) -> Trainable:
        return self.trainable


spec = MethodSpec(FewShot())
