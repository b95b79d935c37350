"""Closed forms for writing keys and values into a linear layer, all as low-rank differences.

K is [edits, in], one key a row; R is [edits, out], what the layer's output lacks at each key: v* - W k*.
Everything is solved in the precision of what is given: give float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from uptake.adaptation.delta.low_rank import LowRank
from uptake.errors import BadInput, Mismatch


@dataclass(frozen=True, eq=False)
class Factored:
    """A covariance by its Cholesky factor [in, in], for those who solve by it again and again."""

    lower: Tensor

    @classmethod
    def of(cls, covariance: Tensor) -> "Factored":
        """Return a matrix factored. Raises BadInput where it is not positive definite."""
        try:
            return cls(torch.linalg.cholesky(covariance))
        except RuntimeError:  # torch.linalg's own error is one
            raise BadInput(
                "the covariance is singular: take it from more text, or add a larger ridge"
            ) from None


def rome(key: Tensor, residual: Tensor, covariance: Tensor | Factored) -> LowRank:
    """Return the rank-one difference that writes one key [in] and moves ordinary inputs least.

    (v* - W k*) uᵀ / (uᵀ k*) with u = C⁻¹ k* (Meng et al. 2022, arXiv 2202.05262). The one key stands in
    all three places; the published code takes another in u, which lets the denominator vanish (2403.07175).
    Raises BadInput for a key of zeros.
    """
    _same_edits(key[None], residual[None])
    u = _by(covariance, key[:, None])[:, 0]
    denominator = u @ key
    if not denominator > 0:
        raise BadInput("the key of an edit is zero: choose another layer")
    return LowRank((residual / denominator)[:, None], u[None])


def memit(keys: Tensor, residuals: Tensor, covariance: Tensor | Factored, strength: float) -> LowRank:
    """Return Δ = R Kᵀ (λC + K Kᵀ)⁻¹, of rank n, λ being `strength` (Meng et al. 2023, arXiv 2210.07229).

    By Woodbury, so that a matrix of edits x edits is solved and the rank is that of the edits.
    """
    _same_edits(keys, residuals)
    _positive(strength)
    spread = _by(covariance, keys.T) / strength  # Q K, [in, n]
    inner = torch.eye(len(keys), dtype=keys.dtype) + keys @ spread
    return LowRank(torch.linalg.solve(inner, residuals).T, spread.T)


def memit_dense(keys: Tensor, residuals: Tensor, covariance: Tensor, strength: float) -> Tensor:
    """Return what `memit` does, [out, in], by the matrix of in x in: for more edits than inputs."""
    _same_edits(keys, residuals)
    _positive(strength)
    found: Tensor = torch.linalg.solve(strength * covariance + keys.T @ keys, keys.T @ residuals)
    return found.T


def projected(keys: Tensor, residuals: Tensor, basis: Tensor, strength: float) -> LowRank:
    """Return Δ = R Kᵀ P (P K Kᵀ P + sI)⁻¹ for P = basis basisᵀ: AlphaEdit (Fang et al. 2024, 2410.02355).

    `basis` is [in, directions], of orthonormal columns. ΔP = Δ: inputs outside of the basis see no change.
    Edits that come later, with the earlier keys protected as the paper does, give this very solution.
    """
    _same_edits(keys, residuals)
    _positive(strength)
    within = keys @ basis
    inner = within @ within.T + strength * torch.eye(len(keys), dtype=keys.dtype)
    return LowRank(torch.linalg.solve(inner, residuals).T, within @ basis.T)


def _by(covariance: Tensor | Factored, right: Tensor) -> Tensor:
    """Return C⁻¹ times a matrix [in, n]."""
    if isinstance(covariance, Factored):
        return torch.cholesky_solve(right, covariance.lower)
    found: Tensor = torch.linalg.solve(covariance, right)
    return found


def _same_edits(keys: Tensor, residuals: Tensor) -> None:
    if len(keys) != len(residuals):
        raise Mismatch(f"{len(keys)} keys for {len(residuals)} values: give one of each an edit")


def _positive(strength: float) -> None:
    if not 0 < strength < float("inf"):
        raise BadInput(f"strength {strength}: use a positive number")
