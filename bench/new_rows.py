"""A query while rows are newer than the index: none, searched exactly, and found by codes; in turns.

The rows are the real token states of bench/token_states.py, the index is made over the first, and a tenth
as many came later. Medians of CPU milliseconds a query, and recall against exact search of all.

    OMP_NUM_THREADS=1 python bench/new_rows.py --out bench/new_rows.json
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from index import exact, recall
from token_states import token_states

from uptake.store.passages import index as index_module
from uptake.store.passages.index import VectorIndex
from uptake.store.passages.index_cache import BaseIndex
from uptake.store.passages.lists import make_lists

K, QUERIES, TURN = 20, 400, 50


class Rows:
    """What VectorIndex asks of a table: the ids are places."""

    def __init__(self, rows: Any) -> None:
        self._rows, self.ids, self.count = rows, np.arange(len(rows)), len(rows)

    def vectors(self, ids: Any) -> Any:
        return np.ascontiguousarray(self._rows[ids])

    def positions(self, ids: Any) -> Any:
        return np.where(ids < self.count, ids, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--new", type=int, default=10_000)
    parser.add_argument("--source", type=int, default=500_000, help="rows of the file in WORK to take from")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--work", type=Path, default=Path("build/bench_index"))
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    count = arguments.rows + arguments.new
    rows = np.ascontiguousarray(
        token_states(arguments.shared, "train", arguments.source, arguments.work)[0][:count]
    )
    unseen, _ = token_states(arguments.shared, "test", 100_000, arguments.work)
    queries = np.ascontiguousarray(unseen[np.sort(np.random.default_rng(0).permutation(100_000)[:QUERIES])])
    old = rows[: arguments.rows]
    base = BaseIndex(np.arange(len(old)), old, make_lists(old, faiss.METRIC_INNER_PRODUCT, 1))
    sides: dict[str, VectorIndex] = {}
    told: dict[str, Any] = {"rows": arguments.rows, "new": arguments.new, "k": K}
    for name, held, coded in (
        ("none new", old, 1),
        ("new, exactly", rows, 1 << 60),
        ("new, by codes", rows, 1),
    ):
        index_module._CODED = coded
        sides[name] = VectorIndex(Rows(held), base, "cosine", 1)  # type: ignore[arg-type]
        start = time.process_time()
        sides[name].prepare()
        told.setdefault("preparing_cpu_seconds", {})[name] = time.process_time() - start
    spent: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, list[list[int]]] = {name: [] for name in sides}
    for first in range(-TURN, QUERIES, TURN):  # the first turn is for warmth
        for name, index in sides.items():
            for number in range(max(first, 0), max(first, 0) + TURN):
                start = time.process_time()
                (ranked,) = index.search(queries[number : number + 1], K)
                if first >= 0:
                    spent[name].append(1e3 * (time.process_time() - start))
                    found[name].append(ranked.ids.tolist())
    for name in sides:
        best = exact(queries, old if name == "none new" else rows)
        told[name] = {"cpu_ms": statistics.median(spent[name]), "recall": recall(found[name], best)}
    told["load"] = os.getloadavg()[0]
    print(json.dumps(told, indent=1))
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
