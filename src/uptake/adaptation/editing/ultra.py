"""UltraEdit (Gu et al. 2025, arXiv 2505.14679): a closed-form step from inputs and output gradients.

The published code merges variances as m * var_unbiased, which is no number after a single token; statistics
here are merged exactly (`moments.py`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from uptake.adaptation.delta.low_rank import LowRank
from uptake.adaptation.editing.moments import Moments


@dataclass(frozen=True, eq=False)
class Turn:
    """What one turn of edits gives one linear layer: inputs [tokens, in], output gradients [tokens, out]."""

    inputs: Tensor
    gradients: Tensor

    @property
    def joined(self) -> Tensor:
        return torch.cat([self.inputs, self.gradients], 1)

    def wanted(self, moments: Moments, rate: float) -> Tensor:
        """Return c = -η |k̂|² v̂ for each token, [tokens, out]: what its output is to gain."""
        width = self.inputs.shape[1]
        standard = moments.standardised(self.joined)
        return -rate * standard[:, :width].square().sum(1, keepdim=True) * standard[:, width:]

    def primal(self, wanted: Tensor) -> Tensor:
        """Return the difference [out, in] by the matrix of in x in: ((KᵀK + I)⁻¹ Kᵀ C)ᵀ."""
        k = self.inputs
        inner = k.T @ k + torch.eye(k.shape[1], dtype=k.dtype)
        found: Tensor = torch.linalg.solve(inner, k.T @ wanted)
        return found.T

    def dual(self, wanted: Tensor) -> LowRank:
        """Return the same as a low-rank difference by that of tokens x tokens: Kᵀ (KKᵀ + I)⁻¹ C."""
        k = self.inputs
        inner = k @ k.T + torch.eye(len(k), dtype=k.dtype)
        return LowRank(torch.linalg.solve(inner, wanted).T, k)
