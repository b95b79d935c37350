"""The nearest chunks of a training corpus's chunks: found once, stored on disk and mapped.

FOLDER/neighbours/ holds a row of chunk ids for each query of each document, in commits that survive a
crash. It also names the chunks that were searched: neighbours of a store that has changed since are refused.
They are found in advance (`find_neighbours`), or at the first search (`NeighbourCache`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput, Mismatch
from uptake.preparation import preparing
from uptake.store.files import plain_errors
from uptake.store.passages.columns import Ids
from uptake.store.remote.lease import FileLease
from uptake.store.views.view_files import Arrays, StoredView, ViewKind, ViewMetadata
from uptake.store.views.view_writer import ViewWriter, empty_view
from uptake.text.chunks.cutting import cut, edges_of
from uptake.text.types import Chunks, Document, Encodes, stable_hash

if TYPE_CHECKING:
    from torch import Tensor

_COMMIT = 4096  # queries: an interruption loses at most the search for so many, or for one document
_DOCUMENT = np.dtype([("key", "<i8"), ("queries", "<i8")])


def _edges(arrays: Arrays) -> dict[str, Ids]:
    documents = arrays["documents"]
    return {"ids": edges_of(documents["queries"]), "documents": np.arange(len(documents) + 1)}


_FILES: dict[str, np.dtype[Any]] = {"ids": np.dtype("<i8"), "documents": _DOCUMENT}
_ANEW = "delete it and search for the neighbours again"
NEIGHBOURS = ViewKind("neighbours", MappingProxyType(_FILES), "ids", _ANEW, _ANEW, _edges)

Corpus = Iterable[tuple[Document, Sequence[str]]]


class ChunkNeighbours(StoredView):
    """Ids of the nearest chunks that were found in advance, -1 where there are fewer."""

    @classmethod
    def read(cls, folder: Path, fingerprint: str) -> Self:
        """Map the neighbours among the chunks of this fingerprint. Raises BadInput, Mismatch, Damaged."""
        found = cls.open(NEIGHBOURS, folder)
        if found is None:
            raise BadInput(f"{folder}: holds no neighbours; search for them first")
        _check_same(folder, found.metadata, fingerprint)
        return found

    def of(self, document: str, queries: Sequence[str]) -> NDArray[np.int64]:
        """Return the ids found for a document's queries, [queries, k]; BadInput where there are none."""
        found = self.rows.get(_key(document, queries))
        if found is None:
            raise BadInput(f"document {document!r}: no neighbours are stored; search for them first")
        return found

    @cached_property
    def rows(self) -> dict[int, Ids]:
        """The ids found, [queries, k] each, by the hash of document and queries."""
        with preparing():
            edges, ids = self.edges["ids"], np.asarray(self.arrays["ids"])
            keys = self.arrays["documents"]["key"].tolist()
            return {key: ids[edges[place] : edges[place + 1]] for place, key in enumerate(keys)}


def find_neighbours(
    folder: Path,
    corpus: Corpus,
    chunks_for: Callable[[Document], Chunks],
    k: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Search for the k nearest chunks of every query of every document, and store them in `folder`.

    `chunks_for` gives the chunks that a document may read: a store's, under the leak filter that
    names the document (`Datastore.source`), so that none of its own is among them. An interrupted call
    is finished by calling again. `progress(done)` counts documents. Raises BadInput, Busy where another
    process writes there, Mismatch where the chunks are not those of the rows that are there, Damaged.
    """
    if k < 1:
        raise BadInput(f"k = {k}: search for 1 or more neighbours")
    with NeighbourCache(folder) as cache:
        for done, (document, queries) in enumerate(corpus, start=1):
            cache.chunks(document.id, chunks_for(document)).search(queries, k)
            if progress:
                progress(done)


class NeighbourCache:
    """Searches each query of chunks once and stores the result in a folder. Use it as a context manager.

    Raises Busy where another process writes there, Damaged; a search raises Mismatch where its chunks or
    its k are not those of the stored rows.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lease = FileLease(folder / "writer.lock")
        self._writer: ViewWriter | None = None
        self._known: dict[int, Ids] = {}
        self._uncommitted = 0

    def __enter__(self) -> Self:
        with plain_errors(self._folder):
            (self._folder / NEIGHBOURS.name).mkdir(parents=True, exist_ok=True)
        self._lease.__enter__()
        try:
            stored = ChunkNeighbours.open(NEIGHBOURS, self._folder)
            if stored is not None:
                self._known, self._writer = stored.rows, ViewWriter(self._folder, stored.metadata)
        except BaseException:
            self._lease.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        try:
            if self._writer is not None:
                if kind is None:
                    self._writer.commit()
                self._writer.close()
        finally:
            self._lease.__exit__(None, None, None)

    def chunks(self, document: str, chunks: Chunks) -> Chunks:
        """Return these chunks, which `document` may read, whose searches are stored here."""
        return _CachedChunks(chunks, lambda queries, k: self._found(document, chunks, queries, k))

    def _found(self, document: str, chunks: Chunks, queries: Sequence[str], k: int) -> Ids:
        if self._writer is None:
            metadata = ViewMetadata("", "", chunks.fingerprint, k, kind=NEIGHBOURS)
            self._writer = ViewWriter(self._folder, empty_view(metadata))
        _check_same(self._folder, self._writer.metadata, chunks.fingerprint, k)
        if (key := _key(document, queries)) not in self._known:
            self._known[key] = found = np.asarray(chunks.search(queries, k).numpy())
            self._writer.append({"ids": found, "documents": np.array([(key, len(queries))], _DOCUMENT)})
            self._uncommitted += len(queries)
            if self._uncommitted >= _COMMIT:
                self._writer.commit()
                self._uncommitted = 0
        return self._known[key]


@dataclass(frozen=True)
class _CachedChunks:
    """Chunks whose search gives what is stored, and otherwise searches."""

    inner: Chunks
    found: Callable[[Sequence[str], int], Ids]

    @property
    def length(self) -> int:
        return self.inner.length

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    def search(self, queries: Sequence[str], k: int) -> "Tensor":
        import torch

        return torch.from_numpy(np.array(self.found(queries, k)))

    def sample(self, rows: int, k: int, generator: np.random.Generator) -> "Tensor":
        return self.inner.sample(rows, k, generator)

    def tokens(self, ids: "Tensor") -> "tuple[Tensor, Tensor]":
        return self.inner.tokens(ids)

    def without(self, passages: Sequence[int]) -> Chunks:
        return self.inner.without(passages)


def queries_of(document: Document, encode: Encodes, length: int) -> list[str]:
    """Return the texts of a document's full chunks, of `length` tokens: the queries of a search."""
    columns, _ = cut(encode, document.id, document.group, [(0, document.text)], length)
    return [columns.text(place) for place in np.flatnonzero(columns.records["tokens"] == length).tolist()]


def _key(document: str, queries: Sequence[str]) -> int:
    return stable_hash(document, *queries)


def _check_same(folder: Path, metadata: ViewMetadata, fingerprint: str, k: int | None = None) -> None:
    if metadata.fingerprint != fingerprint:
        raise Mismatch(
            f"{folder}: its neighbours are of chunks {metadata.fingerprint}, not of {fingerprint}, for the "
            f"store has changed; {_ANEW}"
        )
    if k not in (None, metadata.dimensions):
        raise Mismatch(f"{folder}: holds {metadata.dimensions} neighbours each, not {k}; {_ANEW}")
