"""What the frozen blocks of a model make of passages: the contract of who reads, who keeps and who trains.

Where only upper blocks of a model train, what enters the lowest of them depends on a text and the base alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from uptake.text.types import Passage


@dataclass(frozen=True, slots=True)
class Activation:
    """One piece of a passage, a place for each token that it predicts.

    `first` stands before the first place, and place i predicts `targets[i]`: the inputs are `first` and
    all targets but the last. `hidden` is what enters the lowest block that trains, [places, numbers] of two
    bytes each (a float32 takes two of them), `losses` the base's own, in nats, [places].
    """

    first: int
    targets: NDArray[np.int32]
    hidden: NDArray[np.uint16]
    losses: NDArray[np.float32]


class ActivationReads(Protocol):
    """Reads passages through frozen blocks; `fingerprint` changes whenever what enters would."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def dimensions(self) -> int:
        """How many numbers of two bytes a place has."""
        ...

    @property
    def settings(self) -> Mapping[str, str | int]:
        """How it reads: `layers` above the frozen ones, `opening` token or not, `size` of pieces, `dtype`."""
        ...

    def read(self, passage: Passage) -> list[Activation]:
        """Return the pieces of a passage, in order."""
        ...


class Activations(Protocol):
    """What was kept of frozen blocks, found by the inputs of a piece."""

    @property
    def dtype(self) -> str:
        """What `hidden` holds: float16, bfloat16 or float32."""
        ...

    def find(self, inputs: Sequence[int]) -> Activation | None:
        """Return the piece that has just these inputs, None where none was kept."""
        ...
