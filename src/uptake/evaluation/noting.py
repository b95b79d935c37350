"""A source that notes how much of the query's document stands in what a method found by itself.

Selections hand a method its passages; a method may search again as the text goes on, or ask for the
store's tokens or chunks. It knows nothing of methods: it passes on what it is asked.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from uptake.text.activations import Activations
from uptake.text.types import Chunks, Found, Source, Tokens


class NotingSource:
    """A `Source` (see uptake.text.types) that notes what is found; what `again` returns notes here too.

    `letters` is the largest share of a passage's runs of letters that stand in the document. Which of the
    store's tokens or chunks a method reads is not seen: `searched` says that it asked for them.
    """

    def __init__(self, source: Source, whole: "NotingSource | None" = None) -> None:
        self._source, self._whole = source, whole or self
        self.letters = 0.0
        self.searched = False

    def search(self, k: int) -> Found:
        return self._noted(self._source.search(k))

    def sample(self, k: int, generator: np.random.Generator) -> Found:
        return self._noted(self._source.sample(k, generator))

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return self._source.vectors(ids)

    def query_vector(self) -> NDArray[np.float32]:
        return self._source.query_vector()

    def query_text(self) -> str:
        return self._source.query_text()

    def again(self, text: str) -> "NotingSource":
        return NotingSource(self._source.again(text), self._whole)

    def tokens(self, fingerprint: str) -> Tokens:
        self._whole.searched = True
        return self._source.tokens(fingerprint)

    def chunks(self, fingerprint: str) -> Chunks:
        self._whole.searched = True
        return self._source.chunks(fingerprint)

    def activations(self, fingerprint: str) -> Activations:
        return self._source.activations(fingerprint)

    def _noted(self, found: Found) -> Found:
        self._whole.letters = max(self._whole.letters, *found.letters, 0.0)
        return found
