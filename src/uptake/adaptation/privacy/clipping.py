"""The sum over units of their clipped gradients, one pass at a time: by ghost norms, or unit by unit.

A unit is whatever one neighbouring data set lacks: a document or a user, all pieces of it together. A unit
whose loss or gradient is not finite adds nothing: an error, or a count of such units, would tell of it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from uptake.adaptation.privacy.ghost import Ghost, Unsuited
from uptake.adaptation.transforms import Gradients
from uptake.errors import BadInput

_SMALL = 1 << 24  # numbers: a single unit's gradient of so many is formed, which saves the second pass
_ROUNDING = 1e-4  # how much a measured norm may be short of the gradient's own


class ClippedSum:
    """Sums units' gradients, each scaled down to the norm `clip` at most. One module, one thread.

    `unsuited` says why units are done one by one, "" where a pass of several is clipped by ghost norms.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, nn.Parameter], clip: float) -> None:
        if not clip > 0:
            raise BadInput(f"clip {clip}: use a positive norm")
        self.clip, self.parameters = clip, dict(parameters)
        self.unsuited, self._ghost = "", None
        self._size = sum(parameter.numel() for parameter in self.parameters.values())
        self._sum: Gradients = {}
        try:
            self._ghost = Ghost(module, self.parameters)
        except Unsuited as error:
            self.unsuited = str(error)

    def add(self, run: Callable[[Sequence[int]], Tensor], owners: Sequence[int]) -> None:
        """Add the units of one pass; `owners[row]` is the unit of each row, from 0 on, rows in their order.

        `run` returns the losses of the rows that it is given, by one forward pass; a unit's are summed.
        """
        several = max(owners) > 0 or self._size > _SMALL
        if several and self._ghost is not None and self._add_together(run, owners):
            return
        for unit in range(max(owners) + 1):
            rows = [row for row, owner in enumerate(owners) if owner == unit]
            self.add_one([lambda rows=rows: run(rows)])  # type: ignore[misc]

    def add_one(self, runs: Iterable[Callable[[], Tensor]]) -> None:
        """Add one unit that takes several passes; each of `runs` returns the losses of its rows."""
        names, values = list(self.parameters), list(self.parameters.values())

        def gradients() -> Iterator[Gradients]:
            for run in runs:
                found = torch.autograd.grad(run().sum(), values, allow_unused=True)
                yield {name: each for name, each in zip(names, found, strict=True) if each is not None}

        self.add_gradients(gradients())

    def add_gradients(self, parts: Iterable[Gradients]) -> None:
        """Add one unit by its gradients: their sum is clipped."""
        total: Gradients = {}
        for found in parts:
            for name, gradient in found.items():
                total[name] = total[name] + gradient if name in total else gradient
        if not total:
            return
        squares = torch.stack([each.square().sum(dtype=torch.float64) for each in total.values()])
        (factor,) = self._factors(squares.sum().sqrt()[None], 0.0)
        if factor > 0:
            self._accumulate(
                {name: each if factor == 1 else each * factor.to(each) for name, each in total.items()}
            )

    def take(self) -> Gradients:
        """Return the sum since the last call, a tensor of zeros where no unit has a gradient."""
        found, self._sum = self._sum, {}
        return {
            name: found[name] if name in found else torch.zeros_like(parameter)
            for name, parameter in self.parameters.items()
        }

    def _add_together(self, run: Callable[[Sequence[int]], Tensor], owners: Sequence[int]) -> bool:
        """Add the units by ghost norms; False, and nothing added, where that cannot be."""
        assert self._ghost is not None
        try:
            found, norms = self._ghost.clipped(
                lambda: run(range(len(owners))), owners, lambda norms: self._factors(norms, _ROUNDING)
            )
        except Unsuited as error:
            self._ghost.close()
            self.unsuited, self._ghost = str(error), None
            return False
        if not bool(torch.isfinite(norms).all()):
            return False  # a factor of 0 leaves no number of an infinite gradient: one by one
        self._accumulate(found)
        return True

    def _factors(self, norms: Tensor, rounding: float) -> Tensor:
        """Return what each unit's gradient is multiplied by; 1 exactly where nothing is clipped."""
        if math.isinf(self.clip):
            return torch.where(torch.isfinite(norms), 1.0, torch.zeros_like(norms))
        factors = (self.clip / (norms * (1 + rounding))).clamp(max=1.0)
        return torch.where(torch.isfinite(norms), factors, torch.zeros_like(norms))

    def _accumulate(self, more: Gradients) -> None:
        for name, gradient in more.items():
            if name in self._sum:
                self._sum[name] += gradient
            else:
                self._sum[name] = gradient
