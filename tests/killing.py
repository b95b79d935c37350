"""Writers that are killed while they write, and the laws that what they leave behind must keep.

A writer is a process of its own: it says "ready", reads one command, and then says each version as
it is committed and "done" at the end. What it said is what it acknowledged.
"""

import functools
import json
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np

from stubs import StubEncoder
from uptake.store import Datastore
from uptake.store import datastore as datastore_module
from uptake.store.passages import writing as writing_module
from uptake.text.types import Chunking, Document

CHUNKING = Chunking(64)
ROWS_A_COMMIT = 100
DOCUMENTS = 400


def document(number, generation):
    """Return one document; every third has another text in another generation."""
    seed = [number, generation if number % 3 == 0 else 0]
    words = " ".join(f"word{word}" for word in np.random.default_rng(seed).integers(0, 500, 40))
    return Document(f"document {number}", f"{mark(number)} {words}")


def mark(number):
    """Return a word that only this document has, to look for in the bytes."""
    return f"mark{number:04d}kram"


def documents(generation):
    return [document(number, generation) for number in range(DOCUMENTS)]


def ids(documents):
    return {passage.id for document in documents for passage in CHUNKING.passages(document)}


@functools.cache
def ids_of(number, generation):
    return ids([document(number, generation)])


def name(number):
    return f"document {number}"


class Writer:
    """A process that has imported everything and waits for its one command."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, command, delay=None):
        """Send the command, kill the process after `delay` seconds (never for None), return what it said."""
        with self._process as process:
            self._send(command)
            if delay is not None:
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
            said = process.stdout.read().split()
        assert delay is not None or process.returncode == 0, f"{command} failed by itself"
        return said

    def seconds(self, command):
        """Run the command to its end; return the seconds until it said "done"."""
        with self._process as process:
            self._send(command)
            start = time.perf_counter()
            while process.stdout.readline() != "done\n":
                assert process.poll() is None, f"{command} failed by itself"
            return time.perf_counter() - start

    def _send(self, command):
        assert self._process.stdout.readline() == "ready\n"
        self._process.stdin.write(json.dumps(command | {"path": str(command["path"])}) + "\n")
        self._process.stdin.flush()

    def end(self):
        self._process.kill()
        self._process.communicate()


def write(do, path, generation=0, remove=()):
    """Carry a command out, saying every version that is committed."""

    class Telling(writing_module.StoreWriter):
        def commit(self, table):
            super().commit(table)
            print(table.version, flush=True)

    datastore_module.StoreWriter, writing_module.BATCH = Telling, ROWS_A_COMMIT
    encoder = StubEncoder()
    store = open_or_create(path, encoder) if do == "build" else Datastore.open(path, encoder=encoder)
    if do in ("build", "add"):
        store.add(documents(generation))
    else:
        store.remove([name(number) for number in remove], purge=do == "purge")
    print("done", flush=True)
    store.search(["word1 word2 word3"], 5)


def open_or_create(path, encoder):
    if (Path(path) / "store.json").is_file():
        return Datastore.open(path, encoder=encoder)
    return Datastore.create(path, encoder=encoder, chunking=CHUNKING)


def by_document(path, version=None):
    """Return document number -> its passage ids, every row counted once for each time it is there."""
    table = Datastore.open(path, version=version)._table
    found = {}
    for passage in table.rows(table.ids):
        found.setdefault(int(passage.document.split()[1]), []).append(passage.id)
    return found


def whole(number, here, generations):
    """Tell whether all of a document's text in some generation is there."""
    return any(ids_of(number, one) <= set(here.get(number, ())) for one in generations)


def broken_laws(command, said, before, generations):
    """Return one line for each law that what is on the disk after a kill does not keep.

    `before` is `by_document` before the command, `generations` all that were ever added.
    """
    path, do, gone = command["path"], command["do"], set(command.get("remove", ()))
    store = Datastore.open(path, encoder=StubEncoder())
    here = by_document(path)
    acknowledged = [int(word) for word in said if word.isdigit()]
    adding = do in ("build", "add")
    faults = store.verify()
    marked = [line for line in faults if line.startswith("unfinished: ")]
    broken = [f"verify: {line}" for line in faults if line not in marked]
    if marked and adding and "done" in said:
        broken.append("an add that ended is called unfinished")
    rows = [key for keys in here.values() for key in keys]
    if len(rows) != len(set(rows)):
        broken.append(f"{len(rows) - len(set(rows))} passages are there twice")
    if acknowledged and store.version < acknowledged[-1]:
        broken.append(f"version {acknowledged[-1]} was acknowledged, the store is at {store.version}")
    # What the kill left is all of the add, nothing of it, or called unfinished.
    every = {number: ids_of(number, command.get("generation", 0)) for number in range(DOCUMENTS)}
    now, was = ({number: set(keys) for number, keys in some.items()} for some in (here, before))
    if adding and not marked and now not in (every, was):
        broken.append("half of an add is there, and nothing says so")
    reached = by_document(path, acknowledged[-1]) if adding and acknowledged else {}
    for number in range(DOCUMENTS):
        old, new = set(before.get(number, ())), set(here.get(number, ()))
        if adding:
            added = ids_of(number, command["generation"])
            if not new <= old | added:
                broken.append(f"{name(number)}: passages nobody added")
            there = whole(number, before, generations) or whole(number, reached, generations)
            if there and not whole(number, here, generations):
                broken.append(f"{name(number)}: lost")
            if "done" in said and new != added:
                broken.append(f"{name(number)}: not what was added")
        elif number not in gone and new != old:
            broken.append(f"{name(number)}: changed by removing others")
        elif number in gone and new and (new != old or acknowledged or "done" in said):
            broken.append(f"{name(number)}: half removed, or back again")
    if do == "purge" and "done" in said:
        left = [number for number in gone if held(path, mark(number))]
        broken += [f"{name(number)}: purged and still in the bytes" for number in left]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a damaged index would be mended with a warning
        (found,) = store.search(["word1 word2 word3"], 10**6)
    if sorted(found.ids.tolist()) != sorted(rows):
        broken.append("search does not find exactly what is there")
    return broken


def held(path, word):
    """Tell whether a file of the store has this word in its bytes."""
    return any(word.encode() in file.read_bytes() for file in Path(path).rglob("*") if file.is_file())


def leftovers(path):
    """Return the drafts that lie beside a store."""
    return [beside.name for beside in Path(path).parent.iterdir() if beside.name.startswith(f".{path.name}-")]


if __name__ == "__main__":
    print("ready", flush=True)
    write(**json.loads(sys.stdin.readline()))
