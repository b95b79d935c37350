"""The directions of a layer's input that ordinary text hardly uses."""

from dataclasses import dataclass

import torch
from torch import Tensor

from uptake.errors import BadInput


@dataclass(frozen=True, eq=False)
class NullSpace:
    """Orthonormal columns `basis` [width, directions], which hold `energy` of ordinary inputs' energy."""

    basis: Tensor
    energy: float

    @property
    def projection(self) -> Tensor:
        """P = basis basisᵀ, [width, width]."""
        return self.basis @ self.basis.T

    def __str__(self) -> str:
        width, directions = self.basis.shape
        return f"{directions:,} of {width:,} directions, {self.energy:.2g} of the energy of ordinary inputs"


def null_space(covariance: Tensor, energy: float) -> NullSpace:
    """Return the weakest directions of C that together hold at most the share `energy` of its trace.

    AlphaEdit's own code takes those of singular value under 0.02, an absolute number whose meaning changes
    from model to model: on one it frees nearly every direction, on another none. Raises BadInput for a share
    at which no direction is free.
    """
    if not 0 < energy < 1:
        raise BadInput(f"energy {energy}: use a share between 0 and 1, such as 0.001")
    values, vectors = torch.linalg.eigh(covariance)
    shares = values.clamp(min=0).cumsum(0) / values.clamp(min=0).sum()
    count = int((shares[:-1] <= energy).sum())  # the strongest is never free: that would be the whole space
    if count == 0:
        raise BadInput(f"energy {energy}: the weakest direction alone holds {shares[0]:.2g}, use more")
    return NullSpace(vectors[:, :count], float(shares[count - 1]))
