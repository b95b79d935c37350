"""What becomes of a cluster's work when parts of it are taken away: every fault for real, one after another.

A Ray cluster of several nodes in this machine builds, searches and evaluates with a stub encoder.
Processes die by SIGKILL, nodes with all that runs on them, disks are tmpfs that are too small (which
needs the right to mount). What comes out is held against one process that nobody disturbed: same
ids, same vectors, same answers, nothing twice, `verify` silent. Seconds count from the fault to the
finished result; beside them stands how long the whole takes undisturbed, in the same run.

    python bench/faults.py --out bench/faults.json
"""

import argparse
import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fault_world
import numpy as np
from fault_world import BLOCK, DIMENSIONS, QUERIES, K, World, add, seen, small_disk, store_at, timed

import toys
import uptake
from stubs import StubEncoder
from uptake import api
from uptake.errors import UptakeError
from uptake.evaluation.engine import evaluate
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.store.cluster import Cluster
from uptake.store.cluster.connect import connect
from uptake.store.cluster.replicas import Replicas
from uptake.store.datastore import Datastore
from uptake.text.types import Document

INDEXED = 20_000  # made-up vectors in the shard whose actor dies while it indexes
SMALL = 2500  # KiB of a disk that is too small

ANOTHER = "another worker does its block"


def built(world: World, fault: str, happened: str, path: Path, since: float, usual: float) -> None:
    seconds = time.time() - since
    lost = world.lost(store_at(path))
    world.tell("build", fault, happened, lost, seconds, usual, fault_world.again(path))


def worker_dies(world: World, moment: str, fault: str) -> None:
    usual, path = fault_world.usual_build(world), world.place()
    seen(path).mkdir()
    (seen(path) / "deadly").write_text(moment)
    fault_world.build(world.nodes.address, world.corpus, path)
    built(world, fault, ANOTHER, path, float((seen(path) / "died").read_text()), usual)


def worker_writing(world: World) -> None:
    usual, path = fault_world.usual_build(world), world.place()
    with killing(world, "Builder", f"{path}/passages.lance/data/.tmp") as since:
        fault_world.build(world.nodes.address, world.corpus, path)
    built(world, "a worker is killed while it writes a fragment", ANOTHER, path, since[0], usual)


@contextlib.contextmanager
def killing(world: World, kind: str, part: str) -> Any:
    """Meanwhile, kill an actor that has a file with `part` in its path open; when, is in what is given."""
    since: list[float] = []
    killer = threading.Thread(target=lambda: since.append(world.nodes.kill_one_with_open(kind, part)))
    killer.start()
    yield since
    killer.join()


def node_building(world: World) -> None:
    usual, path, since = fault_world.usual_build(world), world.place(), list[float]()

    def loses(done: int, known: int) -> None:
        if done > 2 * BLOCK and not since:
            since.append(time.time())
            world.nodes.lose_one_with("Builder")

    fault_world.build(world.nodes.address, world.corpus, path, loses)
    built(world, "a node is lost", "the worker that is left does the rest", path, since[0], usual)


def driver_dies(world: World, moment: str, fault: str, happened: str) -> None:
    usual, path = fault_world.usual_program(world), world.place()
    fault_world.program(world, path, moment)
    fault_world.program(world, path)
    built(world, fault, happened, path, float((seen(path) / "driver-died").read_text()), usual)


def full_building(world: World) -> None:
    usual, path = fault_world.usual_build(world), world.place() / "s"
    with small_disk(path.parent, SMALL) as make_room:
        since, said = fails(lambda: fault_world.build(world.nodes.address, world.corpus, path))
        make_room()
        fault_world.build(world.nodes.address, world.corpus, path)
        built(world, "the disk fills up while workers write", said, path, since, usual)


def full_alone(world: World) -> None:
    _, usual = timed(lambda: add(store_at(world.place()), world.corpus))
    path = world.place() / "s"
    with small_disk(path.parent, SMALL) as make_room:
        since, said = fails(lambda: add(store_at(path), world.corpus))
        kept = store_at(path).count
        make_room()
        store = add(store_at(path), world.corpus)
        seconds = time.time() - since
        world.tell("build, no cluster", "the disk fills up", f"{said}; {kept} passages are stored already",
                   world.lost(store), seconds, usual)  # fmt: skip


def fails(call: Callable[[], Any]) -> tuple[float, str]:
    """Return when a call failed as it should, and with which words."""
    try:
        call()
    except UptakeError as error:
        return time.time(), str(error).partition(": ")[2]
    raise AssertionError("the disk was large enough")


class Quick(StubEncoder):
    """One random vector a text: indexing takes longer than embedding."""

    def _vector(self, text: str) -> Any:
        return np.random.default_rng(abs(hash(text))).standard_normal(self.dimensions, dtype=np.float32)


def actor_indexing(world: World) -> None:
    path = world.place()
    store = Datastore.create(path, encoder=Quick(64), retriever="dense", index="ivf")
    store.add([Document(f"row {row}", f"row {row}") for row in range(INDEXED)])
    alone = store.search(QUERIES, K)

    def shard(rows: int) -> Datastore:
        cluster = Cluster(world.nodes.address, rows, missing="wait", patience=300, cpus=0.25)
        return Datastore.open(path, encoder=Quick(64), cluster=cluster)

    _, usual = timed(shard(INDEXED).prepare)
    with killing(world, "Shard", "/.draft-") as since:
        far = shard(INDEXED + 1)  # the same rows, another shard
        found = far.search(QUERIES, K)
        ended = time.time()
    same = all(np.array_equal(a.ids, b.ids) for a, b in zip(found, alone, strict=True))
    lost = "; ".join(far.verify()) or ("nothing" if same else "other answers")
    world.tell("index", "an actor is killed while it indexes its shard", "started again, it begins anew",
               lost, ended - since[0], usual)  # fmt: skip


def full_cache(world: World) -> None:
    store = add(store_at(world.place()), world.corpus)
    with contextlib.ExitStack() as disks:
        for cache in world.nodes.caches.values():
            disks.enter_context(small_disk(cache, 64))
        found, seconds = timed(lambda: world.opened(store.path).search(QUERIES, K))
        world.tell("index", "no room for the shards' indexes", "they are held in memory, with a warning",
                   world.differs(found), seconds, None)  # fmt: skip


def in_flight(world: World, missing: str, replicas: int, name: str) -> None:
    """Stop the first shard's actor, send it the query, kill it: it cannot have answered."""
    store = world.opened(world.alone.path, missing, replicas)
    store.search(QUERIES, K)
    _, usual = timed(lambda: store.search(QUERIES, K))
    ask, since = Replicas._send_to, list[float]()
    first = first_shard(store)
    ray = connect(world.nodes.address)
    pids = [about["pid"] for about in ray.get([actor.about.remote() for actor in first._actors])]

    def deadly(self: Replicas, replica: int, method: str, *more: Any, **how: Any) -> Any:
        if self is not first or method != "search" or since:
            return ask(self, replica, method, *more, **how)
        os.kill(pids[replica], signal.SIGSTOP)
        asked = ask(self, replica, method, *more, **how)
        since.append(time.time())
        os.kill(pids[replica], signal.SIGKILL)
        return asked

    Replicas._send_to = deadly  # type: ignore[method-assign]
    try:
        happened = f"answered with coverage {store.search(QUERIES, K)[0].coverage:.2f}"
    except UptakeError as error:
        happened = type(error).__name__
    finally:
        Replicas._send_to = ask  # type: ignore[method-assign]
    happened += f" after {time.time() - since[0]:.2f} s"
    found = whole_answer(store)
    seconds = time.time() - since[0]
    world.tell("search", f"an actor is killed with a query in flight: {name}", happened, world.differs(found),
               seconds, usual)  # fmt: skip


def first_shard(store: Datastore) -> Replicas:
    return store._snapshot.index._shards[0]  # type: ignore[attr-defined,no-any-return]


def whole_answer(store: Datastore) -> list[Any]:
    """Ask until all shards answer."""
    while True:
        with contextlib.suppress(UptakeError):
            found = store.search(QUERIES, K)
            if found[0].coverage == 1:
                return found
        time.sleep(0.05)


def node_searching(world: World) -> None:
    store = world.opened(world.alone.path, "wait")
    store.search(QUERIES, K)
    _, usual = timed(lambda: store.search(QUERIES, K))
    about = connect(world.nodes.address).get(first_shard(store)._actors[0].about.remote())
    (node,) = [each for each in world.nodes.have(2) if each.node_id == about["node"]]
    since = time.time()
    world.nodes.lose(node, [about["pid"]])
    found = store.search(QUERIES, K)
    seconds = time.time() - since
    world.tell("search", "a node is lost: policy wait", "its shard starts on the other node and is indexed",
               world.differs(found), seconds, usual)  # fmt: skip


def table_changes(world: World) -> None:
    writer = add(store_at(world.place()), world.corpus)
    reader = world.opened(writer.path)
    before = reader.search(QUERIES, K)
    _, usual = timed(lambda: reader.search(QUERIES, K))
    for turn in range(6):  # more versions than a shard keeps open
        writer.remove([f"corpus/{turn:02d}.txt"])
        writer.add([Document(f"new {turn}", f"word1 word22 word333 {turn}")])
        world.opened(writer.path).search(QUERIES, K)
    found, seconds = timed(lambda: reader.search(QUERIES, K))
    lost = next((each for each in map(world.differs, (before, found)) if each != "nothing"), "nothing")
    world.tell("search", "others add and remove", "a reader at work keeps its version", lost, seconds, usual)
    version = reader.version
    writer.remove(purge=True)
    _, said = fails(lambda: world.opened(writer.path, version=version).search(QUERIES, K))
    world.tell(
        "search",
        "the version that a reader opens is purged",
        f"error: {said}",
        "that version, as told",
        None,
        None,
    )


def node_evaluating(world: World) -> None:
    toys.module().save_pretrained(world.folder / "model")
    toys.tokenizer().save_pretrained(world.folder / "model")
    model = uptake.load(str(world.folder / "model"))
    documents = [Document(f"test {n}", f"word{n} word22 word{n + 7} " * 20) for n in range(12)]
    store = Datastore.create(world.place(), retriever="lexical")
    store.add([Document(f"train {n}", f"word{n} word22 word{n + 7} and more") for n in range(30)])
    methods = api.method_specs(["random", "ttt-nn"], ["optimizer=sgd(learning_rate=0.05)"])
    plan = Plan(methods, PerQuery(prefix=80, suffix=80), (1, 3), batch=1)
    since: list[float] = []

    def loses(done: int, total: int, name: str) -> None:
        if done == 2 and not since:
            since.append(time.time())
            world.nodes.lose_one_with("Scorer")

    def run(**how: Any) -> list[Any]:
        outcome = evaluate(model, plan, documents, store, **how)
        return [(row.method, row.k, row.query, row.bits) for row in outcome.rows]

    shared = {"workers": 2, "ray": world.nodes.address}
    usual, spent = timed(lambda: run(**shared))
    disturbed = run(**shared, progress=loses)
    seconds = time.time() - since[0]
    same = disturbed == usual == run()
    world.tell("evaluate", "a node is lost", "its query is scored again by the worker that is left",
               "nothing" if same else "other results", seconds, spent)  # fmt: skip


FAULTS: list[Callable[[World], None]] = [
    lambda world: worker_dies(world, "embedding", "a worker is killed while it embeds"),
    worker_writing,
    lambda world: worker_dies(world, "noting", "a worker is killed between writing a fragment and noting it"),
    node_building,
    lambda world: driver_dies(
        world,
        "half",
        "the driver is killed half way",
        "nothing is stored; the same command does the rest",
    ),
    lambda world: driver_dies(
        world,
        "written",
        "the driver is killed before the commit",
        "the same command commits and embeds nothing",
    ),
    lambda world: driver_dies(
        world, "committed", "the driver is killed after the commit", "the same command finds all stored"
    ),
    full_building,
    full_alone,
    actor_indexing,
    full_cache,
    lambda world: in_flight(world, "fail", 1, "policy fail"),
    lambda world: in_flight(world, "wait", 1, "policy wait"),
    lambda world: in_flight(world, "partial", 1, "policy partial"),
    lambda world: in_flight(world, "fail", 2, "policy fail, two replicas"),
    node_searching,
    table_changes,
    node_evaluating,
]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--only", type=int, nargs="*", help="numbers of faults, from 0: the others' rows stay"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows: dict[int, list[dict[str, Any]]] = {}
    if arguments.out and arguments.out.exists():
        rows = {int(n): each for n, each in json.loads(arguments.out.read_text())["faults"].items()}
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        about = {"passages": world.alone.count, "dimensions": DIMENSIONS}
        try:
            for number in range(len(FAULTS)) if arguments.only is None else arguments.only:
                world.nodes.have(2)
                world.told.clear()
                FAULTS[number](world)
                rows[number] = [asdict(told) | {"load": os.getloadavg()[0]} for told in world.told]
                if arguments.out:
                    text = json.dumps({**about, "faults": dict(sorted(rows.items()))}, indent=1)
                    arguments.out.write_text(text + "\n")
        finally:
            world.nodes.end()
    for row in (row for _, told in sorted(rows.items()) for row in told):
        seconds = ["" if row[name] is None else f"{row[name]:.2g}" for name in ("seconds", "undisturbed")]
        again = "" if row["again"] is None else str(row["again"])
        print(
            "|", " | ".join([row["work"], row["fault"], row["happened"], row["lost"], again, *seconds]), "|"
        )


if __name__ == "__main__":
    main()
