"""The trainings of recipes/privacy.py: an arm with its seed, steps and settings, and what is trained."""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from uptake.adaptation.privacy.dp import DP
from uptake.adaptation.trainable import LoRA, Trainable
from uptake.adaptation.trainable.ia3 import IA3

DELTA = 1e-4  # a tenth of one over the number of documents, of so many as facts are about
CLIP = 0.1
OPENLY, CLIPPED = "openly", "clipped"
ARMS: Mapping[str, float | None] = {"none": None, CLIPPED: None, "8": 8.0, "3": 3.0, OPENLY: None}  # epsilon
OPEN_STEPS, OPEN_BATCH, OPEN_RATE = 240, 64, 1e-3  # of AdamW, on both factors of LoRA


@dataclass(frozen=True)
class Run:
    """One training: an arm, a seed of what is planted, and how many steps over how many documents."""

    arm: str
    seed: int
    steps: int
    batch: int
    layers: int
    rank: int
    rate: float = 0.0  # of AdamW; 0: steps along the noisy gradient, each as long as is best on validation
    clip: float = CLIP
    documents: int = 0  # of the stream; 0: those that facts are about
    parts: tuple[str, ...] = ()  # matrices of a block that LoRA is on; all if none

    @property
    def key(self) -> str:
        how = f" {self.rate:g}" if self.rate else ""
        if (self.clip, self.documents, self.parts) != (CLIP, 0, ()):
            how = " ".join(["", f"{self.rate:g} {self.clip:g} {self.documents}", *self.parts])
        return f"{self.arm} {self.seed} {self.steps} {self.batch} {self.layers} {self.rank}{how}"

    @classmethod
    def of(cls, key: str) -> "Run":
        """Return the run of a key."""
        arm, *rest = key.split()
        seed, steps, batch, layers, rank = map(int, rest[:5])
        found = cls(arm, seed, steps, batch, layers, rank, *map(float, rest[5:7]))
        return replace(found, documents=int(rest[7]), parts=tuple(rest[8:])) if len(rest) > 7 else found

    @property
    def trainable(self) -> Trainable:
        """What trains: LoRA, at rank 0 (IA)^3."""
        if self.rank == 0:
            return IA3(layers=self.layers)
        return LoRA(rank=self.rank, alpha=8 * self.rank, layers=self.layers)

    def dp(self, units: int) -> DP:
        """Return the settings of this arm; without privacy the same steps, no clip and no noise."""
        epsilon = ARMS[self.arm]
        delta = min(DELTA, 0.1 / units) if self.documents else DELTA
        shared: dict[str, Any] = {"delta": delta, "steps": self.steps, "batch": self.batch}
        if epsilon is None:
            clip = self.clip if self.arm == CLIPPED else math.inf
            return DP(epsilon=None, noise=0.0, clip=clip, seed=self.seed, **shared)
        return DP(epsilon=epsilon, clip=self.clip, **shared)


def runs_of(options: argparse.Namespace, units: int) -> list[Run]:
    """Return the runs that are asked for: each arm, batch, rate and seed."""
    shape = options.layers, options.rank
    found = []
    for seed in range(options.seeds):
        for arm in options.arms:
            if arm == OPENLY:
                found.append(Run(arm, seed, OPEN_STEPS, OPEN_BATCH, *shape, OPEN_RATE))
                continue
            for batch in options.batch:
                steps = max(1, options.passes * units // batch) if options.passes else options.steps
                found += [
                    Run(arm, seed, steps, batch, *shape, rate, clip, options.documents, tuple(options.parts))
                    for rate in options.rate
                    for clip in (options.clip if arm not in ("none", OPENLY) else [CLIP])
                ]
    return found
