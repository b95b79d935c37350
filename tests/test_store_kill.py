"""A writer is killed at random moments: what it acknowledged is there, nothing is there twice."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stubs import StubEncoder
from uptake.store import Datastore
from uptake.store import datastore as datastore_module
from uptake.store import writing as writing_module
from uptake.text import Chunking, Document

DOCUMENTS = 400
KILLS = 5


def documents(generation):
    for number in range(DOCUMENTS):
        words = np.random.default_rng([number, generation if number % 3 == 0 else 0]).integers(0, 500, 40)
        yield Document(f"document {number}", " ".join(f"word{word}" for word in words))


def ids(generation):
    return {passage.id for document in documents(generation) for passage in Chunking(64).passages(document)}


def write(path):
    """Add, replace, remove and purge, saying every version that is committed; run in its own process."""

    class Telling(writing_module.Writing):
        def commit(self, table):
            super().commit(table)
            print(table.version, flush=True)

    datastore_module.Writing, writing_module._BATCH = Telling, 100
    store = Datastore.open(path, encoder=StubEncoder())
    print("open", flush=True)
    store.add(documents(1))
    print("changing", flush=True)
    store.add(documents(2))
    store.remove([f"document {number}" for number in range(5)], purge=True)
    print("finished", flush=True)


@pytest.mark.timeout(120)
def test_killed_writers_lose_nothing(tmp_path):
    Datastore.create(tmp_path / "s", encoder=StubEncoder(), chunking=Chunking(64))
    random = np.random.default_rng()
    for kill in range(KILLS):
        before = set(Datastore.open(tmp_path / "s")._table.ids.tolist())
        arguments = [sys.executable, __file__, str(tmp_path / "s")]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout.readline() == "open\n"
            time.sleep(float(random.uniform(0, 0.25 * (kill + 1))))
            writer.send_signal(signal.SIGKILL)
            said = writer.stdout.read().split()
        store = Datastore.open(tmp_path / "s", encoder=StubEncoder())
        here = store._table.ids.tolist()
        assert store.verify() == []
        assert len(here) == len(set(here)) and set(here) <= ids(1) | ids(2)
        acknowledged = [int(word) for word in said if word.isdigit()]
        assert not acknowledged or store.version >= acknowledged[-1]
        if "changing" not in said:
            # So far only what an earlier generation had put in place of the first was replaced.
            reached = (
                Datastore.open(tmp_path / "s", version=acknowledged[-1])._table.ids if acknowledged else []
            )
            assert (before | set(map(int, reached))) & ids(1) <= set(here)
    store.add(documents(2))
    assert set(store._table.ids.tolist()) == ids(2) and store.verify() == []
    (found,) = store.search(["word1 word2 word3"], 10**6)
    assert set(found.ids.tolist()) == ids(2)
    assert not [path for path in tmp_path.iterdir() if path.name != "s"]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    write(sys.argv[1])
