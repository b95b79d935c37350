"""ROME: one fact as a rank-one change of one layer (Meng et al. 2022); several facts add up."""

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from uptake.adaptation.delta import LowRank
from uptake.adaptation.editing.closed_form import rome
from uptake.lm.causal import Causal
from uptake.lm.fact_values import ValueSearch
from uptake.lm.feed_forward import LinearPlace
from uptake.lm.key_statistics import OrdinaryText, factored_covariance
from uptake.methods.contract.editor import ClosedFormEditor
from uptake.methods.contract.method import MethodSpec


@dataclass(frozen=True)
class Rome(ClosedFormEditor):
    """(v* - W k*) uᵀ / (uᵀ k*) with u = C⁻¹ k*, for each fact by itself, on the base.

    One key stands in all places of the formula (R-ROME, arXiv 2403.07175). Facts that are written together
    disturb each other's keys: from a few on, use memit.
    """

    depth: float = 0.35
    values: ValueSearch = field(default_factory=ValueSearch)
    ordinary: OrdinaryText = field(default_factory=OrdinaryText)

    @classmethod
    def example(cls) -> Self:
        few = ValueSearch(steps=5, contexts=1)
        return cls(depth=0, values=few, ordinary=OrdinaryText(tokens=512, length=32))

    def prepare(self, lm: Causal, place: LinearPlace) -> None:
        factored_covariance(lm, place, self.ordinary)

    def solve(self, lm: Causal, place: LinearPlace, keys: Tensor, changes: Tensor) -> LowRank:
        covariance = factored_covariance(lm, place, self.ordinary)
        parts = [rome(key, change, covariance) for key, change in zip(keys, changes, strict=True)]
        return LowRank(torch.cat([part.up for part in parts], 1), torch.cat([part.down for part in parts]))


spec = MethodSpec(Rome())
