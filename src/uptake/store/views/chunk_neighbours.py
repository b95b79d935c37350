"""Neighbours of a training corpus's chunks, found once, kept on disk and mapped.

FOLDER/neighbours/ holds a row of chunk ids for each query of each document, in commits that survive a
crash, and names the chunks they are of: those of a store that has changed since are refused.
They are found ahead (`find_neighbours`), or when whoever reads chunks first asks (`Remembered`).
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
from uptake.store.files import plain_errors
from uptake.store.passages.table import Ids
from uptake.store.remote.lease import FileLease
from uptake.store.views.growing import Growing, begin
from uptake.store.views.stored import About, Arrays, Kept, Kind
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
        found = self.rows.get(_key(document, queries))
        if found is None:
            raise BadInput(f"document {document!r}: nobody looked for its neighbours; look for them first")
        return found

    @cached_property
    def rows(self) -> dict[int, Ids]:
        """What was found, [queries, k] each, by document and queries."""
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
    """Look for the k nearest chunks of every query of every document, and keep them in `folder`.

    `chunks_for` gives the chunks that a document may read: a store's, under the leak filter that
    names the document (`Datastore.source`), so that none of its own is among them. An interrupted call
    is finished by calling again. `progress(done)` counts documents. Raises BadInput, Busy where another
    process looks, Mismatch where the chunks are not those of the rows that are there, Damaged.
    """
    if k < 1:
        raise BadInput(f"k = {k}: look for 1 or more neighbours")
    with Remembered(folder) as kept:
        for done, (document, queries) in enumerate(corpus, start=1):
            kept.chunks(document.id, chunks_for(document)).search(queries, k)
            if progress:
                progress(done)


class Remembered:
    """Searches of chunks that are made once: what was found lies in a folder. Use it as a context.

    Raises Busy where another process looks, Damaged; searching raises Mismatch where the chunks, or how
    many are asked for, are not those of the rows that are there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lease = FileLease(folder / "writer.lock")
        self._growing: Growing | None = None
        self._known: dict[int, Ids] = {}
        self._waiting = 0

    def __enter__(self) -> Self:
        with plain_errors(self._folder):
            (self._folder / NEIGHBOURS.name).mkdir(parents=True, exist_ok=True)
        self._lease.__enter__()
        try:
            kept = Neighbours.open(NEIGHBOURS, self._folder)
            if kept is not None:
                self._known, self._growing = kept.rows, Growing(self._folder, kept.about)
        except BaseException:
            self._lease.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        try:
            if self._growing is not None:
                if kind is None:
                    self._growing.commit()
                self._growing.close()
        finally:
            self._lease.__exit__(None, None, None)

    def chunks(self, document: str, chunks: Chunks) -> Chunks:
        """Return these chunks, which `document` may read, with a search that remembers."""
        return _Remembering(chunks, lambda queries, k: self._found(document, chunks, queries, k))

    def _found(self, document: str, chunks: Chunks, queries: Sequence[str], k: int) -> Ids:
        if self._growing is None:
            about = About("", "", chunks.fingerprint, k, kind=NEIGHBOURS)
            self._growing = Growing(self._folder, begin(about))
        _check_same(self._folder, self._growing.about, chunks.fingerprint, k)
        if (key := _key(document, queries)) not in self._known:
            self._known[key] = found = np.asarray(chunks.search(queries, k).numpy())
            self._growing.put({"ids": found, "documents": np.array([(key, len(queries))], _DOCUMENT)})
            self._waiting += len(queries)
            if self._waiting >= _COMMIT:
                self._growing.commit()
                self._waiting = 0
        return self._known[key]


@dataclass(frozen=True)
class _Remembering:
    """Chunks, but for how they are searched."""

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
