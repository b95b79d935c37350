"""Neighbours of a training corpus's chunks, found once ahead, kept on disk and mapped.

FOLDER/neighbours/ holds a row of chunk ids for each query of each document, in commits that survive a
crash, and names the chunks they are of: those of a store that has changed since are refused.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from uptake.chunks.cutting import cut, edges_of
from uptake.errors import BadInput, Mismatch
from uptake.store.files import Lease, plain_errors
from uptake.store.growing import Growing, begin
from uptake.store.kept import About, Arrays, Kept, Kind
from uptake.store.table import Ids
from uptake.text import Chunks, Document, Encodes, stable_hash

_COMMIT = 4096  # queries: an interruption loses at most the search for so many, or for one document
_DOCUMENT = np.dtype([("key", "<i8"), ("queries", "<i8")])


def _edges(arrays: Arrays) -> dict[str, Ids]:
    documents = arrays["documents"]
    return {"ids": edges_of(documents["queries"]), "documents": np.arange(len(documents) + 1)}


_FILES: dict[str, np.dtype[Any]] = {"ids": np.dtype("<i8"), "documents": _DOCUMENT}
_ANEW = "delete it and look for the neighbours anew"
NEIGHBOURS = Kind("neighbours", MappingProxyType(_FILES), "ids", _ANEW, _ANEW, _edges)

Corpus = Iterable[tuple[Document, Sequence[str]]]


class Neighbours(Kept):
    """Ids of chunks that were found ahead, -1 where there are fewer."""

    @classmethod
    def read(cls, folder: Path, fingerprint: str) -> Self:
        """Map those among the chunks of this fingerprint. Raises BadInput, Mismatch, Damaged."""
        found = cls.open(NEIGHBOURS, folder)
        if found is None:
            raise BadInput(f"{folder}: holds no neighbours; look for them first")
        _check_same(folder, found.about, fingerprint)
        return found

    def of(self, document: str, queries: Sequence[str]) -> NDArray[np.int64]:
        """Return the ids found for a document's queries, [queries, k]; BadInput where nobody looked."""
        place = self._places.get(_key(document, queries))
        if place is None:
            raise BadInput(f"document {document!r}: nobody looked for its neighbours; look for them first")
        edges = self.edges["ids"]
        return np.asarray(self.arrays["ids"][edges[place] : edges[place + 1]])

    @cached_property
    def _places(self) -> dict[int, int]:
        return {key: place for place, key in enumerate(self.arrays["documents"]["key"].tolist())}


def find_neighbours(
    folder: Path,
    corpus: Corpus,
    chunks_for: Callable[[Document], Chunks],
    k: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Look for the k nearest chunks of every query of every document, and keep them in `folder`.

    `chunks_for` gives the chunks that a document may read: a store's, under the leak filter that
    names the document (`Datastore.source`), so that none of its own is among them. An interrupted call
    is finished by calling again. `progress(done)` counts documents. Raises BadInput, Busy where another
    process looks, Mismatch where the chunks are not those of the rows that are there, Damaged.
    """
    if k < 1:
        raise BadInput(f"k = {k}: look for 1 or more neighbours")
    with plain_errors(folder):
        (folder / NEIGHBOURS.name).mkdir(parents=True, exist_ok=True)
    with Lease(folder / "writer.lock"):
        kept = Neighbours.open(NEIGHBOURS, folder)
        known = set() if kept is None else set(kept.arrays["documents"]["key"].tolist())
        growing = None if kept is None else Growing(folder, kept.about)
        waiting = 0
        try:
            for done, (document, queries) in enumerate(corpus, start=1):
                chunks = chunks_for(document)
                if growing is None:
                    growing = Growing(folder, begin(About(NEIGHBOURS, "", "", chunks.fingerprint, k)))
                _check_same(folder, growing.about, chunks.fingerprint, k)
                if (key := _key(document.id, queries)) not in known:
                    known.add(key)
                    waiting += len(queries)
                    row = np.array([(key, len(queries))], _DOCUMENT)
                    growing.put({"ids": chunks.search(queries, k).numpy(), "documents": row})
                if waiting >= _COMMIT:
                    growing.commit()
                    waiting = 0
                if progress:
                    progress(done)
            if growing is not None:
                growing.commit()
        finally:
            if growing is not None:
                growing.close()


def queries_of(document: Document, encode: Encodes, length: int) -> list[str]:
    """Return the texts of a document's full chunks, of `length` tokens, to look for neighbours of."""
    columns, _ = cut(encode, document.id, document.group, [(0, document.text)], length)
    return [columns.text(place) for place in np.flatnonzero(columns.records["tokens"] == length).tolist()]


def _key(document: str, queries: Sequence[str]) -> int:
    return stable_hash(document, *queries)


def _check_same(folder: Path, about: About, fingerprint: str, k: int | None = None) -> None:
    if about.fingerprint != fingerprint:
        raise Mismatch(
            f"{folder}: its neighbours are of chunks {about.fingerprint}, not of {fingerprint}, for the "
            f"store has changed; {_ANEW}"
        )
    if k not in (None, about.dimensions):
        raise Mismatch(f"{folder}: holds {about.dimensions} neighbours each, not {k}; {_ANEW}")
