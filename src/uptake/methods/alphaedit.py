"""AlphaEdit: as MEMIT, but only in directions that ordinary text hardly uses (Fang et al. 2024)."""

from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from uptake.adaptation.delta import LowRank
from uptake.adaptation.editing.closed_form import projected
from uptake.adaptation.editing.null_space import NullSpace, null_space
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.fact_values import ValueSearch
from uptake.lm.feed_forward import LinearPlace
from uptake.lm.key_statistics import OrdinaryText, key_covariance
from uptake.methods.contract.editor import ClosedFormEditor, only_causal
from uptake.methods.contract.method import MethodSpec


@dataclass(frozen=True)
class AlphaEdit(ClosedFormEditor):
    """Δ = R Kᵀ P (P K Kᵀ + sI)⁻¹: P keeps the weakest directions of C, s is `strength`.

    `energy` is how much of ordinary inputs' energy those directions may hold together; `null_space_of` says
    how many they are. The published code takes singular values under 0.02, which frees most directions of
    one model and none of another.
    """

    depth: float = 0.35
    energy: float = 0.01
    strength: float = 1.0
    values: ValueSearch = field(default_factory=ValueSearch)
    ordinary: OrdinaryText = field(default_factory=OrdinaryText)

    def __post_init__(self) -> None:
        if not 0 < self.strength < float("inf"):
            raise BadInput(f"strength {self.strength}: use a positive number, more for smaller changes")
        if not 0 < self.energy < 1:
            raise BadInput(f"energy {self.energy}: use a share between 0 and 1, such as 0.01")

    @classmethod
    def example(cls) -> Self:
        few = ValueSearch(steps=5, contexts=1)
        return cls(
            depth=0, energy=0.2, strength=0.1, values=few, ordinary=OrdinaryText(tokens=512, length=32)
        )

    def prepare(self, lm: Causal, place: LinearPlace) -> None:
        self._space(lm, place)

    def null_space_of(self, lm: LM) -> NullSpace:
        """Return the directions that edits of this model stay in, and what they hold. Raises BadInput."""
        causal = only_causal(lm, type(self).__name__)
        return self._space(causal, self._place(causal))

    def solve(self, lm: Causal, place: LinearPlace, keys: Tensor, changes: Tensor) -> LowRank:
        return projected(keys, changes, self._space(lm, place).basis, self.strength)

    def _space(self, lm: Causal, place: LinearPlace) -> NullSpace:
        return lm.derived(
            ("null space", place.path, self.ordinary, self.energy),
            lambda: null_space(key_covariance(lm, place, self.ordinary), self.energy),
        )


spec = MethodSpec(AlphaEdit())
