"""A FAISS index derived from a table: near vectors fast, for one version, and never the truth.

A base covers the rows of some version: their vectors, mapped from the disk, and for a large store
an inverted file with product quantisation over them. Rows that came later are searched exactly, or
by codes of the same kind where they are many; rows that went are passed over; once both exceed a
tenth, a new base is made. Every score is
computed from the exact vectors, whatever found the candidate, and a query's scores do not depend
on the others in its batch.
"""

import itertools
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import faiss
import numpy as np

from uptake.errors import BadInput
from uptake.store.passages.columns import Ids
from uptake.store.passages.index_cache import BaseIndex, Floats, IndexCache, distances, faiss_metric, nearest
from uptake.store.passages.table import Table

IndexKind = Literal["auto", "flat", "ivf"]
Metric = Literal["cosine", "ip", "l2"]

LARGE = 50_000  # rows from which "auto" takes an inverted file: below, an exact search is under 3 ms
FOLD = 0.1  # share of rows added and removed above which a new base index is made
_SLACK = 16  # candidates beyond those asked for, so that rounding in FAISS cannot decide who is among them
_RERANK = 4  # candidates a result, where they come from quantised vectors,
_CODED = 4096  # rows that came later from which they too are found by their codes
_LEAST = 384  # and never fewer than these: a deeper re-rank costs less than probing more lists;
_ROWS = 5000  # nor than one for so many rows: among ten million 384 held .91 of the ten nearest, 2,000 .97


class Ranked(NamedTuple):
    """Passage ids and scores, best first; `coverage` is the share of the store that was searched."""

    ids: Ids
    scores: Floats
    coverage: float = 1.0


class Index(Protocol):
    """Searches the vectors of one version: in this process, or on a cluster."""

    def prepare(self) -> None:
        """Make it ready: without this the first search does."""
        ...

    def search(self, queries: Floats, k: int) -> list[Ranked]:
        """Return for each query the k nearest, best first; fewer where the store ends.

        Scores are inner products, or negative squared distances under "l2".
        """
        ...


class VectorIndex:
    """Search over the vectors of one table version.

    `threads` is how many FAISS may use, None for its own choice.
    """

    def __init__(self, table: Table, base: BaseIndex, metric: Metric, threads: int | None) -> None:
        self.base = base
        self._metric = faiss_metric(metric)
        self._threads = threads
        self._table = table
        self._removed = np.zeros(len(base.ids), dtype=bool)
        self._fresh_ids = table.ids[:0]
        self._count = table.count
        if not np.array_equal(base.ids, table.ids):
            places = table.positions(base.ids)
            self._removed = places < 0
            fresh = np.ones(len(table.ids), dtype=bool)
            fresh[places[places >= 0]] = False
            self._fresh_ids = table.ids[fresh]
        self._gone = int(self._removed.sum())

    @cached_property
    def _fresh(self) -> Floats:
        return self._table.vectors(self._fresh_ids)

    @cached_property
    def _fresh_codes(self) -> Any:
        """The rows that came after the base, quantised as those of the base are; None for few."""
        if len(self._fresh) < _CODED or not hasattr(self.base.ivf, "pq"):
            return None
        library: Any = faiss
        quantizer = self.base.ivf.pq
        codes = library.IndexPQFastScan(quantizer.d, quantizer.M, quantizer.nbits, self._metric)
        codes.pq, codes.is_trained = quantizer, True
        codes.add(self._fresh)
        return codes

    @property
    def drift(self) -> float:
        """Rows added and removed since the base index was made, as a share of its rows."""
        changed = len(self._fresh_ids) + self._gone
        return changed / max(len(self.base.ids), 1)

    def prepare(self) -> None:
        """Read the rows that came after the base."""
        _ = self._fresh_codes

    def search(self, queries: Floats, k: int) -> list[Ranked]:
        """Return for each query the k nearest, as `Index` says."""
        if self._threads:
            faiss.omp_set_num_threads(self._threads)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        k = min(k, self._count)
        if k <= 0 or not len(queries):
            return [Ranked(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
        old = self._live(queries, k)
        new = self._new(queries, k)
        return [
            self._ranked(query, old_places, new_places[new_places >= 0], k)
            for query, old_places, new_places in zip(queries, old, new, strict=True)
        ]

    def _live(self, queries: Floats, k: int) -> list[Ids]:
        """Return for each query the places of at least its k nearest rows of the base that still exist."""
        size = len(self.base.ids)
        wanted = min(k, size - self._gone)
        if not wanted:
            return [np.empty(0, np.int64)] * len(queries)
        # Deep searches leave the inverted file no advantage, and it could not fill them.
        exact = self.base.ivf is None or max(k * _RERANK, _LEAST) > size // 10
        fetch = wanted + _SLACK if exact else max(wanted * _RERANK, _LEAST, size // _ROWS)
        while True:
            places = self.base.candidates(queries, fetch, self._metric, exact)
            live = [row[row >= 0] for row in places]  # FAISS fills short answers with -1
            live = [row[~self._removed[row]] for row in live]
            if (fetch >= size and exact) or all(len(row) >= wanted for row in live):
                return live
            exact = exact or any((row < 0).any() for row in places) or fetch * 2 > size // 10
            fetch *= 2

    def _new(self, queries: Floats, k: int) -> Ids:
        """Return for each query the places of the k nearest rows that came after the base, and some more."""
        size = len(self._fresh)
        fetch = max(k * _RERANK, _LEAST)
        if self._fresh_codes is None or fetch > size // 10:
            return nearest(queries, self._fresh, min(k + _SLACK, size), self._metric)
        _, places = self._fresh_codes.search(queries, fetch)
        return np.asarray(places)

    def _ranked(self, query: Floats, old: Ids, new: Ids, k: int) -> Ranked:
        losses = distances(query, self.base.vectors, old, self._metric)
        if len(new):
            losses = np.concatenate([losses, distances(query, self._fresh, new, self._metric)])
        if self._metric != faiss.METRIC_L2:
            losses = -losses
        best = np.flatnonzero(
            losses <= np.partition(losses, k - 1)[k - 1]
        )  # more than k where some are equal
        if len(new):
            older = best[best < len(old)]
            ids = np.concatenate(
                [self.base.ids[old[older]], self._fresh_ids[new[best[len(older) :] - len(old)]]]
            )
        else:
            ids = self.base.ids[old[best]]
        order = np.lexsort((ids, losses[best]))[:k]  # equal scores come in a fixed order
        return Ranked(ids[order], -losses[best[order]])


def open_index(
    table: Table,
    uid: str,
    *,
    metric: Metric,
    kind: IndexKind = "auto",
    threads: int | None = None,
    base: BaseIndex | None = None,
) -> VectorIndex:
    """Return the index of this table version, from `base`, from the cache, or made anew.

    `uid` names the store in the cache: 32 hexadecimal digits. Warns where a cached base is damaged.
    """
    if kind not in ("auto", "flat", "ivf"):
        raise BadInput(f"index {kind!r}: use auto, flat or ivf")
    chosen = ("ivf" if table.count >= LARGE else "flat") if kind == "auto" else kind
    settings: dict[str, object] = {"metric": metric, "kind": chosen, "dimensions": table.dimensions}
    # An exact search reads all vectors for every query: there rounded ones would be widened each time.
    settings["numbers"] = table.precision if chosen == "ivf" else "float32"
    cache = IndexCache(uid, settings, table.label)
    for known in itertools.chain([base] if base else [], cache.bases(table.version)):
        index = VectorIndex(table, known, metric, threads)
        if index.drift <= FOLD:
            return index
    made = cache.make(table, threads)
    return VectorIndex(table, made, metric, threads)
