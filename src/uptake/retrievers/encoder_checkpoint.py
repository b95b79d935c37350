"""The state of an encoder's training on the disk, so that an interrupted one ends where another would.

What the index gave is a part of it: it was searched with vectors that the encoder gave some steps ago.
"""

from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

from uptake.adaptation.tensors import from_metadata, read_tensors, to_metadata, write_tensors
from uptake.errors import Mismatch

_KIND = "encoder-training"
_PARTS = ("network", "best", "optimizer_state")


@dataclass
class Progress:
    """All that a checkpoint holds: what trains, how far it is, and what was retrieved for each question."""

    network: dict[str, Tensor]
    best: dict[str, Tensor] = field(default_factory=dict)
    optimizer_state: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    sum: float = 0.0  # of the losses since the last pass ended
    pools: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class _About:
    """What the file says beside its tensors."""

    key: str  # of the training
    step: int
    training: tuple[float, ...]
    validation: tuple[float, ...]
    sum: float
    format: str = f"uptake-{_KIND}-1"


def write(path: Path, key: str, progress: Progress) -> None:
    """Write the state of the training that `key` names, whole or not at all."""
    tensors = {
        f"{part}/{name}": tensor for part in _PARTS for name, tensor in getattr(progress, part).items()
    }
    tensors["pools"] = torch.tensor([place for pool in progress.pools for place in pool], dtype=torch.long)
    tensors["sizes"] = torch.tensor([len(pool) for pool in progress.pools], dtype=torch.long)
    about = _About(key, progress.step, (*progress.training,), (*progress.validation,), progress.sum)
    write_tensors(path, tensors, to_metadata(about))


def read(path: Path, key: str) -> Progress:
    """Read it. Raises Mismatch where it is of another training, BadInput for another file, Damaged."""
    metadata, tensors = read_tensors(path, _KIND)
    about = from_metadata(_About, metadata, path, _KIND)
    if about.key != key:
        raise Mismatch(
            f"{path} is of a training with other settings, questions or text in the store: give those, or "
            "begin anew (--fresh)"
        )
    places, sizes = tensors.pop("pools").tolist(), tensors.pop("sizes").tolist()
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
    for full_name, tensor in tensors.items():
        part, _, name = full_name.partition("/")
        parts[part][name] = tensor
    ends = [*accumulate(sizes, initial=0)]
    return Progress(
        parts["network"],
        parts["best"],
        parts["optimizer_state"],
        about.step,
        [*about.training],
        [*about.validation],
        about.sum,
        [places[first:last] for first, last in pairwise(ends)],
    )
