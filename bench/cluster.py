"""Searching by shards on Ray beside one process and bare FAISS: latency, fan-out, bytes, memory.

The vectors are made up (clusters in 48 of 384 dimensions) and stored in a real Datastore whose encoder
only looks them up. For each number of shards one process, bare FAISS and a cluster on this machine
answer the same queries in turns. The fan-out's own cost is a search's time less the slowest shard's;
it is held against a call of the same actors that does nothing, against one that does nothing but
carry the same bytes there and back, along with the call or, to compare, through Ray's object store,
and against one that carries them and searches in between, and neither counts nor merges anything: what
that takes beside the slowest search is Ray's and the machine's, and the least that a fan-out can cost.
Bytes are those of the machine's loopback interface while queries are asked, less what passes there
meanwhile without; run it where nobody else uses that interface:

    export OMP_NUM_THREADS=1 RAY_worker_niceness=0
    unshare -n sh -c 'ip link set lo up; python bench/cluster.py --out bench/cluster.json'

With --store the store is kept. Each number of shards is written when it is measured, and left out
where OUT has it.
"""

import argparse
import json
import os
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import ray
from numpy.typing import NDArray

from uptake.store.cluster import Cluster, replicas
from uptake.store.cluster.connect import connect
from uptake.store.cluster.index import ClusterIndex, merge
from uptake.store.cluster.shard import Shard
from uptake.store.cluster.wire import from_bytes, from_pieces, to_pieces
from uptake.store.datastore import Datastore
from uptake.store.passages import index as index_module
from uptake.store.passages.index import IndexKind, VectorIndex
from uptake.store.passages.index_cache import nearest
from uptake.text.types import Document

Floats = NDArray[np.float32]

DIMENSIONS, K = 384, 20
BATCHES = {1: 200, 32: 40, 256: 16}  # queries side by side: calls
TURN = 4  # calls of one side before the next has its turn
TEXT = 1024  # bytes of a passage, as long as they are by default


class LookUp:
    """An encoder that knows its texts by the number they begin with."""

    spec, dtype, dimensions, fingerprint = "", "float32", DIMENSIONS, "bench-look-up"

    def __init__(self, rows: Floats) -> None:
        self._rows = rows

    def embed(self, texts: Sequence[str]) -> Floats:
        return np.asarray(self._rows[[int(text.partition(" ")[0]) for text in texts]])


class Measured(Shard):
    """A shard that also takes calls in which it does nothing, or nothing but search."""

    def carry(self, answer: int, *sent: bytes) -> bytes:
        return bytes(answer)

    def work(self, answer: int, version: int, *sent: bytes) -> bytes:
        """Search, and return how many seconds that took, in as many bytes as an answer has."""
        index, _ = self._open[version]
        queries = from_pieces(sent, DIMENSIONS)
        start = time.perf_counter()
        index.search(queries, K)
        return struct.pack("<d", time.perf_counter() - start) + bytes(answer - 8)


def vectors(count: int, seed: int) -> Floats:
    """Return rows of length one: 1,000 clusters in 48 dimensions, turned into 384."""
    basis = np.random.default_rng(0).standard_normal((48, DIMENSIONS)).astype(np.float32)
    centres = np.random.default_rng(1).standard_normal((1000, 48)).astype(np.float32)
    random = np.random.default_rng(seed)
    rows = centres[random.integers(0, 1000, count)]
    rows = (rows + 0.5 * random.standard_normal((count, 48), dtype=np.float32)) @ basis
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


class Side:
    """One kind of search: the milliseconds of each call, by batch."""

    def __init__(self, call: Callable[[Floats], Any]) -> None:
        self.call = call
        self.told: dict[int, list[float]] = {batch: [] for batch in BATCHES}

    def turn(self, batch: int, queries: Floats) -> None:
        for first in range(0, TURN * batch, batch):
            self.told[batch].append(timed(self.call, queries[first : first + batch])[0])


class OnShards(Side):
    """A cluster's: also what the fan-out takes, an empty call, and one that carries the same bytes."""

    def __init__(self, store: Datastore) -> None:
        super().__init__(self._search)
        store.prepare()
        assert isinstance(store._snapshot.index, ClusterIndex)
        self.index = store._snapshot.index
        self.actors = [shard._actors[0] for shard in self.index._shards]
        self._turns = 0
        self._found: list[bytes] = []
        self.own: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        self.each: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        self.empty: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        self.carrying: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        self.by_store: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        self.working: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        # Milliseconds of the caller's own processor: of a search, of a call that searches, of merging.
        self.cpu: dict[str, dict[int, list[float]]] = {
            what: {batch: [] for batch in BATCHES} for what in ("search", "working_call", "merge")
        }

    def turn(self, batch: int, queries: Floats) -> None:
        back = self._back(batch)
        for first in range(0, TURN * batch, batch):
            asked = queries[first : first + batch]
            calls = [
                lambda: self.empty[batch].append(timed(self._carry, 0)[0]),
                lambda: self.carrying[batch].append(timed(self._carry, back, *to_pieces(asked))[0]),  # noqa: B023
                lambda: self.by_store[batch].append(timed(self._carry_by_store, back, asked)[0]),  # noqa: B023
                lambda: self.working[batch].append(self._work(batch, asked)),  # noqa: B023
                lambda: self._timed_search(batch, asked),  # noqa: B023
            ]
            self._turns += 1
            for place in range(len(calls)):  # none of them always comes first, when caches are cold
                calls[(place + self._turns) % len(calls)]()

    def _timed_search(self, batch: int, asked: Floats) -> None:
        started = time.process_time()
        spent, seconds = timed(self.call, asked)
        self.cpu["search"][batch].append(1e3 * (time.process_time() - started))
        started = time.process_time()
        answers = [from_bytes(answer) for answer in self._found]
        merge([answer.ids for answer in answers], [answer.scores for answer in answers], K, 1.0)
        self.cpu["merge"][batch].append(1e3 * (time.process_time() - started))
        self.told[batch].append(spent)
        self.own[batch].append(spent - 1e3 * max(seconds))
        self.each[batch] += [1e3 * one for one in seconds]

    def bytes_a_query(self, batch: int, queries: Floats, calls: int = 40) -> float:
        """Return what passes over the loopback interface for a query; what passes anyway is taken off."""
        start, before = time.perf_counter(), loopback()
        time.sleep(2)
        idle = (loopback() - before) / (time.perf_counter() - start)
        start, before = time.perf_counter(), loopback()
        for _ in range(calls):
            self.index.search(queries[:batch], K)
        return (loopback() - before - idle * (time.perf_counter() - start)) / calls / batch

    def counted_bytes_a_query(self, batch: int) -> float:
        return len(self.actors) * (4 * DIMENSIONS + self._back(batch) / batch)

    def _back(self, batch: int) -> int:
        return 32 + 12 * K * batch

    def _carry(self, answer: int, *sent: Any) -> None:
        ray.get([actor.carry.remote(answer, *sent) for actor in self.actors])

    def _carry_by_store(self, answer: int, queries: Floats) -> None:
        self._carry(answer, ray.put(queries.tobytes()))

    def _work(self, batch: int, queries: Floats) -> float:
        """Return what a call takes beside the slowest search, in milliseconds."""
        version, answer = self.index._version, self._back(batch)

        def work() -> list[bytes]:
            sent = self.index._sent(queries)
            return list(ray.get([actor.work.remote(answer, version, *sent) for actor in self.actors]))

        started = time.process_time()
        spent, told = timed(work)
        self.cpu["working_call"][batch].append(1e3 * (time.process_time() - started))
        return spent - 1e3 * float(max(struct.unpack_from("<d", each)[0] for each in told))

    def _search(self, queries: Floats) -> list[float]:
        seconds: list[float] = []
        answers = self.index._answers

        def heard(*arguments: Any, **how: Any) -> list[Any]:
            found = answers(*arguments, **how)
            seconds.extend(from_bytes(answer).seconds for answer in found)
            self._found = found
            return found

        self.index._answers = heard  # type: ignore[method-assign]
        try:
            self.index.search(queries, K)
        finally:
            self.index._answers = answers  # type: ignore[method-assign]
        return seconds


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Return the milliseconds of a call, and its result."""
    start = time.perf_counter()
    result = call(*arguments)
    return 1e3 * (time.perf_counter() - start), result


def loopback() -> int:
    """Return how many bytes have passed over the machine's loopback interface."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(line for line in lines if line.strip().startswith("lo:")).split(":")[1].split()[0])


def quantiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95, 99)}


def stored(path: Path, count: int, kind: IndexKind) -> tuple[Datastore, dict[str, Any]]:
    """Return the store, made where it is not there, and what making it took."""
    if path.exists():
        return Datastore.open(path, encoder=LookUp(np.empty((0, DIMENSIONS), np.float32)), threads=1), {}
    start = time.process_time()
    encoder = LookUp(vectors(count, 2))
    store = Datastore.create(path, encoder=encoder, retriever="dense", index=kind, threads=1)
    store.add(Document(f"row {row}", f"{row} text") for row in range(count))
    return store, {"storing_cpu_seconds": time.process_time() - start}


def faiss_alone(index: VectorIndex) -> Callable[[Floats], Any]:
    """Return a search by FAISS and nothing else, in the same lists and re-ranking as many."""
    if index.base.ivf is None:  # an IndexFlatIP takes up to twice as long
        return lambda queries: nearest(queries, index.base.vectors, K, faiss.METRIC_INNER_PRODUCT)
    flat = faiss.IndexFlatIP(DIMENSIONS)
    flat.add(np.ascontiguousarray(index.base.vectors))
    library: Any = faiss
    refined, depth = library.IndexRefine(index.base.ivf, flat), index_module._LEAST
    wide = library.IndexRefineSearchParameters(k_factor=depth / K)
    return lambda queries: refined.search(queries, K, params=wide)[1]


def measured(
    store: Datastore, alone: VectorIndex, bare: Callable[[Floats], Any], shards: int
) -> dict[str, Any]:
    """Ask one process, bare FAISS and so many shards the same queries in turns."""
    queries = vectors(TURN * max(BATCHES), 3)
    cluster = Cluster("local", rows=-(-store.count // shards), cpus=0)
    told: dict[str, Any] = {"load": os.getloadavg()[0]}
    start = time.perf_counter()
    far = OnShards(Datastore.open(store.path, encoder=store._encoding.encoder, cluster=cluster))
    told["starting_seconds"] = time.perf_counter() - start
    one = Side(lambda asked: alone.search(asked, K))
    sides = {"one process": one, "bare FAISS": Side(bare), f"{shards} shards": far}
    few = queries[:50]
    exact = alone.base.ids[nearest(few, alone.base.vectors, K, faiss.METRIC_INNER_PRODUCT)]
    ids = {
        "one process": [each.ids for each in alone.search(few, K)],
        "bare FAISS": list(alone.base.ids[bare(few)]),
        f"{shards} shards": [each.ids for each in far.index.search(few, K)],
    }
    told["recall"] = {
        name: float(np.mean([np.isin(mine, best).mean() for mine, best in zip(each, exact, strict=True)]))
        for name, each in ids.items()
    }
    for batch, calls in BATCHES.items():
        for _ in range(calls // TURN):
            for side in sides.values():
                side.turn(batch, queries)
    told["latency_ms"] = {
        name: {str(batch): quantiles(values) for batch, values in side.told.items()}
        for name, side in sides.items()
    }
    kinds = {"fan_out": far.own, "empty_call": far.empty, "carrying_call": far.carrying}
    kinds["working_call"] = far.working
    for name, by_batch in (kinds | {"carrying_call_through_the_object_store": far.by_store}).items():
        told[f"{name}_ms"] = {str(batch): quantiles(values) for batch, values in by_batch.items()}
    for name, by_batch in (("empty", far.empty), ("carrying", far.carrying), ("working", far.working)):
        told[f"fan_out_to_{name}"] = {
            str(batch): float(np.median(far.own[batch]) / np.median(by_batch[batch])) for batch in BATCHES
        }
    told["caller_cpu_ms"] = {
        what: {str(batch): round(float(np.median(values)), 3) for batch, values in by_batch.items()}
        for what, by_batch in far.cpu.items()
    }
    told["bytes_a_query"] = {str(batch): far.bytes_a_query(batch, queries) for batch in BATCHES}
    told["counted_bytes_a_query"] = {str(batch): far.counted_bytes_a_query(batch) for batch in BATCHES}
    told["counted_bytes_with_texts_from_every_shard"] = shards * (4 * DIMENSIONS + K * TEXT)
    abouts = ray.get([actor.about.remote() for actor in far.actors])
    for what in ("own", "mapped"):
        told[f"mib_{what}_a_shard"] = [round(about[f"bytes_{what}"] / 2**20, 1) for about in abouts]
    told["shard_ms"] = {str(batch): [round(one, 4) for one in values] for batch, values in far.each.items()}
    told["load_at_the_end"] = os.getloadavg()[0]
    return told


def show(shards: str, told: dict[str, Any]) -> None:
    print(f"{'side':12} {'batch':>5} {'p50':>8} {'p95':>8} {'p99':>8}")
    for name, by_batch in told["latency_ms"].items():
        for batch, found in by_batch.items():
            print(f"{name:12} {batch:>5} " + " ".join(f"{found[f'p{q}']:8.2f}" for q in (50, 95, 99)))
    for batch in map(str, BATCHES):
        print(
            f"{shards} shards, batch {batch}: fan-out {told['fan_out_ms'][batch]['p50']:.2f} ms, "
            f"{told['fan_out_to_empty'][batch]:.2f} times an empty call, "
            f"{told['fan_out_to_carrying'][batch]:.2f} times one with the same bytes, "
            f"{told['fan_out_to_working'][batch]:.2f} times one that searches too; "
            f"{told['bytes_a_query'][batch]:,.0f} bytes a query, "
            f"{told['counted_bytes_a_query'][batch]:,.0f} counted"
        )
    shown = ("caller_cpu_ms", "recall", "mib_own_a_shard", "mib_mapped_a_shard", "load", "load_at_the_end")
    print(json.dumps({name: told[name] for name in shown}), flush=True)


def run(arguments: argparse.Namespace, folder: Path) -> None:
    os.environ["UPTAKE_CACHE"] = str(folder / "cache")
    for batch in set(BATCHES).difference(arguments.batches):
        del BATCHES[batch]
    told = {"rows": arguments.rows, "index": arguments.index, "dimensions": DIMENSIONS, "k": K, "shards": {}}
    if arguments.out and arguments.out.exists():
        told = json.loads(arguments.out.read_text())
    store, making = stored(folder / "store", arguments.rows, arguments.index)
    start = time.process_time()
    store.prepare()
    alone = store._snapshot.index
    assert isinstance(alone, VectorIndex)
    if making:
        told |= making | {"indexing_cpu_seconds": time.process_time() - start}
    connect("local")
    setattr(replicas, "Shard", Measured)  # noqa: B010
    bare = faiss_alone(alone)
    for shards in map(str, arguments.shards):
        if shards not in told["shards"]:
            told["shards"][shards] = measured(store, alone, bare, int(shards))
            show(shards, told["shards"][shards])
            if arguments.out:
                arguments.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--index", choices=("flat", "ivf"), default="ivf")
    parser.add_argument("--shards", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument(
        "--batches", type=int, nargs="*", choices=BATCHES, default=list(BATCHES), help="queries at once"
    )
    parser.add_argument(
        "--store", type=Path, help="a folder that keeps the store and its indexes; else a temporary one"
    )
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        run(given, given.store or Path(made))
