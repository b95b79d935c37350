"""What asking a second replica does to the slowest searches, where now and then a machine hangs.

Four shards of two replicas on this machine answer one query at a time, with and without hedging, in
turns: first undisturbed, then while one of the eight actors, another each time, is stopped for 50 ms
twice a second. Told are the milliseconds of a search, and how many requests were sent again.

    OMP_NUM_THREADS=1 RAY_worker_niceness=0 python bench/hedging.py --out bench/hedging.json
"""

import argparse
import contextlib
import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
from cluster import K, LookUp, quantiles, stored, timed, vectors

from uptake.store.cluster import Cluster
from uptake.store.cluster.index import ClusterIndex
from uptake.store.datastore import Datastore

SHARDS, HEDGE = 4, 0.95
TURN = 10
PAUSE, EVERY = 0.05, 0.5  # seconds


@contextlib.contextmanager
def hanging(pids: list[int]) -> Iterator[None]:
    """Stop one of the processes after another for a while, until the end."""
    end, random = threading.Event(), np.random.default_rng(0)

    def stop_and_go() -> None:
        while not end.wait(EVERY - PAUSE):
            pid = int(random.choice(pids))
            os.kill(pid, signal.SIGSTOP)
            try:
                end.wait(PAUSE)
            finally:
                os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def opened(path: Path, rows: int, hedge: float | None) -> ClusterIndex:
    """Return the index of a reader that asks so; its actors are those of the others."""
    cluster = Cluster("local", rows=-(-rows // SHARDS), replicas=2, hedge=hedge, cpus=0)
    store = Datastore.open(path, encoder=LookUp(vectors(1, 0)), cluster=cluster)
    store.prepare()
    index = store._snapshot.index
    assert isinstance(index, ClusterIndex)
    ray.get([each.request for shard in index._shards for each in shard.open_all()])
    return index


def run(rows: int, calls: int, folder: Path) -> dict[str, Any]:
    os.environ["UPTAKE_CACHE"] = str(folder / "cache")
    store, _ = stored(folder / "store", rows, "flat")
    queries = vectors(calls, 3)
    told: dict[str, Any] = {"rows": rows, "shards": SHARDS, "replicas": 2, "hedge": HEDGE, "calls": calls}
    told |= {"pause_seconds": PAUSE, "every_seconds": EVERY, "load": os.getloadavg()[0]}
    sides = {"alone": opened(store.path, rows, None), "hedged": opened(store.path, rows, HEDGE)}
    actors = [actor for shard in sides["alone"]._shards for actor in shard._actors]
    pids = [about["pid"] for about in ray.get([actor.about.remote() for actor in actors])]
    for name, world in (("undisturbed", contextlib.nullcontext()), ("hanging", hanging(pids))):
        spent: dict[str, list[float]] = {side: [] for side in sides}
        hedging = sides["hedged"].hedging
        assert hedging
        before = hedging.resent
        with world:
            for first in range(0, calls, TURN):
                for side, index in sides.items():
                    for query in range(first, first + TURN):
                        spent[side].append(timed(index.search, queries[query : query + 1], K)[0])
        told[name] = {side: quantiles(values) for side, values in spent.items()}
        told[name]["asked_again"] = (hedging.resent - before) / (calls * SHARDS)
    same = [
        np.array_equal(one.ids, other.ids) and np.array_equal(one.scores, other.scores)
        for one, other in zip(*(index.search(queries[:50], K) for index in sides.values()), strict=True)
    ]
    return told | {"identical": all(same), "load_at_the_end": os.getloadavg()[0]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        figures = run(given.rows, given.calls, Path(made))
    print(json.dumps(figures, indent=1))
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n")
