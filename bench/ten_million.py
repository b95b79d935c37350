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
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
        means = faiss.Kmeans(DIMENSIONS, count // CELL, niter=5, spherical=True, max_points_per_centroid=CELL)
        means.cp.min_points_per_centroid = 1
        means.train(real)
        np.save(path, faiss.knn(real, means.centroids, 1, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 0])
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


PHASES = {"vectors": vectors, "store": store}


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
