"""Compacter: narrow adapters after attention and feed-forward, of Kronecker products (arXiv 2106.04647)."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta
from uptake.adaptation.delta.compacter import HypercomplexAdapters
from uptake.adaptation.delta.delta import check_owner
from uptake.adaptation.trainable.opening import open_parts
from uptake.adaptation.trainable.places import ATTENTION, FEED_FORWARD, upper_blocks, width, within
from uptake.adaptation.trainable.trainable import Trainable, TrainableCopy
from uptake.errors import BadInput

PUBLISHED = 32  # the reduction


@dataclass(frozen=True)
class Compacter(Trainable):
    """Adapters of width d / `reduction`, their matrices sums of `n` Kronecker products, and the blocks'
    norms.

    `n` must divide d and d / `reduction`; left out, the reduction is the one nearest to the published 32
    that does. `after="feed-forward"` is Compacter++. What leads out of an adapter is zero at first
    (published: small and random), so that nothing changes before the first step. `layers` says of how many
    upper blocks.
    """

    reduction: int | None = None
    n: int = 4
    after: Literal["both", "feed-forward"] = "both"
    norms: bool = True
    layers: int | None = None
    owner: str = "compacter"

    def __post_init__(self) -> None:
        if self.n < 1 or (self.reduction is not None and self.reduction < 1):
            raise BadInput(f"compacter n {self.n}, reduction {self.reduction}: use 1 or more of each")
        if self.after not in ("both", "feed-forward"):
            raise BadInput(f"after {self.after!r}: use both or feed-forward")
        check_owner(self.owner)

    def copy(self, module: nn.Module, start: Delta, generator: torch.Generator) -> TrainableCopy:
        whole = width(module)
        inner = whole // self.reduction_of(whole)
        names = (ATTENTION, FEED_FORWARD) if self.after == "both" else (FEED_FORWARD,)
        paths = sorted(
            (path for each in names for path in within(module, each, self.layers)),
            key=[name for name, _ in module.named_modules()].index,
        )
        weight, n = next(module.parameters()), self.n

        def like(value: Tensor) -> Tensor:
            return value.to(weight.device, torch.promote_types(weight.dtype, torch.float32))

        def uniform(*shape: int) -> Tensor:
            # Xavier's, gain sqrt 2, over the two last sides.
            bound = math.sqrt(2) * math.sqrt(6 / (shape[-1] + shape[-2]))
            return like(bound * (2 * torch.rand(shape, generator=generator) - 1))

        shared = like(0.01 * torch.randn(n, n, n, generator=generator))
        values: dict[str, Tensor] = {}
        for path in paths:
            values |= {
                f"{path}|down_s": uniform(n, whole // n, 1),
                f"{path}|down_t": uniform(n, 1, inner // n),
                f"{path}|down_bias": like(torch.zeros(inner)),
                f"{path}|up_s": uniform(n, inner // n, 1),
                f"{path}|up_t": like(torch.zeros(n, 1, whole // n)),
                f"{path}|up_bias": like(torch.zeros(whole)),
            }
        # Named after the lowest module: what lies below it is as it was.
        parts = {paths[0]: HypercomplexAdapters(shared, values)}
        norms = self._norms(module) if self.norms else []
        return open_parts(module, parts, self.owner, start, norms)

    def reduction_of(self, whole: int) -> int:
        """Return the reduction at a width. Raises BadInput for one that does not divide it, or `n` it."""
        if whole % self.n:
            fits = [n for n in range(1, whole + 1) if whole % n == 0]
            near = min(fits, key=lambda n: (abs(n - self.n), n))
            raise BadInput(f"compacter n {self.n} does not divide the model's width of {whole}: use n={near}")
        fits = [each for each in range(1, whole + 1) if whole % (each * self.n) == 0]
        wanted = PUBLISHED if self.reduction is None else self.reduction
        near = min(fits, key=lambda each: (abs(each - wanted), -each))
        if self.reduction not in (None, near):
            raise BadInput(
                f"compacter reduction {self.reduction}: {whole} / {self.reduction} is no multiple of n "
                f"{self.n}, use reduction={near}"
            )
        return near

    def _norms(self, module: nn.Module) -> list[str]:
        return [
            f"{prefix}.{path}.{name}"
            for prefix, block in upper_blocks(module, self.layers).items()
            for path, part in block.named_modules()
            if "norm" in type(part).__name__.lower()
            for name, _ in part.named_parameters(recurse=False)
        ]
