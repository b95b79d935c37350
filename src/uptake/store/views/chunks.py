"""The chunks of a store's documents on disk, as one tokenizer cut them and the store's encoder embedded them.

Of their files (see view_files.py), `chunks` says what each is, `texts` holds their text, `words` its words
for a search by words and `vectors` one vector each for a search by vectors.
"""

from types import MappingProxyType
from typing import Any

import numpy as np

from uptake.store.passages.columns import Ids
from uptake.store.views.view_files import PASSAGE, Arrays, StoredView, ViewKind, documents_of
from uptake.text.chunks.cutting import RECORD, Columns, edges_of


def _edges(arrays: Arrays) -> dict[str, Ids]:
    documents, records = documents_of(arrays["passages"]), arrays["chunks"]
    tokens = edges_of(arrays["passages"]["tokens"])[documents]
    chunks = np.searchsorted(edges_of(records["tokens"]), tokens)
    return {
        "values": tokens,
        "passages": documents,
        "chunks": chunks,
        "texts": edges_of(records["bytes"])[chunks],
        "words": edges_of(records["words"])[chunks],
        "vectors": chunks if arrays["vectors"].ndim == 2 else np.zeros_like(chunks),
    }


_FILES: dict[str, np.dtype[Any]] = {
    "values": np.dtype("<i4"),
    "passages": PASSAGE,
    "chunks": RECORD,
    "texts": np.dtype("u1"),
    "words": np.dtype("<u8"),
    "vectors": np.dtype("<f2"),
}
CHUNKS = ViewKind(
    "chunks",
    MappingProxyType(_FILES),
    "vectors",
    "`uptake index chunks {store} --model M --fresh` cuts them anew",
    "`uptake index chunks` cuts it again",
    _edges,
    settings=("length", "encoder"),
)


def columns_of(stored: StoredView) -> Columns:
    """Return the chunks as they lie on the disk."""
    return Columns(*(stored.arrays[name] for name in ("chunks", "values", "texts", "words")))
