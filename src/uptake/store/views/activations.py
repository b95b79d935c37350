"""What enters the upper blocks of a model for a store's passages, on disk, each passage read by itself.

Of the files (see view_files.py) `hidden` holds the numbers, mapped, two bytes each; `values` the token that
each place predicts and `losses` the base's loss of it, in nats; `pieces` where passages longer than the
model's window were cut.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from uptake.errors import BadInput, Mismatch
from uptake.preparation import preparing
from uptake.store.passages.columns import Ids
from uptake.store.views.view_files import PASSAGE, Arrays, StoredView, ViewKind, ViewMetadata
from uptake.text.activations import Activation
from uptake.text.chunks.cutting import edges_of

# One piece: the token that stands before its first place, and how many places it has.
PIECE = np.dtype([("first", "<i4"), ("tokens", "<i4")])


def _edges(arrays: Arrays) -> dict[str, Ids]:
    tokens = edges_of(arrays["passages"]["tokens"])
    pieces = np.searchsorted(edges_of(arrays["pieces"]["tokens"]), tokens)
    passages = np.arange(len(arrays["passages"]) + 1)
    return {"hidden": tokens, "values": tokens, "losses": tokens, "pieces": pieces, "passages": passages}


_FILES: dict[str, np.dtype[Any]] = {
    "hidden": np.dtype("<u2"),
    "values": np.dtype("<i4"),
    "losses": np.dtype("<f4"),
    "pieces": PIECE,
    "passages": PASSAGE,
}
ACTIVATIONS = ViewKind(
    "activations",
    MappingProxyType(_FILES),
    "hidden",
    "`uptake index activations {store} --model M --fresh` reads them anew",
    "`uptake index activations` reads it again",
    _edges,
    settings=("layers", "opening", "size", "dtype"),
    by_passage=True,
)


class StoredActivations(StoredView):
    """The activations of a store: an `Activations` (see uptake.text.activations)."""

    @classmethod
    def of(cls, store: Path, fingerprint: str) -> "StoredActivations":
        """Map what enters the blocks that this fingerprint names.

        Raises BadInput where there is nothing, Mismatch where it enters others, Damaged.
        """
        found = cls.open(ACTIVATIONS, store)
        if found is None:
            raise BadInput(
                f"{store}: holds no activations; make them with `uptake index activations {store} -m M`, "
                "or leave activations=view out"
            )
        check_fingerprint(store, found.metadata, fingerprint)
        return found

    @property
    def dtype(self) -> str:
        return str(self.metadata.settings["dtype"])

    def find(self, inputs: Sequence[int]) -> Activation | None:
        """Return what was kept of the piece with these inputs."""
        number = self._numbers.get(_key(inputs))
        if number is None:
            return None
        places = slice(*self._starts[number : number + 2].tolist())
        first, targets = int(self.arrays["pieces"]["first"][number]), self.arrays["values"][places]
        if (first, *targets[:-1].tolist()) != tuple(inputs):
            return None
        return Activation(first, targets, self.arrays["hidden"][places], self.arrays["losses"][places])

    @cached_property
    def _starts(self) -> Ids:
        return edges_of(self.arrays["pieces"]["tokens"])

    @cached_property
    def _numbers(self) -> dict[bytes, int]:
        """The number of each piece by its inputs; of several with the same the last."""
        with preparing():
            ends = zip(self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True)
            values, firsts = self.arrays["values"], self.arrays["pieces"]["first"].tolist()
            return {
                _key((first, *values[start : end - 1].tolist())): number
                for number, ((start, end), first) in enumerate(zip(ends, firsts, strict=True))
            }


def check_fingerprint(store: Path, metadata: ViewMetadata, wanted: str) -> None:
    """Raise Mismatch unless the activations are those that a fingerprint names."""
    settings, made = metadata.settings, metadata.fingerprint
    if made != wanted:
        raise Mismatch(
            f"{store}: its activations enter the top {settings['layers']} blocks of "
            f"{metadata.name or 'a model'}, read {'with' if settings['opening'] == 'yes' else 'without'} the "
            f"opening token ({made}); they are not those wanted ({wanted}): give that model and train just "
            "these blocks, or make others by `uptake index activations --fresh`"
        )


def _key(inputs: Sequence[int]) -> bytes:
    return hashlib.blake2b(np.array(inputs, "<i4").tobytes(), digest_size=16).digest()
