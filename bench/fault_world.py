"""What the fault table is measured in: a Ray cluster of several nodes, a corpus, and builds of it."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import clusters  # noqa: E402
from stubs import StubEncoder  # noqa: E402
from uptake.store import datastore as datastore_module  # noqa: E402
from uptake.store.cluster import Cluster  # noqa: E402
from uptake.store.cluster import build as build_module  # noqa: E402
from uptake.store.datastore import Datastore  # noqa: E402
from uptake.store.passages import writing as writing_module  # noqa: E402
from uptake.text import readers  # noqa: E402

FILES, WORDS = 24, 12_000  # of the corpus
BLOCK = 200  # passages a fragment
DIMENSIONS = 256
ROWS = 1200  # of a shard: there are two
QUERIES = ["word1 word22 word333", "word7 word77", "word400 word401 word402 word403"]
K = 20

Progress = Callable[[int, int], None]


@dataclass
class Told:
    """One row of the table. `again` counts passages embedded more than once."""

    work: str
    fault: str
    happened: str
    lost: str
    again: int | None
    seconds: float | None  # from the fault to the finished result
    undisturbed: float | None  # the whole, where nothing happens


class World:
    """The cluster, the corpus, and what one process makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nodes = clusters.Nodes()
        self.told: list[Told] = []
        self._stores = 0
        os.environ["UPTAKE_CACHE"] = str(folder / "cache")
        self.corpus = folder / "corpus"
        self.corpus.mkdir()
        for number in range(FILES):
            words = np.random.default_rng(number).integers(0, 5000, WORDS)
            (self.corpus / f"{number:02d}.txt").write_text(" ".join(f"word{word}" for word in words))
        self.alone = add(store_at(folder / "alone"), self.corpus)
        self.answers = self.alone.search(QUERIES, K)

    def place(self) -> Path:
        """Return where no store has been."""
        self._stores += 1
        return self.folder / f"store-{self._stores}"

    def tell(self, work: str, fault: str, happened: str, lost: str, seconds: float | None,
             undisturbed: float | None, again: int | None = None) -> None:  # fmt: skip
        """Add a row to the table, and show it."""
        self.told.append(Told(work, fault, happened, lost, again, seconds, undisturbed))
        print(self.told[-1], flush=True)

    def opened(
        self, path: Path, missing: str = "fail", replicas: int = 1, version: int | None = None
    ) -> Datastore:
        """Open a store on the cluster; its shards find room on one node if they must."""
        cluster = Cluster(self.nodes.address, ROWS, replicas, missing=missing, patience=300, cpus=0.25)  # type: ignore[arg-type]
        return Datastore.open(path, encoder=StubEncoder(DIMENSIONS), cluster=cluster, version=version)

    def lost(self, store: Datastore) -> str:
        """Return "nothing", or what differs from what one undisturbed process has stored and finds."""
        wrong = store.verify()
        mine, own = store._table, self.alone._table
        if len(set(mine.ids.tolist())) != len(mine.ids):
            wrong.append("passages twice")
        if sorted(mine.ids.tolist()) != sorted(own.ids.tolist()):
            wrong.append(f"{mine.count} passages for {own.count}")
        elif not np.array_equal(mine.vectors(own.ids), own.vectors(own.ids)):
            wrong.append("other vectors")
        return "; ".join(wrong) or self.differs(store.search(QUERIES, K))

    def differs(self, found: list[Any]) -> str:
        """Return "nothing" where these are the answers of the undisturbed store, in whole."""
        pairs = zip(found, self.answers, strict=True)
        same = all(
            np.array_equal(a.ids, b.ids) and np.array_equal(a.scores, b.scores) and a.coverage == 1
            for a, b in pairs
        )
        return "nothing" if same else "other answers"


def store_at(path: Path, encoder: StubEncoder | None = None) -> Datastore:
    """Open the store, or make it."""
    encoder = encoder or StubEncoder(DIMENSIONS)
    if (path / "store.json").is_file():
        return Datastore.open(path, encoder=encoder)
    return Datastore.create(path, encoder=encoder, retriever="dense", index="flat")


def add(store: Datastore, corpus: Path) -> Datastore:
    """Add the corpus by one process, a block at a time."""
    writing_module._BATCH = BLOCK
    store.add(readers.read(corpus))
    return store


def build(address: str, corpus: Path, path: Path, progress: Progress = lambda done, known: None) -> Datastore:
    """Do as `uptake index build --ray` does, with two workers who write down what they embed."""
    build_module._BLOCK = BLOCK
    seen(path).mkdir(exist_ok=True)
    store = store_at(path, clusters.Witness(seen(path), DIMENSIONS))
    pieces = readers.pieces(corpus, skipped=readers.Skipped())
    store.build(pieces, address, 2, progress=progress)
    return store


def seen(path: Path) -> Path:
    """Return where the workers who build the store at `path` write down what they embed."""
    return path.parent / f"{path.name}.seen"


def again(path: Path) -> int:
    """Return how many passages were embedded more than once."""
    every = clusters.Witness(seen(path)).seen()
    return len(every) - len(set(every))


@functools.cache
def usual_build(world: World) -> float:
    """Return the seconds of a build to which nothing happens."""
    world.nodes.have(2)
    path = world.place()
    store, spent = timed(lambda: build(world.nodes.address, world.corpus, path))
    assert (world.lost(store), again(path)) == ("nothing", 0)
    return spent


@functools.cache
def usual_program(world: World) -> float:
    """Return the same of a build by a program of its own."""
    world.nodes.have(2)
    path = world.place()
    _, spent = timed(lambda: program(world, path))
    return spent


def program(world: World, path: Path, moment: str = "") -> None:
    """Build in a program of its own, killed at a `moment` of it: half, written, committed, or ""."""
    own = [sys.executable, __file__, world.nodes.address, str(world.corpus), str(path), moment]
    done = subprocess.run(own, check=False, capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if moment else 0), done.stderr


def main() -> None:
    address, corpus, path, moment = sys.argv[1:]

    def die() -> None:
        (seen(Path(path)) / "driver-died").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

    def progress(done: int, known: int) -> None:
        if (moment == "half" and done >= known / 2) or (moment == "written" and done == known):
            die()

    class Dying(writing_module.StoreWriter):
        def commit(self, table: Any) -> None:
            die()

    if moment == "committed":
        datastore_module.StoreWriter = Dying  # type: ignore[misc]
    build(address, Path(corpus), Path(path), progress)


@contextlib.contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Callable[[], None]]:
    """A disk of its own at `folder`; what is given makes room on it."""

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)

    folder.mkdir(parents=True, exist_ok=True)
    mount(f"size={kib}k")
    try:
        yield lambda: mount("remount,size=1g")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a call gives, and its seconds."""
    start = time.time()
    return call(), time.time() - start


if __name__ == "__main__":
    main()
