"""Building a store by one process and by workers of a Ray cluster: passages a second, and what costs time.

The same corpus is built by one process, by one worker and by two, on a cluster started in this
machine, with an encoder that costs next to nothing and with a language model. CPU seconds are each
process's own, split into starting (imports, loading what embeds), reading (also cutting and hashing),
embedding, writing (fragments, notes, commits, sums) and the driver's part; indexes are made after it.
A cluster reads everything twice: once to plan, once to embed.

    OMP_NUM_THREADS=1 python bench/cluster_build.py --model MODEL --out bench/cluster_build.json
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from corpus import documents
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import clusters  # noqa: E402
from uptake.store.cluster import Cluster  # noqa: E402
from uptake.store.cluster import build as build_module  # noqa: E402
from uptake.store.cluster.connect import connect  # noqa: E402
from uptake.store.datastore import Datastore  # noqa: E402
from uptake.text import readers  # noqa: E402
from uptake.text.encoders import make_encoder  # noqa: E402
from uptake.text.types import Chunking, Embedder  # noqa: E402

FILES = 16
DOMAINS = ("court_opinions", "pmc_ccby", "python_peps", "stackexchange")
SIDES = {"one process": 0, "one worker": 1, "two workers": 2}  # workers
PARTS = ("starting", "reading", "embedding", "writing")


class Cheap:
    """An encoder that costs next to nothing: a random vector a text."""

    spec, dtype, dimensions, fingerprint = "", "float32", 384, "bench-cheap"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [np.random.default_rng(len(text)).standard_normal(384, dtype=np.float32) for text in texts]
        return np.stack(rows)


class Spent:
    """CPU seconds of this process by what it does; `of` counts what runs meanwhile."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._mark = time.process_time()

    def add(self, part: str) -> None:
        """Count what was spent since the last time."""
        now = time.process_time()
        self.seconds[part] += now - self._mark
        self._mark = now

    def within(self, items: Iterable[Any], outside: str, inside: str = "reading") -> Iterator[Any]:
        """Count what making the items takes as one part, and what is done with them as another."""
        self.add(outside)
        for item in items:
            self.add(inside)
            yield item
            self.add(outside)
        self.add(inside)


class Metered(build_module.Builder):
    """A worker that writes down what it spends."""

    def ready(self) -> None:
        self._spent = Spent()
        self._spent.seconds["starting"] = time.process_time()
        super().ready()
        self._note("starting")

    def read(self, group: Any) -> Any:
        told = super().read(group)
        self._note("reading")
        return told

    def write(self, block: Any) -> int:
        self._spent.add("writing")
        count = super().write(block)
        self._note("writing")
        return count

    def _passages(self, block: Any) -> Iterator[Any]:
        return self._spent.within(super()._passages(block), "writing")

    def _embed(self, texts: Sequence[str]) -> Any:
        self._spent.add("writing")
        vectors = super()._embed(texts)
        self._spent.add("embedding")
        return vectors

    def _note(self, part: str) -> None:
        self._spent.add(part)
        path = Path(f"{self._store}.spent") / f"{os.getpid()}.json"
        path.write_text(json.dumps(self._spent.seconds))


def by_one(corpus: Path, store: Datastore) -> dict[str, float]:
    """Add the corpus; return CPU seconds by part."""
    spent, embed = Spent(), store._encoding.embed

    def metered(texts: Sequence[str]) -> Any:
        spent.add("writing")
        vectors = embed(texts)
        spent.add("embedding")
        return vectors

    cut = Chunking.passages
    Chunking.passages = lambda self, document: spent.within(cut(self, document), "writing")  # type: ignore
    store._encoding.embed = metered  # type: ignore[method-assign]
    try:
        store.add(spent.within(readers.read(corpus), "writing"))
        spent.add("writing")
    finally:
        Chunking.passages = cut  # type: ignore[method-assign]
        del store._encoding.embed
    return spent.seconds


def by_workers(address: str, corpus: Path, store: Datastore, workers: int) -> dict[str, float]:
    """Build; return CPU seconds by part, the driver's among them."""
    folder = Path(f"{store.path}.spent")
    folder.mkdir()
    before = time.process_time()
    pieces = readers.pieces(corpus, skipped=readers.Skipped())
    store.build(pieces, address, workers)
    driver = time.process_time() - before
    each = [json.loads(file.read_text()) for file in folder.iterdir()]
    return {part: sum(one[part] for one in each) for part in PARTS} | {"driver": driver}


def cpu_of(pids: Sequence[int]) -> float:
    """Return the CPU seconds that these processes have used."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def indexing(nodes: clusters.Nodes, work: Path, encoder: Embedder) -> dict[str, float]:
    """Return CPU and wall seconds of making the index: in this process, and by two shards side by side."""
    told = {}
    store = Datastore.create(work / "indexed", encoder=encoder, retriever="dense", index="ivf", threads=1)
    store.add(readers.read(work / "corpus"))
    start, cpu = time.time(), time.process_time()
    store.prepare()
    told["one process, CPU s"] = time.process_time() - cpu
    told["one process, s"] = time.time() - start
    cluster = Cluster(nodes.address, rows=-(-store.count // 2))
    far = Datastore.open(store.path, encoder=encoder, cluster=cluster)
    shards = far._snapshot.index._shards  # type: ignore[attr-defined]
    ray = connect(nodes.address)
    pids = [about["pid"] for about in ray.get([one._actors[0].about.remote() for one in shards])]
    start, cpu = time.time(), cpu_of(pids)
    far.prepare()
    told["two shards, CPU s"] = cpu_of(pids) - cpu
    told["two shards, s"] = time.time() - start
    for shard in shards:
        ray.kill(shard._actors[0])
    return told


def side(nodes: clusters.Nodes, work: Path, encoder: Embedder, workers: int) -> dict[str, Any]:
    """Build WORK/corpus by so many workers, by this process for 0; return what it took."""
    store = Datastore.create(work / f"by-{workers}", encoder=encoder, retriever="dense", threads=1)
    corpus, start = work / "corpus", time.time()
    spent = by_workers(nodes.address, corpus, store, workers) if workers else by_one(corpus, store)
    seconds = time.time() - start
    return {
        "passages": store.count, "seconds": seconds, "cpu_seconds": spent,
        "share_embedding": spent["embedding"] / sum(spent.values()), "load": os.getloadavg()[0],
    }  # fmt: skip


def write_corpus(shared: Path, folder: Path, passages: int) -> None:
    """Write about so many passages of the mini-Pile into 16 files."""
    folder.mkdir()
    files = [(folder / f"{number:02d}.jsonl").open("w") for number in range(FILES)]
    count, found = 0, [document for name in DOMAINS for document in documents(shared, name, "train")]
    for number, document in enumerate(found):
        pieces = sum(1 for _ in Chunking().split(document.text))
        if count + pieces <= passages:
            count += pieces
            files[number % FILES].write(json.dumps({"id": document.id, "text": document.text}) + "\n")
    for file in files:
        file.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--model", required=True, help="the language model that embeds, in turn")
    parser.add_argument("--passages", type=int, default=20_000, help="for the cheap encoder")
    parser.add_argument("--embedded", type=int, default=1_500, help="for the model")
    parser.add_argument("--out", type=Path, required=True, help="what it holds already is not measured again")
    arguments = parser.parse_args()
    build_module.Builder = Metered  # type: ignore[misc]
    told: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}

    def keep(encoder: str, what: str, row: dict[str, Any]) -> None:
        told.setdefault(encoder, {})[what] = row
        arguments.out.write_text(json.dumps(told, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as folder:
        os.environ["UPTAKE_CACHE"] = f"{folder}/cache"
        nodes = clusters.Nodes()
        nodes.have(2)
        try:
            for name, count in {"cheap": arguments.passages, "model": arguments.embedded}.items():
                work = Path(folder) / name
                work.mkdir()
                write_corpus(arguments.shared, work / "corpus", count)
                encoder = Cheap() if name == "cheap" else make_encoder(f"lm:{arguments.model}")
                for what, workers in SIDES.items():
                    if what not in told.get(name, {}):
                        keep(name, what, side(nodes, work, encoder, workers))
                if name == "cheap" and "indexing" not in told[name]:
                    keep(name, "indexing", indexing(nodes, work, encoder))
        finally:
            nodes.end()
    for name, rows in told.items():
        for what in SIDES:
            row = rows[what]
            spent = " | ".join(f"{row['cpu_seconds'].get(part, 0):.1f}" for part in (*PARTS, "driver"))
            rate = row["passages"] / row["seconds"]
            print(f"| {name} | {what} | {rate:.0f} | {spent} | {row['share_embedding']:.0%} |")
    print(told["cheap"]["indexing"])


if __name__ == "__main__":
    main()
