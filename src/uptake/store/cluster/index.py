"""Searching a store whose shards are actors: ask all, merge, and say what share has answered."""

import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from uptake.errors import Incomplete
from uptake.store.bases import Floats
from uptake.store.cluster import Cluster
from uptake.store.cluster.connect import connect
from uptake.store.index import Ranked
from uptake.store.table import Ids, Table

_INLINE = 100_000  # bytes of queries that Ray sends with each call; more are put down once for all


class ClusterIndex:
    """The `Index` of one table version whose rows lie in shards.

    Starts the shards that are not running yet; they end with the program that started them. What
    asks them raises Incomplete where one does not answer and the cluster's policy does not bear it.
    """

    def __init__(self, table: Table, store: Path, uid: str, cluster: Cluster) -> None:
        self._ray = connect(cluster.address)
        from uptake.store.cluster.replicas import Replicas
        from uptake.store.cluster.shard import Place

        self._cluster = cluster
        self._store = store
        self._table = table
        self._version = table.version
        self._ready = False
        starts = range(0, table.slots, cluster.rows)
        places = [Place(str(store), uid, first, first + cluster.rows) for first in starts]
        self._shards = [Replicas(place, cluster) for place in places]

    @cached_property
    def _count(self) -> int:
        return self._table.count

    def prepare(self) -> None:
        """Let every shard start and open this version."""
        self._answers("about")  # that it runs at all: what follows may take as long as making an index
        self._answers("open", self._version, patient=False)
        self._ready = True

    def search(self, queries: Floats, k: int) -> list[Ranked]:
        """Return for each query the k nearest of all shards, as `Index` says."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        k = min(k, self._count)
        if k <= 0 or not len(queries):
            return [Ranked(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
        if not self._ready:
            self.prepare()
        sent = self._ray.put(queries) if queries.nbytes > _INLINE else queries
        answers = self._answers("search", self._version, sent, k)
        coverage = sum(answer.rows for answer in answers) / self._count
        return merge([answer.ids for answer in answers], [answer.scores for answer in answers], k, coverage)

    def forget(self) -> None:
        """Let every shard delete what it has cached of the store, so that purged text leaves no vector."""
        self._answers("forget", patient=False)

    def _answers(self, method: str, *arguments: Any, patient: bool = True) -> list[Any]:
        """Return the shards' answers in order, without those that are missing where the policy bears that."""
        from uptake.store.cluster.replicas import SILENT

        end = time.monotonic() + self._cluster.patience if patient else None
        asked = [shard.ask(method, arguments) for shard in self._shards]
        answers = [
            shard.answer(each, method, arguments, end)
            for shard, each in zip(self._shards, asked, strict=True)
        ]
        silent = [s.rows for s, answer in zip(self._shards, answers, strict=True) if answer is SILENT]
        if silent and (self._cluster.missing != "partial" or len(silent) == len(answers)):
            raise Incomplete(
                f"{self._store}: {len(silent)} of {len(answers)} shards did not answer (rows "
                f"{', '.join(silent[:3])}); see `uptake cluster status`, or open it with another policy"
            )
        return [answer for answer in answers if answer is not SILENT]


def merge(ids: Sequence[Ids], scores: Sequence[Floats], k: int, coverage: float) -> list[Ranked]:
    """Return each query's k best of several rankings; `ids` and `scores` hold a [queries, any] array each.

    Equal scores come in the order of their ids, as on one machine.
    """
    every, all_scores = np.concatenate(ids, axis=1), np.concatenate(scores, axis=1)
    order = np.lexsort((every, -all_scores), axis=1)[:, :k]
    best = np.take_along_axis(every, order, axis=1), np.take_along_axis(all_scores, order, axis=1)
    return [Ranked(*pair, coverage) for pair in zip(*best, strict=True)]
