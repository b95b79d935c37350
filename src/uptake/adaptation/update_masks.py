"""Which entries take the step that the optimizer made: dynamic parameter selection, random and Fisher masks.

These act on the update and not on the gradient: under Adam an entry whose gradient is put to zero still moves
by its momentum, and by weight decay. Masks and counts are part of the optimizer's state, by the parameter's
name.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uptake.adaptation.transforms import Gradients, GradientTransform
from uptake.errors import BadInput

State = dict[str, Tensor]  # "parameter|mask_..." -> what is remembered
REMEMBERED = "mask_"  # what keys in an optimizer's state begin with that are masks'


class UpdateMask(GradientTransform):
    """A transform of the update: gradients pass as they are, entries of its mask alone take the step."""

    def apply(self, gradients: Gradients, generator: torch.Generator | None) -> Gradients:
        return gradients

    @abstractmethod
    def masks(
        self, gradients: Gradients, state: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> tuple[dict[str, Tensor], State]:
        """Return which entries of each parameter move in this step, and what to remember.

        A parameter that is not there moves whole. `state` is what was remembered, nothing before the first
        step.
        """


@dataclass(frozen=True)
class DPS(UpdateMask):
    """Dynamic parameter selection (Zhang et al. 2022, arXiv 2210.17041): windows of `window` steps, in turns.

    In the first window, and every other one, all entries move and squared gradients are summed, from zero; in
    those between, of each parameter the `keep` share with the largest sums alone. (The published `reserve_p`
    of 0.3 keeps 0.7.) Their windows are a twentieth of all steps.
    """

    keep: float = 0.7
    window: int = 5

    def __post_init__(self) -> None:
        _check(self.keep, self.window)

    def masks(
        self, gradients: Gradients, state: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> tuple[dict[str, Tensor], State]:
        found: dict[str, Tensor] = {}
        after: State = {}
        for name, gradient in gradients.items():
            step = int(state.get(f"{name}|mask_dps_step", torch.zeros(())))
            sums = state.get(f"{name}|mask_dps_sum")
            if step // self.window % 2 == 0:
                square = gradient.detach().square()
                sums = square if sums is None or step % self.window == 0 else sums + square
            else:
                assert sums is not None
                found[name] = largest(sums, self.keep)
            after |= {f"{name}|mask_dps_step": torch.tensor(float(step + 1)), f"{name}|mask_dps_sum": sums}
        return found, after


@dataclass(frozen=True)
class RandomMask(UpdateMask):
    """Of each parameter a `keep` share of the entries, drawn before the first step: the control."""

    keep: float = 0.1
    random = True

    def __post_init__(self) -> None:
        _check(self.keep)

    def masks(
        self, gradients: Gradients, state: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> tuple[dict[str, Tensor], State]:
        found = {
            name: state[f"{name}|mask_random"].bool()
            if f"{name}|mask_random" in state
            else largest(torch.rand(gradient.shape, generator=generator).to(gradient.device), self.keep)
            for name, gradient in gradients.items()
        }
        return found, {f"{name}|mask_random": mask.to(torch.uint8) for name, mask in found.items()}


@dataclass(frozen=True)
class FisherMask(UpdateMask):
    """Of each parameter the `keep` share with the largest squared gradients over the first `window` steps.

    Nothing moves in those; the mask stays afterwards (Sung et al. 2021, arXiv 2111.09839).
    """

    keep: float = 0.005
    window: int = 5

    def __post_init__(self) -> None:
        _check(self.keep, self.window)

    def masks(
        self, gradients: Gradients, state: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> tuple[dict[str, Tensor], State]:
        found: dict[str, Tensor] = {}
        after: State = {}
        for name, gradient in gradients.items():
            step = int(state.get(f"{name}|mask_fisher_step", torch.zeros(())))
            sums = state.get(f"{name}|mask_fisher_sum", torch.zeros_like(gradient))
            if step < self.window:
                sums = sums + gradient.detach().square()
                found[name] = torch.zeros_like(gradient, dtype=torch.bool)
            else:
                found[name] = largest(sums, self.keep)
            after |= {
                f"{name}|mask_fisher_step": torch.tensor(float(step + 1)),
                f"{name}|mask_fisher_sum": sums,
            }
        return found, after


def masks_of(
    transforms: Sequence[GradientTransform],
    gradients: Gradients,
    state: Mapping[str, Tensor],
    generator: torch.Generator | None,
) -> tuple[dict[str, Tensor], State]:
    """Return the entries that all masks of a chain let move, by parameter, and what they remember."""
    found: dict[str, Tensor] = {}
    after = dict(state)
    for transform in transforms:
        if isinstance(transform, UpdateMask):
            own, remembered = transform.masks(gradients, state, generator)
            after |= remembered
            for name, mask in own.items():
                found[name] = found[name] & mask if name in found else mask
    return found, after


def largest(scores: Tensor, keep: float) -> Tensor:
    """Return which entries are at least as large as the ceil(n keep)-th largest; equal ones all count."""
    count = max(1, math.ceil(scores.numel() * keep))
    least = scores.flatten().topk(count).values[-1]
    return scores >= least


def _check(keep: float, window: int = 1) -> None:
    if not 0 < keep <= 1 or window < 1:
        raise BadInput(
            f"keep {keep}, window {window}: use a share above 0 and at most 1, and 1 or more steps"
        )
