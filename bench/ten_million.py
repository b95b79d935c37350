"""Ten million vectors of 384 dimensions, stored as float16 and searched: recall, latency, memory, bytes.

    export OMP_NUM_THREADS=1 RAY_worker_niceness=0
    for phase in vectors check store index queries shards; do
        python bench/ten_million.py $phase --work WORK --out bench/ten_million.json
    done

Each phase goes on where it was interrupted, and adds to OUT. Vectors: half a million are real, the token
states of bench/token_states.py; the others lie between real ones. A made vector begins at a real one and
goes up to half of the way, by random shares, to two others of the same cell of a k-means with a cell
for 64 vectors, and is made of length one. So the cells, the directions in which they vary and how full each
one is are those of real text; within a cell ten million are denser than their source. `check` measures what
that does to recall: as many real vectors as made ones, under the same settings. Queries are real states of
text that no row was read from. Exact search reads the stored vectors, block by block.
"""

import argparse
import itertools
import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from index import LookUp, resident
from numpy.typing import NDArray
from token_states import DIMENSIONS, token_states

from uptake.store.cluster import Cluster
from uptake.store.datastore import Datastore
from uptake.store.files import sizes
from uptake.store.passages import index as index_module
from uptake.store.passages import writing
from uptake.store.passages.index import VectorIndex
from uptake.store.passages.index_cache import BaseIndex, nearest
from uptake.store.passages.lists import Groups, make_lists
from uptake.text.types import Document

Floats = NDArray[np.float32]

K = 10
REAL = 500_000
CELL = 64  # real vectors of a cell
BLOCK = 100_000  # rows made at a time, from a seed of their own
ADDED = 250_000  # rows of one `add`, which are one commit: an interruption loses at most these
QUERIES = 1000
JUDGED = 200  # of them, whose exact neighbours are searched
CHECKED = 200_000
SHARDS = 4


class Source:
    """Rows by their number: real ones first, then made ones."""

    def __init__(self, real: Floats, cells: NDArray[np.int64]) -> None:
        self._real, self._cells = real, cells
        self._order = np.argsort(cells, kind="stable")
        self._starts = np.searchsorted(cells[self._order], np.arange(cells.max() + 2))

    def rows(self, first: int, stop: int) -> Floats:
        """Return the rows of these numbers; both ends lie on blocks, or at the end of the real ones."""
        if stop <= len(self._real):
            return np.asarray(self._real[first:stop])
        random = np.random.default_rng(first)
        places = random.integers(0, len(self._real), stop - first)
        cells = self._cells[places]
        sizes_of = self._starts[cells + 1] - self._starts[cells]
        made = self._real[places]
        shares = random.uniform(0, 0.5, (2, len(places))).astype(np.float32)
        for share in shares / 2:
            others = self._order[self._starts[cells] + (random.random(len(places)) * sizes_of).astype(int)]
            made += share[:, None] * (self._real[others] - self._real[places])
        return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def source(shared: Path, work: Path, count: int = REAL, name: str = "cells") -> Source:
    real = np.asarray(token_states(shared, "train", REAL, work)[0][:count])
    path = work / f"{name}-{count}.npy"
    if not path.exists():
        np.save(path, Groups(real, count // CELL, faiss.METRIC_INNER_PRODUCT).assign(real))
    return Source(real, np.load(path))


def queries_of(shared: Path, work: Path) -> Floats:
    unseen, _ = token_states(shared, "test", 100_000, work)
    return np.asarray(unseen[np.sort(np.random.default_rng(0).permutation(len(unseen))[:QUERIES])])


def spent(work: Callable[[], Any]) -> dict[str, float]:
    """Return seconds, CPU seconds, and the most memory that this process has held so far, in MiB."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    told = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    return told | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


class Rows:
    """An encoder that knows a text by the number of its row, among those of one `add`."""

    spec, dtype, dimensions, fingerprint = "", "float32", DIMENSIONS, "bench-look-up"

    def __init__(self) -> None:
        self.first, self.rows = 0, np.empty((0, DIMENSIONS), np.float32)

    def embed(self, texts: Sequence[str]) -> Floats:
        return np.asarray(self.rows[[int(text.partition(" ")[0]) - self.first for text in texts]])


def store(arguments: argparse.Namespace, told: dict[str, Any]) -> None:
    """Store the rows, so many at a time; what is there already is not made again."""
    setattr(writing, "_BATCH", ADDED)  # noqa: B010
    encoder, made = Rows(), source(arguments.shared, arguments.work)
    path = arguments.work / "store"
    if path.exists():
        held = Datastore.open(path, encoder=encoder, threads=1)
    else:
        held = Datastore.create(path, encoder=encoder, retriever="dense", vectors="float16", threads=1)
    parts = told.setdefault("storing_parts", {})
    for first in range(held.count, arguments.vectors, ADDED):
        stop = min(first + ADDED, arguments.vectors)

        def add(first: int = first, stop: int = stop) -> None:
            cuts = itertools.pairwise([*range(first, stop, BLOCK // 2), stop])
            encoder.first, encoder.rows = first, np.concatenate([made.rows(*cut) for cut in cuts])
            held.add(Document(f"row {row}", f"{row} row") for row in range(first, stop))

        parts[str(first)] = spent(add)
        keep(arguments, told)
        print(f"{held.count:,} rows, {parts[str(first)]['cpu_seconds']:.1f} CPU s", flush=True)
    told["storing"] = summed(parts)
    told["table_bytes"] = sum(size for _, size in sizes(path))


def summed(parts: dict[str, dict[str, float]]) -> dict[str, float]:
    each = list(parts.values())
    told = {name: sum(one[name] for one in each) for name in ("seconds", "cpu_seconds")}
    return told | {"peak_mib": max(one["peak_mib"] for one in each)}


def keep(arguments: argparse.Namespace, told: dict[str, Any]) -> None:
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")


def vectors(arguments: argparse.Namespace, told: dict[str, Any]) -> None:
    told["making"] = spent(lambda: source(arguments.shared, arguments.work))
    queries_of(arguments.shared, arguments.work)


def check(arguments: argparse.Namespace, told: dict[str, Any]) -> None:
    """Search as many real vectors as made ones that come from a twentieth of them."""
    queries = queries_of(arguments.shared, arguments.work)
    real = np.asarray(token_states(arguments.shared, "train", REAL, arguments.work)[0][:CHECKED])
    few = source(arguments.shared, arguments.work, CHECKED // 20)
    parts = [few.rows(0, CHECKED // 20)] + [few.rows(n, n + CHECKED // 20) for n in range(1, 20)]
    for name, rows in (("real", real), ("made of a twentieth", np.concatenate(parts))):
        ivf = make_lists(rows.astype(np.float16), faiss.METRIC_INNER_PRODUCT, 1)
        best = faiss.knn(queries, rows, K, metric=faiss.METRIC_INNER_PRODUCT)[1]
        told.setdefault("check", {"vectors": CHECKED})[name] = {
            str(depth): shares(ivf.search(queries, depth)[1], best) for depth in (K, 96, index_module._LEAST)
        }
    print(json.dumps(told["check"], indent=1))


def shares(found: NDArray[np.int64], best: NDArray[np.int64]) -> float:
    """Return which share of the best is among those found."""
    return float(np.mean([np.isin(one, other).mean() for one, other in zip(best, found, strict=True)]))


def opened(arguments: argparse.Namespace, cluster: Cluster | None = None) -> Datastore:
    encoder = LookUp(np.empty((0, DIMENSIONS), np.float32), queries_of(arguments.shared, arguments.work))
    return Datastore.open(arguments.work / "store", encoder=encoder, threads=1, cluster=cluster)


def index(arguments: argparse.Namespace, told: dict[str, Any]) -> None:
    """Make the index of one process."""
    made = opened(arguments)
    told["indexing"] = spent(made.prepare)
    base = own_index(made).base
    told["index"] = {"lists": base.ivf.nlist, "probes": base.ivf.nprobe, "code_bytes": base.ivf.code_size}
    folder = arguments.work / "cache"
    told["index_bytes"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(json.dumps(told["indexing"] | told["index"]), flush=True)


def own_index(held: Datastore) -> VectorIndex:
    made = held._snapshot.index
    assert isinstance(made, VectorIndex)
    return made


def exact(base: BaseIndex, queries: Floats, path: Path) -> NDArray[np.int64]:
    """Return the nearest of all that is stored, by reading all of it once."""
    if not path.exists():
        np.save(path, nearest(queries, base.vectors, K, faiss.METRIC_INNER_PRODUCT))
    return np.asarray(np.load(path))


def drop_pages(*folders: Path) -> None:
    """Let the machine forget what it holds of these files in memory."""
    os.sync()
    for file in itertools.chain.from_iterable(folder.rglob("*") for folder in folders):
        if file.is_file():
            with file.open("rb") as handle:
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def quantiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values, q)), 3) for q in (50, 95, 99)}


def queries(arguments: argparse.Namespace, told: dict[str, Any]) -> None:
    """Open and search it in this process: warm, cold, and with fewer probes and fewer candidates."""
    asked = queries_of(arguments.shared, arguments.work)
    drop_pages(arguments.work / "cache", arguments.work / "store")  # what is mapped can not be let go
    before = resident()
    held = opened(arguments)
    told["opening"] = spent(held.prepare)
    opened_mib = resident()
    cold = answered(held, range(JUDGED, 2 * JUDGED))
    base = own_index(held).base
    best = exact(base, asked[:JUDGED], arguments.work / "exact.npy")
    answered(held, range(JUDGED))
    warm = answered(held, range(JUDGED))
    found = np.array([held.search([str(-1 - number)], K)[0].ids for number in range(JUDGED)])
    told["searching"] = {
        "recall": shares(found, base.ids[best]),
        "reranked": max(index_module._LEAST, len(base.ids) // index_module._ROWS),
        "warm_ms": quantiles(warm["ms"]),
        "warm_cpu_ms": warm["cpu_ms"],
        "cold_ms": quantiles(cold["ms"]),
        "each_warm_ms": [round(one, 3) for one in warm["ms"]],
        "each_cold_ms": [round(one, 3) for one in cold["ms"]],
    }
    searched = resident()
    told["memory_mib"] = {
        when: {name: each[name] - before[name] for name in each}
        for when, each in (("opened", opened_mib), ("searched", searched))
    }
    told["curve"] = []
    for probes in (base.ivf.nprobe // 4, base.ivf.nprobe // 2, base.ivf.nprobe):
        for depth in (96, 384, 1024, 2000):
            start = time.process_time()
            library: Any = faiss
            near = base.ivf.search(asked[:JUDGED], depth, params=library.SearchParametersIVF(nprobe=probes))[
                1
            ]
            spent_ms = 1e3 * (time.process_time() - start) / JUDGED
            told["curve"].append(
                {"probes": probes, "candidates": depth, "recall": shares(near, best), "cpu_ms": spent_ms}
            )
    print(json.dumps({name: told[name] for name in ("opening", "memory_mib", "curve")}, indent=1))
    print({name: each for name, each in told["searching"].items() if "each" not in name})


def answered(held: Datastore, numbers: range) -> dict[str, Any]:
    """Ask one query at a time; return the milliseconds of each and CPU milliseconds a query."""
    told: list[float] = []
    cpu = time.process_time()
    for number in numbers:
        start = time.perf_counter()
        held.search([str(-1 - number)], K)
        told.append(1e3 * (time.perf_counter() - start))
    return {"ms": told, "cpu_ms": 1e3 * (time.process_time() - cpu) / len(told)}


def shards(arguments: argparse.Namespace, told: dict[str, Any]) -> None:
    """Search it by shards on this machine; those that have no index yet make it, one after another."""
    import ray

    from uptake.store.cluster.index import ClusterIndex

    cluster = Cluster("local", rows=-(-arguments.vectors // SHARDS), cpus=0)
    start = time.perf_counter()
    far = opened(arguments, cluster)
    far.prepare()
    told["shards"] = {"shards": SHARDS, "preparing_seconds": time.perf_counter() - start}
    best = np.load(arguments.work / "exact.npy")
    ids = far._table.ids
    answered(far, range(JUDGED))
    warm = answered(far, range(JUDGED))
    found = np.array([far.search([str(-1 - number)], K)[0].ids for number in range(JUDGED)])
    made = far._snapshot.index
    assert isinstance(made, ClusterIndex)
    abouts = ray.get([shard._actors[0].about.remote() for shard in made._shards])
    told["shards"] |= {
        "recall": shares(found, ids[best]),
        "warm_ms": quantiles(warm["ms"]),
        "mib_own": [round(about["bytes_own"] / 2**20) for about in abouts],
        "mib_mapped": [round(about["bytes_mapped"] / 2**20) for about in abouts],
        "load": os.getloadavg()[0],
    }
    drop_pages(arguments.work / "cache", arguments.work / "store")
    told["shards"]["cold_ms"] = quantiles(answered(far, range(JUDGED, 2 * JUDGED))["ms"])
    told["shards"]["searching_cpu_seconds"] = [about["seconds_searching"] for about in abouts]
    print(json.dumps(told["shards"], indent=1))


PHASES = {
    "vectors": vectors,
    "check": check,
    "store": store,
    "index": index,
    "queries": queries,
    "shards": shards,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("--vectors", type=int, default=10_000_000)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--work", type=Path, default=Path("build/ten_million"))
    parser.add_argument("--out", type=Path, default=Path("bench/ten_million.json"))
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    os.environ["UPTAKE_CACHE"] = str(arguments.work / "cache")
    faiss.omp_set_num_threads(1)
    told = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    told |= {"vectors": arguments.vectors, "dimensions": DIMENSIONS, "k": K, "real": REAL}
    PHASES[arguments.phase](arguments, told)
    keep(arguments, told)


if __name__ == "__main__":
    main()
