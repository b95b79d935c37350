"""The settings of private training, and the claim that comes of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from uptake.adaptation.privacy.accountant import epsilon_of, noise_for
from uptake.adaptation.privacy.noise import Randomness, Secret, Seeded
from uptake.errors import BadInput

MOST = 100.0  # of epsilon: odds may shift by its exponential, and reckoning with more takes minutes
NOT_PRIVATE = (
    "this report itself (answers, losses, token counts)",
    "settings chosen on these documents, a learning rate included",
    "whatever reads the documents when it answers, such as retrieval from a store",
)


@dataclass(frozen=True)
class DP:
    """Differentially private training: each unit's gradient clipped, noise on their sum (Abadi et al. 2016).

    `steps` steps, each over units drawn by themselves (Poisson sampling), `batch` of them on average, each
    clipped to the norm `clip`. The noise is what `epsilon` and `delta` need, or `noise` times the clip if
    that is given instead. A unit is a document, or a user: all documents of one `group`. With a `seed` draws
    can be repeated, and nothing is private.
    """

    epsilon: float | None = 8.0
    delta: float = 1e-5
    clip: float = 0.1
    steps: int = 50
    batch: int = 64
    unit: Literal["document", "user"] = "document"
    noise: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.unit not in ("document", "user"):
            raise BadInput(f"unit {self.unit!r}: use document or user")
        if (self.epsilon is None) == (self.noise is None):
            raise BadInput(
                f"epsilon {self.epsilon}, noise {self.noise}: give one of them, and none for the other"
            )
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise BadInput(f"epsilon {self.epsilon}: use a positive number, such as 8")
        if self.epsilon is not None and self.epsilon > MOST:
            raise BadInput(f"epsilon {self.epsilon:g}: so large that it keeps nothing; use {MOST:g} or less")
        if not 0 < self.delta < 1:
            raise BadInput(f"delta {self.delta}: use a number between 0 and 1, far below 1 / documents")
        if not self.clip > 0:
            raise BadInput(f"clip {self.clip}: use a positive norm, such as 0.1")
        if self.noise is not None and not 0 <= self.noise < math.inf:
            raise BadInput(f"noise {self.noise}: use 0 or more")
        if math.isinf(self.clip) and self.noise != 0:
            raise BadInput("clip inf: noise is so many times the clip, use a finite one")
        if self.steps < 1 or self.batch < 1:
            raise BadInput(f"steps {self.steps}, batch {self.batch}: use 1 or more of each")

    def claim(self, units: int) -> "Claim":
        """Return what training on so many units will keep. Raises BadInput where it cannot be kept."""
        if self.noise != 0 and self.delta >= 1 / units:
            raise BadInput(
                f"delta {self.delta:g} for {units:,} {self.unit}s: a whole one may leak at that; use less "
                f"than {1 / units:.2g}, such as {0.1 / units:.1g}"
            )
        rate = min(1.0, self.batch / units)
        if self.noise is None:
            assert self.epsilon is not None
            noise = noise_for(self.epsilon, rate, self.steps, self.delta, rate * units)
        else:
            noise = self.noise
        epsilon = epsilon_of(noise, rate, self.steps, self.delta)
        return Claim(
            epsilon=epsilon if math.isfinite(epsilon) else None,
            delta=self.delta,
            unit=self.unit,
            units=units,
            sampling_rate=rate,
            expected_batch=rate * units,
            steps=self.steps,
            noise_multiplier=noise,
            clip=self.clip,
            seeded=self.seed is not None,
        )

    def randomness(self, block: int) -> Randomness:
        """Return the source of draws of one training, the one of this number."""
        return Secret() if self.seed is None else Seeded(self.seed * 1_000_003 + block)


@dataclass(frozen=True)
class Claim:
    """What is kept about one training, in numbers; `epsilon` None says that nothing is."""

    epsilon: float | None
    delta: float
    unit: str
    units: int
    sampling_rate: float
    expected_batch: float
    steps: int
    noise_multiplier: float
    clip: float
    seeded: bool
    trainings: int = 1  # on other units each
    sampling: str = "Poisson"
    neighbouring: str = "one unit added or removed"
    accountant: str = "PRV (Gopi et al. 2021), opacus"

    @classmethod
    def joined(cls, claims: Sequence["Claim"]) -> "Claim":
        """Return what is kept where no unit is in two trainings: the weakest claim, for all of them."""
        weakest = max(claims, key=lambda each: math.inf if each.epsilon is None else each.epsilon)
        return replace(
            weakest,
            delta=max(each.delta for each in claims),
            seeded=any(each.seeded for each in claims),
            trainings=len(claims),
        )

    @property
    def holds(self) -> bool:
        """Whether anything is kept private."""
        return self.epsilon is not None and not self.seeded

    def said(self) -> str:
        """Return the claim in a line."""
        how = (
            f"noise {self.noise_multiplier:.3g} times the clip {self.clip:g}, {self.steps:,} steps, each "
            f"with every {self.unit} at probability {self.sampling_rate:.3g} (Poisson sampling, "
            f"{self.expected_batch:.4g} of {self.units:,} expected)"
            + (f", the weakest of {self.trainings} on different {self.unit}s" if self.trainings > 1 else "")
        )
        if self.seeded:
            return f"seeded: no privacy; {how}"
        if self.epsilon is None:
            return f"{'too little' if self.noise_multiplier else 'no'} noise: no privacy; {how}"
        return (
            f"({self.epsilon:.3g}, {self.delta:g})-differentially private for each {self.unit} trained on: "
            f"{how}. Not private: {'; '.join(NOT_PRIVATE)}"
        )
