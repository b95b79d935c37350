"""Searching by shards on Ray beside one process: latency, what the fan-out costs, bytes moved, memory.

The vectors are made up (clusters in 48 of 384 dimensions) and kept in a real Datastore whose encoder
only looks them up. Every side answers the same queries in turns of the same run: one process, and a
cluster of one shard and of four on this machine. The fan-out's own cost is a search's time less the
slowest shard's; it is held against a call of the same actors that does nothing.

    OMP_NUM_THREADS=1 python bench/cluster.py --out bench/cluster.json
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uptake.store.cluster import Cluster
from uptake.store.cluster.connect import connect
from uptake.store.cluster.index import ClusterIndex
from uptake.store.datastore import Datastore
from uptake.store.index import Kind
from uptake.text import Document

Floats = NDArray[np.float32]

DIMENSIONS, K = 384, 20
BATCHES = {1: 200, 32: 40, 256: 12}  # queries side by side: calls
TURN = 4  # calls of one side before the next has its turn
TEXT = 1024  # bytes of a passage, as long as they are by default


class LookUp:
    """An encoder that knows its texts by the number they begin with."""

    spec, dtype, dimensions, fingerprint = "", "float32", DIMENSIONS, "bench-look-up"

    def __init__(self, rows: Floats) -> None:
        self._rows = rows

    def embed(self, texts: Sequence[str]) -> Floats:
        return np.asarray(self._rows[[int(text.partition(" ")[0]) for text in texts]])


def vectors(count: int, seed: int) -> Floats:
    """Return rows of length one: 1,000 clusters in 48 dimensions, turned into 384."""
    basis = np.random.default_rng(0).standard_normal((48, DIMENSIONS)).astype(np.float32)
    centres = np.random.default_rng(1).standard_normal((1000, 48)).astype(np.float32)
    random = np.random.default_rng(seed)
    rows = centres[random.integers(0, 1000, count)]
    rows = (rows + 0.5 * random.standard_normal((count, 48), dtype=np.float32)) @ basis
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


class Side:
    """One way of searching: the milliseconds of each call, by batch."""

    def __init__(self, call: Callable[[Floats], Any]) -> None:
        self.call = call
        self.told: dict[int, list[float]] = {batch: [] for batch in BATCHES}

    def turn(self, batch: int, queries: Floats) -> None:
        for first in range(0, TURN * batch, batch):
            start = time.perf_counter()
            self.call(queries[first : first + batch])
            self.told[batch].append(1e3 * (time.perf_counter() - start))


class OnShards(Side):
    """A cluster's: also what an empty call takes, and what the fan-out does."""

    def __init__(self, store: Datastore) -> None:
        super().__init__(self._search)
        store.prepare()
        assert isinstance(store._snapshot.index, ClusterIndex)
        self.index = store._snapshot.index
        self.shards = len(self.index._shards)
        self._slowest = 0.0
        self.own: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        self.each: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        self.empty: list[float] = []

    def turn(self, batch: int, queries: Floats) -> None:
        for first in range(0, TURN * batch, batch):
            start = time.perf_counter()
            self.index._answers("open", self.index._version)
            self.empty.append(1e3 * (time.perf_counter() - start))
            start = time.perf_counter()
            seconds = self.call(queries[first : first + batch])
            spent = time.perf_counter() - start
            self.told[batch].append(1e3 * spent)
            self.own[batch].append(1e3 * (spent - max(seconds)))
            self.each[batch] += [1e3 * one for one in seconds]

    def _search(self, queries: Floats) -> list[float]:
        seconds: list[float] = []
        answers = self.index._answers

        def heard(*arguments: Any, **how: Any) -> list[Any]:
            found = answers(*arguments, **how)
            seconds.extend(answer.seconds for answer in found)
            return found

        self.index._answers = heard  # type: ignore[method-assign]
        try:
            self.index.search(queries, K)
        finally:
            self.index._answers = answers  # type: ignore[method-assign]
        return seconds


def quantiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95, 99)}


def run(count: int, kind: Kind, folder: Path) -> dict[str, Any]:
    rows, queries = vectors(count, 2), vectors(TURN * max(BATCHES), 3)
    encoder = LookUp(rows)
    start = time.process_time()
    store = Datastore.create(folder / "store", encoder=encoder, retriever="dense", index=kind, threads=1)
    store.add(Document(f"row {row}", f"{row} text") for row in range(count))
    told: dict[str, Any] = {
        "rows": count,
        "index": kind,
        "dimensions": DIMENSIONS,
        "k": K,
        "load": os.getloadavg()[0],
    }
    told["storing_cpu_seconds"] = time.process_time() - start
    start = time.process_time()
    store.prepare()
    told["indexing_cpu_seconds"] = time.process_time() - start
    ray = connect("local")
    sides: dict[str, Side] = {"one process": Side(lambda asked: store._snapshot.index.search(asked, K))}
    for shards in (1, 4):
        cluster = Cluster("local", rows=-(-count // shards), cpus=0)
        start = time.perf_counter()
        sides[f"{shards} shards"] = OnShards(Datastore.open(store.path, encoder=encoder, cluster=cluster))
        told[f"starting_{shards}_shards_seconds"] = time.perf_counter() - start
    exact = np.argsort(-queries[:50] @ rows.T, axis=1)[:, :K]
    places = {int(key): row for row, key in enumerate(store._table.ids)}
    for name, side in sides.items():
        index = side.index if isinstance(side, OnShards) else store._snapshot.index
        found = [[places[key] for key in one.ids.tolist()] for one in index.search(queries[:50], K)]
        shares = [len(set(a) & set(b)) / K for a, b in zip(found, exact.tolist(), strict=True)]
        told.setdefault("recall", {})[name] = float(np.mean(shares))
    for batch, calls in BATCHES.items():
        for _ in range(calls // TURN):
            for side in sides.values():
                side.turn(batch, queries)
    told["latency_ms"] = {
        name: {str(batch): quantiles(values) for batch, values in side.told.items()}
        for name, side in sides.items()
    }
    for name, side in sides.items():
        if isinstance(side, OnShards):
            empty = quantiles(side.empty)
            abouts = ray.get([shard._actors[0].about.remote() for shard in side.index._shards])
            told[name] = {
                "empty_call_ms": empty,
                "fan_out_ms": {str(batch): quantiles(values) for batch, values in side.own.items()},
                "fan_out_to_empty": {
                    str(batch): float(np.median(values)) / empty["p50"] for batch, values in side.own.items()
                },
                "bytes_a_query": side.shards * (4 * DIMENSIONS + 12 * K) + K * TEXT,
                "bytes_a_query_with_texts_from_every_shard": side.shards * (4 * DIMENSIONS + K * TEXT),
                "mib_own_a_shard": max(about["bytes_own"] for about in abouts) / 2**20,
                "mib_mapped_a_shard": max(about["bytes_mapped"] for about in abouts) / 2**20,
                "shard_ms": {str(batch): values for batch, values in side.each.items()},
            }
    told["load_at_the_end"] = os.getloadavg()[0]
    return told


def show(told: dict[str, Any]) -> None:
    print(f"{'side':12} {'batch':>5} {'p50':>8} {'p95':>8} {'p99':>8}  fan-out / empty call")
    for name, by_batch in told["latency_ms"].items():
        for batch, found in by_batch.items():
            ratio = told.get(name, {}).get("fan_out_to_empty", {}).get(batch)
            figures = " ".join(f"{found[f'p{q}']:8.2f}" for q in (50, 95, 99))
            print(f"{name:12} {batch:>5} {figures}  {'' if ratio is None else f'{ratio:.2f}'}")
    print(json.dumps({name: told[name] for name in ("recall", "load", "load_at_the_end")}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--index", choices=("flat", "ivf"), default="ivf")
    parser.add_argument("--work", type=Path, default=None, help="where to put the store; a temporary folder")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as made:
        os.environ["UPTAKE_CACHE"] = f"{made}/cache"
        figures = run(arguments.rows, arguments.index, Path(made))
    show(figures)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
