"""WISE's shards (Wang et al. 2024, arXiv 2405.14768): random parts of one weight, merged as TIES does."""

from collections.abc import Sequence

import torch
from torch import Tensor

from uptake.errors import BadInput


def random_mask(shape: torch.Size, share: float, generator: torch.Generator) -> Tensor:
    """Return where a shard may change a weight: each entry with probability `share`, [*shape] of bool."""
    if not 0 < share <= 1:
        raise BadInput(f"share {share} of a shard: use more than 0, at most 1")
    return torch.rand(shape, generator=generator) < share


def ties_merge(differences: Sequence[Tensor], density: float = 1.0) -> Tensor:
    """Return one difference of several: trimmed, signs elected, then the mean of those that agree.

    Yadav et al. (2023, arXiv 2306.01708). Of each difference the share `density` of largest magnitude is
    kept, of its entries that are not zero. The sign of an entry is that of the sum; those of the other sign,
    and zeros, are left out of the mean.
    """
    if not differences:
        raise BadInput("no shard to merge: give at least one")
    kept = torch.stack([_trimmed(each, density) for each in differences])
    sign = kept.sum(0).sign()
    agree = (kept.sign() == sign) & (kept != 0)
    return torch.where(agree, kept, 0).sum(0) / agree.sum(0).clamp(min=1)


def _trimmed(difference: Tensor, density: float) -> Tensor:
    if not 0 < density <= 1:
        raise BadInput(f"density {density}: use more than 0, at most 1")
    sizes = difference.abs().flatten()
    count = int((sizes > 0).sum())
    keep = max(1, round(count * density))
    if not count or keep == count:
        return difference
    floor = sizes.topk(keep).values[-1]
    return torch.where(difference.abs() >= floor, difference, 0)
