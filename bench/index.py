"""The vector index at a million vectors: recall, time a query, opening, adding; and embedding end to end.

The vectors are token states over real text (bench/token_states.py), stored in a real Datastore whose
encoder only looks them up, so that searching is all that is measured. Bare FAISS means the same
inverted file with the same lists, probes and candidates, re-ranked by FAISS itself; both answer the
same queries one at a time, in turns, on one core.

    OMP_NUM_THREADS=1 python bench/index.py --vectors 1000000 --out bench/index.json
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import lance
import numpy as np
import torch
from embedding_rate import embedding_rate
from index_table import show
from numpy.typing import NDArray
from token_states import DIMENSIONS, token_states

from uptake.store.datastore import Datastore
from uptake.store.passages import index as index_module
from uptake.text.types import Document

Floats = NDArray[np.float32]

QUERIES = 1000
K = 20
TURN = 50  # queries one side answers before the other has its turn
OPENINGS = 5


class LookUp:
    """An encoder that knows its texts by the number they begin with: rows from 0, queries from -1 down."""

    spec, dtype, dimensions, fingerprint = "", "float32", DIMENSIONS, "bench-look-up"

    def __init__(self, rows: Floats, queries: Floats) -> None:
        self._rows, self._queries = rows, queries

    def embed(self, texts: Sequence[str]) -> Floats:
        numbers = np.array([int(text.partition(" ")[0]) for text in texts])
        if len(numbers) and numbers[0] < 0:
            return self._queries[-1 - numbers]
        return np.asarray(self._rows[numbers])


def document(row: int, window: str) -> Document:
    return Document(f"token {row}", f"{row} {window}")


def timed(work: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}


def build(path: Path, encoder: LookUp, texts: Sequence[str], count: int) -> tuple[Datastore, dict[str, Any]]:
    """Return a store of the first `count` rows and its index, and what making them took."""
    told: dict[str, Any] = {}
    if not path.exists():
        store = Datastore.create(path, encoder=encoder, retriever="dense", threads=1)
        told["storing"] = timed(lambda: store.add(document(row, texts[row]) for row in range(count)))
        told["indexing"] = timed(lambda: store._snapshot.index)
        (path / "built.json").write_text(json.dumps(told))
    store = Datastore.open(path, encoder=encoder, threads=1)
    if store.count != count:
        raise SystemExit(f"{path}: {store.count} passages of an interrupted run; delete it and run again")
    return store, json.loads((path / "built.json").read_text())


def opened_elsewhere(arguments: argparse.Namespace, cold: bool) -> dict[str, float]:
    """Open the store and search it in a process of its own, its files in the page cache or not."""
    if cold:
        os.sync()
        for file in itertools.chain((arguments.work / "cache").rglob("*"), arguments.store.rglob("*")):
            if file.is_file():
                with file.open("rb") as handle:
                    os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    command = [sys.executable, __file__, "--vectors", str(arguments.vectors), "--work", str(arguments.work)]
    done = subprocess.run([*command, "--only-open"], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def only_open(arguments: argparse.Namespace) -> None:
    queries = np.load(arguments.work / "queries.npy")
    encoder = LookUp(queries, queries)
    before = resident()
    start, cpu = time.perf_counter(), time.process_time()
    store = Datastore.open(arguments.store, encoder=encoder, threads=1)
    _ = store._snapshot.index
    told = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    opened = resident()
    start = time.perf_counter()
    store.search(["-1"], K)
    told["first_query_seconds"] = time.perf_counter() - start
    for number in range(len(queries)):
        store.search([str(-1 - number)], K)
    searched = resident()
    told |= {f"opened_{name}_mib": opened[name] - before[name] for name in opened}
    told |= {f"searched_{name}_mib": searched[name] - before[name] for name in searched}
    print(json.dumps(told))


def resident() -> dict[str, float]:
    """Return the MiB of this process that are its own, and those of mapped files, which can be let go."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
    return {"own": kib["RssAnon"] / 1024, "mapped": kib["RssFile"] / 1024}


def exact(queries: Floats, rows: Floats) -> NDArray[np.int64]:
    _, found = faiss.knn(queries, rows, K, metric=faiss.METRIC_INNER_PRODUCT)
    return np.asarray(found)


def recall(found: Sequence[Sequence[int]], best: NDArray[np.int64]) -> float:
    shares = [len(set(one) & set(two)) / K for one, two in zip(found, best.tolist(), strict=True)]
    return float(np.mean(shares))


class Side:
    """One kind of search: its answers, the milliseconds of each query, CPU milliseconds a query."""

    def __init__(self, search: Callable[[int], Sequence[int]]) -> None:
        self._search = search
        self.found: list[Sequence[int]] = []
        self.walls: list[float] = []
        self.cpu = 0.0

    def answer(self, numbers: range) -> None:
        cpu = time.process_time()
        for number in numbers:
            start = time.perf_counter()
            found = self._search(number)
            self.walls.append(1e3 * (time.perf_counter() - start))
            self.found.append(found)
        self.cpu += 1e3 * (time.process_time() - cpu)

    def told(self, best: NDArray[np.int64]) -> dict[str, float]:
        count = len(best)
        return {
            "recall": recall(self.found[-count:], best),
            "median_ms": statistics.median(self.walls[-count:]),
            "mean_ms": statistics.mean(self.walls[-count:]),
            "p95_ms": float(np.percentile(self.walls[-count:], 95)),
            "cpu_ms": self.cpu / len(self.walls),
        }


def searching(store: Datastore, queries: Floats, rows: Floats, best: NDArray[np.int64]) -> dict[str, Any]:
    """Ask the store and bare FAISS the same queries in turns."""
    places = {int(key): row for row, key in enumerate(store._snapshot.index.base.ids)}
    ivf = store._snapshot.index.base.ivf
    flat = faiss.IndexFlatIP(DIMENSIONS)
    flat.add(np.ascontiguousarray(rows))
    depth = index_module._LEAST  # candidates that the store re-ranks for k = 20
    bare = faiss.IndexRefine(ivf, flat)
    wide = faiss.IndexRefineSearchParameters(k_factor=depth / K)

    def ours(number: int) -> Sequence[int]:
        return [places[key] for key in store.search([str(-1 - number)], K)[0].ids.tolist()]

    def theirs(number: int) -> Sequence[int]:
        return bare.search(queries[number : number + 1], K, params=wide)[1][0].tolist()  # type: ignore[no-any-return]

    def unranked(number: int) -> Sequence[int]:
        return ivf.search(queries[number : number + 1], K)[1][0].tolist()  # type: ignore[no-any-return]

    sides = {"uptake": Side(ours), "faiss": Side(theirs), "faiss_without_rerank": Side(unranked)}
    for side in sides.values():
        side.answer(range(len(queries)))  # once for warmth
        side.walls, side.cpu = [], 0.0
    for start in range(0, len(queries), TURN):
        for side in sides.values():
            side.answer(range(start, min(start + TURN, len(queries))))
    told: dict[str, Any] = {name: side.told(best) for name, side in sides.items()}
    told["ratio_median"] = told["uptake"]["median_ms"] / told["faiss"]["median_ms"]
    told["ratio_cpu"] = told["uptake"]["cpu_ms"] / told["faiss"]["cpu_ms"]
    told["index"] = {"lists": ivf.nlist, "probes": ivf.nprobe, "code_bytes": ivf.code_size, "reranked": depth}
    return told


def adding(
    store: Datastore, texts: Sequence[str], queries: Floats, rows: Floats, best: NDArray[np.int64]
) -> dict[str, Any]:
    """Add one in a hundred to the store, look for each at once, search among all, and remove them again."""
    base, count = store._snapshot.index.base, store.count
    places = {int(key): row for row, key in enumerate(base.ids)}
    added = range(count, len(texts))
    fresh = [document(row, texts[row]) for row in added]
    told: dict[str, Any] = {"adding": timed(lambda: store.add(fresh))}
    told["first_query"] = timed(lambda: store.search(["-1"], K))
    told["rebuilt"] = store._snapshot.index.base is not base
    own = {int(passage): row for row, passage in enumerate(store._snapshot.index._fresh_ids, start=count)}
    seen = 0
    for row in added[::10]:
        seen += row in [own.get(key, -1) for key in store.search([str(row)], K)[0].ids.tolist()]
    told["passages"], told["seen_share"] = len(added), seen / len(added[::10])
    places |= own
    side = Side(lambda n: [places[key] for key in store.search([str(-1 - n)], K)[0].ids.tolist()])
    side.answer(range(len(queries)))
    told |= side.told(best)
    told["removing"] = timed(lambda: store.remove([one.id for one in fresh]))
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument(
        "--passages", type=int, default=2048, help="that MiniLM embeds; 0: keep OUT's figures"
    )
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--work", type=Path, default=Path("build/bench_index"))
    parser.add_argument("--out", type=Path, default=Path("bench/index.json"))
    parser.add_argument("--only-open", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    os.environ["UPTAKE_CACHE"] = str(arguments.work / "cache")
    arguments.store = arguments.work / f"store-{arguments.vectors}"
    if arguments.only_open:
        only_open(arguments)
        return
    count = arguments.vectors
    told: dict[str, Any] = {"vectors": count, "dimensions": DIMENSIONS, "queries": QUERIES, "k": K}
    told["load"] = os.getloadavg()[0]
    told["threads"], told["versions"] = (
        1,
        {
            "faiss": faiss.__version__,
            "lance": lance.__version__,
            "python": platform.python_version(),
        },
    )
    rows, texts = token_states(arguments.shared, "train", count + count // 100, arguments.work)
    unseen, _ = token_states(arguments.shared, "test", 100_000, arguments.work)
    queries = unseen[np.sort(np.random.default_rng(0).permutation(len(unseen))[:QUERIES])]
    np.save(arguments.work / "queries.npy", queries)
    store, told["building"] = build(arguments.store, LookUp(rows, queries), texts, count)
    print("built", flush=True)
    told["opening"] = [opened_elsewhere(arguments, cold=False) for _ in range(OPENINGS)]
    told["opening_cold"] = opened_elsewhere(arguments, cold=True)
    told["searching"] = searching(store, queries, rows[:count], exact(queries, rows[:count]))
    print("searched", flush=True)
    told["adding"] = adding(store, texts, queries, rows, exact(queries, rows))
    if arguments.passages:
        told["embedding"] = embedding_rate(arguments.shared, arguments.passages, arguments.work)
    elif arguments.out.exists():  # of an earlier run
        told["embedding"] = json.loads(arguments.out.read_text())["embedding"]
    show(told)
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
