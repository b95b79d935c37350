"""Who ranks the chunks of one corpus: by words, by vectors, or by both. What is masked is never ranked."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from uptake.text.chunks.bm25 import Bm25
from uptake.text.chunks.cutting import Columns, Ids, Mask
from uptake.text.overlap import Hashes
from uptake.text.terms import query_hashes
from uptake.text.types import Embedder

_FUSION = 60  # the customary constant of reciprocal rank fusion
_FUSED = 128  # how many of either list are read, at the least


class Finder(Protocol):
    """Who ranks the chunks of one corpus."""

    def read(self, queries: Sequence[str]) -> Sequence[Any]:
        """Return of each query what `near` needs to know."""
        ...

    def near(self, queries: Sequence[Any], k: int, allowed: Mask) -> Ids:
        """Return for each query its k nearest places of those `allowed`, nearest first, padded with -1."""
        ...


class ByWords:
    """Chunks by the words they share with the query (BM25); equally good ones come in the order of ids.

    Only the `live` ones count, so that what is gone leaves no trace in anybody's score.
    """

    def __init__(self, columns: Columns, live: Mask) -> None:
        self._ids, sizes = columns.records["id"], columns.records["words"]
        words = columns.words if live.all() else columns.words[np.repeat(live, sizes)]
        self._bm25 = Bm25(words, np.where(live, sizes, 0))

    def read(self, queries: Sequence[str]) -> Sequence[Hashes]:
        return [query_hashes(query) for query in queries]

    def near(self, queries: Sequence[Hashes], k: int, allowed: Mask) -> Ids:
        return stacked([self._near(query, k, allowed) for query in queries], k)

    def _near(self, query: Hashes, k: int, allowed: Mask) -> Ids:
        scores = np.where(allowed, self._bm25.scores(query), 0.0)
        return best(scores, self._ids, np.flatnonzero(scores), k)


class ByVectors:
    """Chunks by the squared distance of their vectors to the query's, exactly."""

    def __init__(self, columns: Columns, embedder: Embedder) -> None:
        self._ids = columns.records["id"]
        self._embedder = embedder
        self._vectors = self._embed([columns.text(place) for place in range(len(self._ids))])

    def read(self, queries: Sequence[str]) -> Sequence[NDArray[np.float32]]:
        return list(self._embed(queries))

    def near(self, queries: Sequence[NDArray[np.float32]], k: int, allowed: Mask) -> Ids:
        free = np.flatnonzero(allowed)
        found = []
        for vector in queries:
            off = self._vectors[free] - vector
            scores = np.full(len(allowed), -np.inf)
            scores[free] = -(off * off).sum(-1)
            found.append(best(scores, self._ids, free, k))
        return stacked(found, k)

    def _embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self._embedder.embed(texts) if texts else np.empty((0, self._embedder.dimensions), np.float32)


class ByBoth:
    """The merger of two rankings by the sum of 1 / (60 + rank), rank counting from 1."""

    def __init__(self, one: Finder, other: Finder, columns: Columns) -> None:
        self._finders = (one, other)
        self._ids = columns.records["id"]

    def read(self, queries: Sequence[str]) -> Sequence[tuple[Any, ...]]:
        return list(zip(*(finder.read(queries) for finder in self._finders), strict=True))

    def near(self, queries: Sequence[tuple[Any, ...]], k: int, allowed: Mask) -> Ids:
        depth = max(k, _FUSED)
        searches = zip(self._finders, zip(*queries, strict=True), strict=True) if queries else ()
        lists = [finder.near(own, depth, allowed) for finder, own in searches]
        return stacked([self._fused(rows, k, len(allowed)) for rows in zip(*lists, strict=True)], k)

    def _fused(self, rows: Sequence[Ids], k: int, count: int) -> Ids:
        scores = np.zeros(count)
        for row in rows:
            found = row[row >= 0]
            scores[found] += 1 / (_FUSION + 1 + np.arange(len(found)))
        return best(scores, self._ids, np.flatnonzero(scores), k)


def best(scores: NDArray[np.floating], ids: Ids, places: Ids, k: int) -> Ids:
    """Return the at most k of `places` with the highest scores, best first, equal ones by their ids."""
    if len(places) > k > 0:
        edge = np.partition(scores[places], len(places) - k)[len(places) - k]
        places = places[scores[places] >= edge]  # more than k where some are equal
    return places[np.lexsort((ids[places], -scores[places]))[:k]]


def stacked(rows: Sequence[Ids], k: int) -> Ids:
    """Return rows of at most k places as [rows, k], padded with -1."""
    found = np.full((len(rows), k), -1, np.int64)
    for row, places in zip(found, rows, strict=True):
        row[: len(places)] = places
    return found
