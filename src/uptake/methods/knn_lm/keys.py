"""A language model as a `Keyer`: every token of a text with the key of the place before it."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.capabilities import FeedForwardKeys, capability
from uptake.lm.examples import Example, encode, overlapping_windows, padded
from uptake.text.types import Keyed

BATCH_TOKENS = 4096  # of one forward pass
_WINDOW = 1024  # tokens read at a time, or as many as the model takes
_OVERLAP = 4  # the share of a window, one in so many, that is read again so that keys know what came before
_FORMAT = "last feed-forward 1"


@dataclass(frozen=True)
class _Piece:
    """One window of text `row`: the keys before its target, whose first token is number `start`, are new."""

    row: int
    start: int
    window: Example


class TokenKeyer:
    """Reads texts in windows, each but the first seeing the last quarter of the one before it."""

    batch_tokens = BATCH_TOKENS

    def __init__(self, lm: LM) -> None:
        self._lm = capability(lm, FeedForwardKeys)
        self.name = str(getattr(lm, "name", ""))
        self.window = min(_WINDOW, lm.window)
        self.overlap = self.window // _OVERLAP

    @cached_property
    def fingerprint(self) -> str:
        lm = self._lm
        parts = [_FORMAT, lm.weights_fingerprint, lm.tokenizer.fingerprint, self.window, self.overlap]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @cached_property
    def dimensions(self) -> int:
        with torch.no_grad():
            first = torch.tensor([self._lm.tokenizer.opened("")], device=self._lm.device)
            return int(self._lm.keys(first).shape[-1])

    def read(self, texts: Sequence[str]) -> list[Keyed]:
        """Return each text's tokens and their keys. Raises BadInput for keys that float16 cannot hold."""
        encoded = [encode(self._lm.tokenizer, "", text) for text in texts]
        keys = [np.empty((len(each.target), self.dimensions), np.float16) for each in encoded]
        pieces = [piece for row, each in enumerate(encoded) for piece in self._pieces(row, each)]
        batches = [*_batches(pieces, self.batch_tokens)]
        for batch, found in zip(
            batches, self.run([[piece.window for piece in batch] for batch in batches]), strict=True
        ):
            for piece, own in zip(batch, found, strict=True):
                keys[piece.row][piece.start : piece.start + len(own)] = own
        return [
            Keyed(
                np.array(each.target, np.int32), np.array([start for start, _ in each.spans], np.int64), found
            )
            for each, found in zip(encoded, keys, strict=True)
        ]

    def _pieces(self, row: int, text: Example) -> Iterator[_Piece]:
        start = 0
        for window in overlapping_windows(text, self.window, self.overlap):
            yield _Piece(row, start, window)
            start += len(window.target)

    def run(self, batches: Sequence[Sequence[Example]]) -> Iterable[list[NDArray[np.float16]]]:
        """Return for each batch of windows, in order, what `keys_of` makes of it."""
        return map(self.keys_of, batches)

    def keys_of(self, batch: Sequence[Example]) -> list[NDArray[np.float16]]:
        """Return the keys before each window's target, in one pass. Raises BadInput as `read` does."""
        # What stands to the right of a row's end changes nothing before it.
        ids = padded([window.inputs for window in batch])
        with torch.no_grad():
            keys = self._lm.keys(ids.to(self._lm.device)).half().cpu()
        found = []
        for row, window in enumerate(batch):
            end = len(window.inputs)
            own = keys[row, end - len(window.target) : end]
            if not own.isfinite().all():
                raise BadInput("the model's keys are too large for float16: it cannot have a token view")
            found.append(own.numpy())
        return found


def _batches(pieces: list[_Piece], most: int) -> Iterator[list[_Piece]]:
    """Group pieces of like length, each group of `most` tokens at most."""
    batch: list[_Piece] = []
    for piece in sorted(pieces, key=lambda piece: -len(piece.window.inputs)):
        if batch and len(batch[0].window.inputs) * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch
