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
LONG = 50  # steps of a window from which DPS with mixout favours entries that counted seldom
REMEMBERED = "mask_"  # what keys in an optimizer's state begin with that are masks'


class UpdateMask(GradientTransform):
    """A transform of the update: gradients pass as they are, entries of its mask alone take the step."""

    def apply(self, gradients: Gradients, generator: torch.Generator | None) -> Gradients:
        return gradients

    @property
    def mixes(self) -> bool:
        """Whether gradients are taken at other values than the parameters': `mixed` gives them."""
        return False

    def mixed(
        self, values: Mapping[str, Tensor], state: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> tuple[dict[str, "Mixing"], State]:
        """Return how each parameter is mixed before the next gradient, and what to remember.

        A parameter that is not there is read as it is.
        """
        return {}, {}

    @abstractmethod
    def masks(
        self, gradients: Gradients, state: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> tuple[dict[str, Tensor], State]:
        """Return which entries of each parameter move in this step, and what to remember.

        A parameter that is not there moves whole. `state` is what was remembered, nothing before the first
        step.
        """


@dataclass(frozen=True)
class Mixing:
    """A parameter as it is read: `target` plus, where `kept` is 1, what it differs by, over the share `keep`.

    `kept` [as the parameter, or a row of it] is 0 or 1. What is not kept stands at the target, and the rest
    is so much further from it that the mean over draws of `kept` is the parameter itself.
    """

    target: Tensor
    kept: Tensor
    keep: float

    def of(self, value: Tensor) -> Tensor:
        """Return the parameter as it is read, differentiable in `value`."""
        return self.target + self.kept * (value - self.target) / self.keep


@dataclass(frozen=True)
class _Kept(GradientTransform):
    """Leaves of the gradients of mixed parameters what was kept, as if the rest had not been read.

    What the reading was stretched by is left out of the gradient, as published for mixout and for DPS.
    """

    mixing: Mapping[str, Mixing]
    per_document: bool = False

    def apply(self, gradients: Gradients, generator: torch.Generator | None) -> Gradients:
        for name, mixing in self.mixing.items():
            if name in gradients:
                gradients[name] = gradients[name] * mixing.kept
        return gradients


@dataclass(frozen=True)
class DPS(UpdateMask):
    """Dynamic parameter selection (Zhang et al. 2022, arXiv 2210.17041): windows of `window` steps, in turns.

    In the first window, and every other one, all entries move and squared gradients are summed, from zero; in
    those between, of each parameter the `keep` share with the largest sums alone. (The published `reserve_p`
    of 0.3 keeps 0.7.) Their windows are a twentieth of all steps.

    With `mixout` gradients are taken at other values (Lee et al. 2020, arXiv 1909.11299). In the first window
    and every other one a column of a matrix, as it is stored, or an entry of a vector, keeps what it has
    learnt with the probability `keep`, drawn at each step, and else stands where training began; only those
    that keep it move and count. In the windows between, what moves is read stretched from where the window
    began. Scores are then means over the steps in which an entry counted; in windows of 50 or more those that
    counted often weigh less, by exp(-count / window).
    """

    keep: float = 0.7
    window: int = 5
    mixout: bool = False

    def __post_init__(self) -> None:
        _check(self.keep, self.window)

    @property
    def mixes(self) -> bool:
        return self.mixout

    @property
    def random(self) -> bool:  # type: ignore[override]
        return self.mixout

    def mixed(
        self, values: Mapping[str, Tensor], state: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> tuple[dict[str, Mixing], State]:
        if not self.mixout:
            return {}, {}
        found: dict[str, Mixing] = {}
        after: State = {}
        for name, value in values.items():
            step = int(state.get(f"{name}|mask_dps_step", torch.zeros(())))
            start = state.get(f"{name}|mask_dps_start", value.detach().clone())
            target = start
            if self._looks(step):
                row = torch.rand(value.shape[1:] or value.shape, generator=generator) < self.keep
                kept = row.to(value.device)
            else:
                begins = step % self.window == 0
                target = value.detach().clone() if begins else state[f"{name}|mask_dps_target"]
                kept = self._largest(name, state)
                after[f"{name}|mask_dps_target"] = target
            after |= {f"{name}|mask_dps_start": start, f"{name}|mask_dps_kept": kept.to(torch.uint8)}
            found[name] = Mixing(target, kept.to(value.dtype), self.keep)
        return found, after

    def _looks(self, step: int) -> bool:
        """Whether a step is in a window in which squares are summed."""
        return step // self.window % 2 == 0

    def _largest(self, name: str, state: Mapping[str, Tensor]) -> Tensor:
        """Return which entries of a parameter move in a window of those that scored best."""
        scores = state[f"{name}|mask_dps_sum"]
        if self.mixout:
            count = state[f"{name}|mask_dps_count"].clamp(min=1.0)
            scores = scores / count
            if self.window >= LONG:
                scores = scores * torch.exp(-count / self.window)
        return largest(scores, self.keep)

    def masks(
        self, gradients: Gradients, state: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> tuple[dict[str, Tensor], State]:
        found: dict[str, Tensor] = {}
        after: State = {}
        for name, gradient in gradients.items():
            step = int(state.get(f"{name}|mask_dps_step", torch.zeros(())))
            fresh = step % self.window == 0
            sums = state.get(f"{name}|mask_dps_sum")
            if self._looks(step):
                square = gradient.detach().square()
                sums = square if sums is None or fresh else sums + square
                if self.mixout:
                    kept = state[f"{name}|mask_dps_kept"].to(square).expand_as(square)
                    counted = kept if fresh else state[f"{name}|mask_dps_count"] + kept
                    after[f"{name}|mask_dps_count"] = counted
                    found[name] = kept.bool()
            else:
                assert sums is not None
                found[name] = self._largest(name, state)
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


def mixed_by(
    transforms: Sequence[GradientTransform],
    values: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    generator: torch.Generator | None,
) -> tuple[dict[str, Mixing], State]:
    """Return how a chain mixes each parameter before the next gradient, and what its masks remember.

    Raises BadInput where two of a chain do: one would be mixed with what the other made.
    """
    some = mixing(transforms)
    if len(some) > 1:
        raise BadInput("two transforms with mixout in one chain: leave one out")
    if not some:
        return {}, dict(state)
    found, after = some[0].mixed(values, state, generator)
    return found, dict(state) | after


def mixing(transforms: Sequence[GradientTransform]) -> list[UpdateMask]:
    """Return those of a chain that want gradients at other values than the parameters'."""
    return [each for each in transforms if isinstance(each, UpdateMask) and each.mixes]


def keeping(
    transforms: Sequence[GradientTransform], mixed: Mapping[str, Mixing]
) -> Sequence[GradientTransform]:
    """Return a chain that begins with leaving of mixed parameters' gradients what was kept."""
    if not mixed:
        return transforms
    return (_Kept(mixed, any(each.per_document for each in transforms)), *transforms)


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
