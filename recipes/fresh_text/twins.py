"""Which files are near copies of others, and which have a near twin: by the measures of the leak filter.

Two files are compared by their 13-grams of words. A file half of which stands in one other is its near
copy, and one of the two is dropped; below that, a file that shares a good part with one other has a twin,
as the asynchronous edition of a client has in the synchronous one. A twin is kept and marked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uptake.text.overlap import GRAM, SHINGLE, Shingles

COPY = 0.5  # the share of a file's 13-grams in one other from which on it is a near copy
TWIN = 0.1  # the same, or of 5-grams as Jaccard's index, from which on it has a near twin


@dataclass(frozen=True, slots=True)
class Nearest:
    """The other text that shares most with one: its place, -1 for none, and the two measures."""

    place: int = -1
    containment: float = 0.0  # share of this text's 13-grams that stand in the other
    jaccard: float = 0.0  # of 5-grams

    @property
    def twin(self) -> bool:
        """Whether the two are near twins."""
        return max(self.containment, self.jaccard) >= TWIN


class Grams:
    """Which of some texts hold each n-gram of words."""

    def __init__(self, texts: Sequence[Shingles], length: int) -> None:
        each = [text.grams(length) for text in texts]
        self.sizes = np.array([len(grams) for grams in each], np.int64)
        grams = np.concatenate(each) if each else np.empty(0, np.uint64)
        owners = np.repeat(np.arange(len(each)), self.sizes)
        order = np.argsort(grams, kind="stable")
        self._grams, self._owners = grams[order], owners[order]

    def shared(self, text: Shingles, length: int) -> NDArray[np.int64]:
        """Return how many n-grams of a text each of the texts holds."""
        wanted = text.grams(length)
        first, last = (np.searchsorted(self._grams, wanted, side) for side in ("left", "right"))
        spans = [self._owners[start:stop] for start, stop in zip(first, last, strict=True) if start < stop]
        found = np.concatenate(spans) if spans else np.empty(0, np.int64)
        return np.bincount(found, minlength=len(self.sizes))


def near_copies(texts: Sequence[Shingles], most: float = COPY) -> dict[int, int]:
    """Return {place: of which} for texts of which at least `most` stands in one other that is kept.

    Where each would be a copy of the other, the shorter goes; of equals the later.
    """
    grams = Grams(texts, GRAM)
    dropped: dict[int, int] = {}
    for place in sorted(range(len(texts)), key=lambda place: (grams.sizes[place], -place)):
        if not grams.sizes[place]:
            continue
        shared = grams.shared(texts[place], GRAM)
        shared[[place, *dropped]] = 0
        if shared.max() >= most * grams.sizes[place]:
            dropped[place] = int(shared.argmax())
    return dropped


def nearest(texts: Sequence[Shingles], others: Sequence[Shingles]) -> list[Nearest]:
    """Return for each text the one of `others` that shares the larger part with it, by either measure."""
    if not others:
        return [Nearest() for _ in texts]
    long, short = Grams(others, GRAM), Grams(others, SHINGLE)
    found = []
    for text in texts:
        containment = long.shared(text, GRAM) / max(len(text.grams(GRAM)), 1)
        both = short.shared(text, SHINGLE)
        jaccard = both / np.maximum(len(text.grams(SHINGLE)) + short.sizes - both, 1)
        place = int(np.maximum(containment, jaccard).argmax())
        found.append(Nearest(place, float(containment[place]), float(jaccard[place])))
    return found
