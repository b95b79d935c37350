"""MEMIT: many facts into one layer by one least-squares solution, in any order (Meng et al. 2023)."""

from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from uptake.adaptation.delta import LowRank
from uptake.adaptation.editing.closed_form import memit
from uptake.errors import BadInput
from uptake.lm.causal import Causal
from uptake.lm.fact_values import ValueSearch
from uptake.lm.feed_forward import LinearPlace
from uptake.lm.key_statistics import OrdinaryText, factored_covariance
from uptake.methods.contract.editor import ClosedFormEditor
from uptake.methods.contract.method import MethodSpec


@dataclass(frozen=True)
class Memit(ClosedFormEditor):
    """Δ = R Kᵀ (λC + K Kᵀ)⁻¹ at one layer, λ being `strength`: how much ordinary text weighs.

    Keys and values are solved on the base, so order cannot matter and forgetting is an exact re-solve. The
    published method spreads a value over several layers, each with keys of the layers before it changed.
    """

    depth: float = 0.35
    strength: float = 1.0
    values: ValueSearch = field(default_factory=ValueSearch)
    ordinary: OrdinaryText = field(default_factory=OrdinaryText)

    def __post_init__(self) -> None:
        if not 0 < self.strength < float("inf"):
            raise BadInput(f"strength {self.strength}: use a positive number, more to leave other text alone")

    @classmethod
    def example(cls) -> Self:
        few = ValueSearch(steps=5, contexts=1)
        return cls(depth=0, values=few, ordinary=OrdinaryText(tokens=512, length=32))

    def prepare(self, lm: Causal, place: LinearPlace) -> None:
        factored_covariance(lm, place, self.ordinary)

    def solve(self, lm: Causal, place: LinearPlace, keys: Tensor, changes: Tensor) -> LowRank:
        return memit(keys, changes, factored_covariance(lm, place, self.ordinary), self.strength)


spec = MethodSpec(Memit())
