"""The tokens of a store's passages on disk, each with the key of the place before it, as one model read them.

Of their files (see view_files.py), `keys` holds the keys, mapped, and `words` and `letters` what the leak
filter compares of the passages.
"""

from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput, Mismatch
from uptake.store.passages.columns import Ids
from uptake.store.views.view_files import PASSAGE, Arrays, StoredView, ViewKind, documents_of
from uptake.text.chunks.cutting import edges_of
from uptake.text.collection import Collected, Collection


def _edges(arrays: Arrays) -> dict[str, Ids]:
    documents = documents_of(arrays["passages"])
    counts = ("tokens", "words", "letters")
    tokens, words, letters = (edges_of(arrays["passages"][name])[documents] for name in counts)
    return {"keys": tokens, "values": tokens, "passages": documents, "words": words, "letters": letters}


_FILES: dict[str, np.dtype[Any]] = {
    "keys": np.dtype("<f2"),
    "values": np.dtype("<i4"),
    "passages": PASSAGE,
    "words": np.dtype("<u8"),
    "letters": np.dtype("<u8"),
}
TOKENS = ViewKind(
    "tokens",
    MappingProxyType(_FILES),
    "keys",
    "`uptake index tokens {store} --model M --fresh` reads them anew",
    "`uptake index tokens` reads it again",
    _edges,
)


class StoredTokens(StoredView):
    """The tokens of a store."""

    @classmethod
    def of(cls, store: Path, fingerprint: str) -> "StoredTokens":
        """Map the tokens that a model with this fingerprint read.

        Raises BadInput where there are none, Mismatch where another model read them, Damaged.
        """
        found = cls.open(TOKENS, store)
        if found is None:
            raise BadInput(
                f"{store}: holds no tokens; read them with `uptake index tokens {store} --model M`"
            )
        metadata = found.metadata
        if fingerprint != metadata.fingerprint:
            raise Mismatch(
                f"{store}: its tokens were read by {metadata.name or 'a model'} ({metadata.fingerprint}), "
                f"not by this one ({fingerprint}); give that model, "
                "or `uptake index tokens --fresh` with this one"
            )
        return found

    @property
    def values(self) -> NDArray[np.int32]:
        return self.arrays["values"]

    @cached_property
    def collection(self) -> Collection:
        """The passages, ready for the leak filter."""
        words, letters, passages = self.arrays["words"], self.arrays["letters"], self.passages
        unspaced, sampled = (passages[name] == 1 for name in ("unspaced", "sampled"))
        kept = Collected(words, passages["words"], letters, passages["letters"], unspaced, sampled)
        return Collection(kept)
