"""What enters the blocks that train, of every text of recipes/privacy.py, in a file for all its trainings.

Only upper blocks train, so a text goes through those below once, whatever the arm, the step or the process.
Kept in float32: a training from the file is bit for bit one that computes it (tests/test_recipe_privacy.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uptake.adaptation.tensors import read_tensors, write_tensors
from uptake.adaptation.trainable.places import blocks
from uptake.lm.activations import fingerprint_of
from uptake.lm.causal import Causal
from uptake.lm.examples import Example
from uptake.text.activations import Activation

WHAT = "entered"


@dataclass(frozen=True)
class Entered:
    """An `Activations`: what enters the lowest block that trains, by the inputs of a text."""

    examples: dict[tuple[int, ...], Example]
    hidden: dict[tuple[int, ...], Tensor]  # of each text, [time, width]
    dtype: str = "float32"

    def find(self, inputs: Sequence[int]) -> Activation | None:
        """Return what was kept of a text, without the base's losses."""
        ids = tuple(inputs)
        if ids not in self.hidden:
            return None
        example, hidden = self.examples[ids], self.hidden[ids]
        numbers: NDArray[np.uint16] = hidden.view(torch.uint16).numpy()
        targets = np.array(example.target, np.int32)
        return Activation(ids[0], targets, numbers, np.full(len(targets), np.nan, np.float32))


def entered(lm: Causal, examples: Sequence[Example], layers: int, file: Path) -> Entered:
    """Return what enters the top `layers` blocks for these texts; what a file has of them is not computed."""
    count = len(blocks(lm.module)[1]) - layers
    about = {"format": f"uptake-{WHAT}-1", "fingerprint": fingerprint_of(lm, count, True, lm.window)}
    by_inputs = {tuple(example.inputs): example for example in examples}
    hidden: dict[tuple[int, ...], Tensor] = {}
    if file.exists():
        written, tensors = read_tensors(file, WHAT)
        if written["fingerprint"] == about["fingerprint"]:
            for start, end in pairwise(tensors["starts"].tolist()):
                hidden[tuple(tensors["inputs"][start:end].tolist())] = tensors["hidden"][start:end]
    frozen = lm.frozen_layers(count)
    missing = [ids for ids in by_inputs if ids not in hidden]
    if missing:
        hidden |= {ids: frozen.of(ids)[0].float() for ids in missing}
        lengths = [len(ids) for ids in hidden]
        tensors = {
            "starts": torch.tensor([0, *np.cumsum(lengths).tolist()]),
            "inputs": torch.tensor([token for ids in hidden for token in ids]),
            "hidden": torch.cat([*hidden.values()]),
        }
        write_tensors(file, tensors, about)
    return Entered(by_inputs, {ids: hidden[ids] for ids in by_inputs})
