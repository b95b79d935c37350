"""Searches a store whose shards are actors: sends queries to all, merges, gives the share that answered."""

import contextlib
import time
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from uptake.errors import Incomplete
from uptake.store.cluster import Cluster
from uptake.store.cluster.connect import connect
from uptake.store.cluster.wire import from_bytes, to_pieces
from uptake.store.passages.columns import Ids
from uptake.store.passages.index import Ranked
from uptake.store.passages.index_cache import Floats
from uptake.store.passages.table import Table
from uptake.store.remote.objects import Location

if TYPE_CHECKING:
    from uptake.store.cluster.replicas import ShardRequest

# Bytes of queries, counted once a shard, that go along with the calls. More are put down once, and
# fetched by each machine once. At 3 MB both take as long on idle cores (bench/cluster.py measures both); on
# busy ones what is fetched waits for the shards that search already.
_INLINE = 4_000_000


class ClusterIndex:
    """The `Index` of one table version whose rows lie in shards.

    Starts the shards that are not running yet; they end with the program that started them. What
    asks them raises Incomplete where one does not answer and the cluster's policy does not bear it.
    """

    def __init__(self, table: Table, store: Location, uid: str, cluster: Cluster) -> None:
        self._ray = connect(cluster.address)
        from uptake.store.cluster.hedging import Hedging
        from uptake.store.cluster.replicas import Replicas
        from uptake.store.cluster.shard import Place

        self.hedging = None if cluster.hedge is None else Hedging(cluster.hedge)
        self._cluster = cluster
        self._store = store
        self._table = table
        self._version = table.version
        self._ready = False
        starts = range(0, table.slots, cluster.rows)
        places = [Place(store, uid, first, first + cluster.rows) for first in starts]
        self._shards = [Replicas(place, self._version, cluster) for place in places]

    @cached_property
    def _count(self) -> int:
        return self._table.count

    def prepare(self) -> None:
        """Let every shard start and open this version: all its replicas, of which one is waited for."""
        # That it runs at all comes first: what follows may take as long as making an index.
        self._answers([shard.send_to_all("about", ()) for shard in self._shards], "about")
        self._answers([shard.open_all() for shard in self._shards], "open", (self._version,), patient=False)
        self._ready = True

    def search(self, queries: Floats, k: int) -> list[Ranked]:
        """Return for each query the k nearest of all shards, as `Index` says."""
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        k = min(k, self._count)
        if k <= 0 or not len(queries):
            return [Ranked(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
        if not self._ready:
            self.prepare()
        arguments = (self._version, k, *self._sent(queries))
        requests = [[shard.send("search", arguments)] for shard in self._shards]
        if self.hedging:
            self.hedging.hedge(self._shards, requests, "search", arguments, (len(queries).bit_length(), k))
        answers = [from_bytes(answer) for answer in self._answers(requests, "search", arguments)]
        coverage = sum(answer.rows for answer in answers) / self._count
        return merge([answer.ids for answer in answers], [answer.scores for answer in answers], k, coverage)

    def forget(self) -> None:
        """Let every shard delete what it has cached of the store, so that purged text leaves no vector."""
        for each in zip(*[shard.send_to_all("forget", ()) for shard in self._shards], strict=True):
            self._answers([[one] for one in each], "forget", patient=False)

    def _sent(self, queries: Floats) -> list[Any]:
        """Return the queries as arguments of a call."""
        if queries.nbytes * len(self._shards) > _INLINE:
            return [self._ray.put(queries.tobytes())]
        return to_pieces(queries)

    def _answers(
        self,
        requests: "list[list[ShardRequest]]",
        method: str,
        arguments: tuple[Any, ...] = (),
        patient: bool = True,
    ) -> list[Any]:
        """Return the shards' answers in order, without those that are missing where the policy bears that.

        `requests` are those under way, of which one a shard is answered at least.
        """
        from uptake.store.cluster.replicas import SILENT

        seconds = self._cluster.patience if patient else None
        end = None if seconds is None else time.monotonic() + seconds
        if all(len(each) == 1 for each in requests):  # and no error: the usual case, in one go
            with contextlib.suppress(self._ray.exceptions.RayError):
                return list(self._ray.get([one.request for (one,) in requests], timeout=seconds))
        answers = [
            shard.answer(each, method, arguments, end)
            for shard, each in zip(self._shards, requests, strict=True)
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
    order = np.argsort(-all_scores, axis=1)  # several times as fast as by two keys; ties are put right below
    sorted_scores = np.take_along_axis(all_scores, order[:, : k + 1], axis=1)
    equal = (sorted_scores[:, 1:] == sorted_scores[:, :-1]).any(axis=1)
    order[equal] = np.lexsort((every[equal], -all_scores[equal]), axis=1)
    order = order[:, :k]
    best = np.take_along_axis(every, order, axis=1), np.take_along_axis(all_scores, order, axis=1)
    return [Ranked(*pair, coverage) for pair in zip(*best, strict=True)]
