"""The actor that searches one shard: a range of rows of one store, at the version each request names."""

import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.util import metrics

from uptake.errors import Mismatch
from uptake.store.cluster.wire import Answer, from_pieces, to_bytes
from uptake.store.inventory import TABLE
from uptake.store.layout import Layout
from uptake.store.passages.index import VectorIndex, open_index
from uptake.store.passages.index_cache import delete_base_indexes
from uptake.store.passages.table import Table
from uptake.store.remote.objects import Location
from uptake.text.types import stable_hash

_OPEN = 4  # versions open at a time: readers of older ones may still be at work
_MINUTE = 60.0  # seconds over which queries a second are counted

STATUS = "status"  # the concurrency group that answers status requests while a search runs


@dataclass(frozen=True)
class Place:
    """Which rows of which store: from the `first` up to the `stop`-th written."""

    store: Location
    uid: str
    first: int
    stop: int

    @property
    def name(self) -> str:
        """The store's uid and where it lies: a copy that lies elsewhere has the same uid."""
        return f"{self.uid}@{stable_hash(str(self.store)):016x}"

    @property
    def rows(self) -> str:
        """The range, as people read it."""
        return f"{self.first}-{self.stop}"


class Shard:
    """Searches its rows; all of its state can be made again from the table."""

    def __init__(self, place: Place, replica: int) -> None:
        self._place = place
        self._open: dict[int, tuple[VectorIndex, int]] = {}
        self._queries = 0
        self._recent = deque[tuple[float, int]]()  # when, and how many
        self._seconds = 0.0
        self._since = time.time()
        tags = {"store": place.store.name, "rows": place.rows, "replica": str(replica)}
        self._counter = metrics.Counter(
            "uptake_shard_queries", "Queries that a shard has answered.", tuple(tags)
        )
        self._histogram = metrics.Histogram(
            "uptake_shard_search_seconds",
            "Time a shard takes for a batch of queries.",
            [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10],
            tuple(tags),
        )
        for each in (self._counter, self._histogram):
            each.set_default_tags(tags)

    def open(self, version: int) -> int:
        """Make a version ready to be searched; return how many of its passages lie here."""
        return self._at(version)[1]

    def search(self, version: int, k: int, *queries: bytes) -> bytes:
        """Return the k nearest of this shard to each query, at this version; see wire.py for the bytes."""
        index, rows = self._at(version)
        vectors = from_pieces(queries, index.base.vectors.shape[1])
        start = time.perf_counter()
        found = index.search(vectors, k)
        spent = time.perf_counter() - start
        self._queries += len(vectors)
        now = time.time()
        self._recent.append((now, len(vectors)))
        while self._recent[0][0] < now - _MINUTE:
            self._recent.popleft()
        self._seconds += spent
        self._counter.inc(len(vectors))
        self._histogram.observe(spent)
        ids = np.concatenate([each.ids for each in found]).reshape(len(found), -1)
        scores = np.concatenate([each.scores for each in found]).reshape(ids.shape)
        return to_bytes(Answer(rows, ids, scores, spent))

    def forget(self) -> None:
        """Close every version, and delete this machine's cached indexes of the store."""
        self._open.clear()
        delete_base_indexes(self._place.uid)

    @ray.method(concurrency_group=STATUS)
    def about(self) -> dict[str, Any]:
        """Return the figures that `uptake cluster status` shows of this shard, as plain data."""
        context, now = ray.get_runtime_context(), time.time()
        lately = sum(count for when, count in list(self._recent) if when >= now - _MINUTE)
        return {
            "store": str(self._place.store),
            "first": self._place.first,
            "stop": self._place.stop,
            "versions": {version: rows for version, (_, rows) in list(self._open.items())},
            "queries": self._queries,
            "queries_a_second": lately / min(_MINUTE, max(now - self._since, 1e-9)),
            "seconds_searching": self._seconds,
            "seconds_up": now - self._since,
            "node": context.get_node_id(),
            "pid": os.getpid(),
            **_memory(),
        }

    def _at(self, version: int) -> tuple[VectorIndex, int]:
        if version in self._open:
            # The version used last goes last: the first is the one to close.
            self._open[version] = self._open.pop(version)
        else:
            store = self._place.store
            layout = Layout.read(store)
            if layout.uid != self._place.uid:
                raise Mismatch(f"{store}: another store has taken its place; open it again")
            table = Table.open(store / TABLE, version, layout.uid).part(self._place.first, self._place.stop)
            metric = layout.views["passages"].metric
            last = next(reversed(self._open.values()), None)
            base = last[0].base if last else None
            index = open_index(table, layout.uid, metric=metric, kind=layout.index, threads=1, base=base)
            self._open[version] = index, table.count
            for old in list(self._open)[:-_OPEN]:
                del self._open[old]
        return self._open[version]


def _memory() -> dict[str, int]:
    """Return the bytes of this process's own memory, and those of mapped files, which can be freed."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # no Linux
        return {}
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
    return {"bytes_own": 1024 * kib["RssAnon"], "bytes_mapped": 1024 * kib["RssFile"]}
