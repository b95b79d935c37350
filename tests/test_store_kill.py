"""Writers are killed at random moments: what they acknowledged is there, nothing is there twice.

bench/kill.py does the same two hundred times.
"""

import numpy as np
import pytest

import killing
from stubs import StubEncoder
from uptake.store import Datastore

KILLS = 4

pytestmark = pytest.mark.long


def test_killed_writers_lose_nothing(tmp_path):
    store, random = tmp_path / "s", np.random.default_rng()
    generations = [0]
    killing.Writer().run({"do": "build", "path": store, "generation": 0})
    for kill in range(KILLS):
        do = ("add", "remove", "purge")[kill % 3]
        command = {"do": do, "path": store, "remove": list(range(kill, 400, 9))}
        if do == "add":
            generations.append(kill + 1)
            command = {"do": do, "path": store, "generation": kill + 1}
        before = killing.by_document(store)
        said = killing.Writer().run(command, delay=float(random.uniform(0, 0.6)))
        assert killing.broken_laws(command, said, before, generations) == []
    again = Datastore.open(store, encoder=StubEncoder())
    again.add(killing.documents(99))
    assert set(again._table.ids.tolist()) == killing.ids(killing.documents(99)) and again.verify() == []
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_killed_build_is_finished_by_the_same_command(tmp_path):
    store, random = tmp_path / "s", np.random.default_rng()
    command = {"do": "build", "path": store, "generation": 0}
    for _ in range(2):
        killing.Writer().run(command, delay=float(random.uniform(0, 0.3)))
    said = killing.Writer().run(command)
    assert killing.broken_laws(command, said, {}, [0]) == [] and killing.leftovers(store) == []
