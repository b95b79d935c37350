"""One store on a real Ray cluster of several nodes: what one machine finds, and nothing lost in silence."""

import numpy as np
import pytest

from stubs import StubEncoder
from test_store import document, make
from uptake.errors import Incomplete
from uptake.store import Datastore, QueryText
from uptake.store.cluster import Cluster

ray = pytest.importorskip("ray", reason="a cluster needs uptake[ray]")

import clusters  # noqa: E402

ROWS = 100  # of a shard
QUERIES = ["amber birch north", "knoll larch", "oasis oasis delta", "fjord"]


@pytest.fixture(scope="module")
def nodes():
    with pytest.MonkeyPatch.context() as environment:
        for name in ("RAY_TMPDIR", "OMP_NUM_THREADS"):
            environment.setenv(name, "")  # put back as they were at the end
        made = clusters.Nodes()
        yield made
        made.end()


def on(nodes, missing="fail", **settings):
    return Cluster(nodes.address, **{"rows": ROWS, "missing": missing, "patience": 60} | settings)


def actors(store):
    return [shard._actors[0] for shard in store._snapshot.index._shards]


def same(one, other):
    for mine, its in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine.ids, its.ids)
        np.testing.assert_array_equal(mine.scores, its.scores)
        assert mine.coverage == its.coverage == 1.0


def test_search(nodes, tmp_path):
    """What one machine finds, at every version; then a node is lost, and another comes."""
    _, second = nodes.add(), nodes.add()
    store = make(tmp_path / "s", retriever="dense")
    store.add([document(str(number)) for number in range(26)])
    assert ROWS < store.count <= 2 * ROWS  # two shards
    path, encoder = tmp_path / "s", StubEncoder()
    alone = Datastore.open(path, encoder=encoder)
    reader = Datastore.open(path, encoder=encoder, cluster=on(nodes))
    for k in (1, 20, 1000):
        same(reader.search(QUERIES, k), alone.search(QUERIES, k))
    many = [document(str(number), 9).text for number in range(2000)]  # beyond what goes with the call
    same(reader.search(many, 3), alone.search(many, 3))
    queries = [QueryText(document(str(i), 9).text, str(i)) for i in range(3)]
    assert [s.search(30) for s in reader.sources(queries)] == [s.search(30) for s in alone.sources(queries)]

    # A reader keeps its version while others write; one who opens later sees what they wrote.
    writer = Datastore.open(path, encoder=encoder, cluster=on(nodes))
    writer.remove(["1", "2", "20"])
    writer.add([document("new")])
    same(writer.search(QUERIES, 20), Datastore.open(path, encoder=encoder).search(QUERIES, 20))
    same(reader.search(QUERIES, 20), alone.search(QUERIES, 20))
    assert writer.contents != reader.contents

    # A shard's actor dies for good: the policy's error, and the next query finds it started again.
    ray.kill(actors(reader)[0])
    with pytest.raises(Incomplete, match=r"1 of 2 shards did not answer \(rows 0-100\)"):
        reader.search(QUERIES, 5)
    waiting = Datastore.open(path, encoder=encoder, cluster=on(nodes, "wait"), version=reader.version)
    same(waiting.search(QUERIES, 5), alone.search(QUERIES, 5))

    # A node is lost, and there is no room for its shard.
    abouts = ray.get([actor.about.remote() for actor in actors(waiting)])
    lost = next(about for about in abouts if about["node"] == second.node_id)
    nodes.lose(second, [lost["pid"]])
    with pytest.raises(Incomplete, match="cluster status"):
        reader.search(QUERIES, 5)
    part = Datastore.open(path, encoder=encoder, cluster=on(nodes, "partial"), version=reader.version)
    found = part.search(QUERIES, 5)
    here = np.isin(alone._table.ids, alone._table.part(lost["first"], lost["stop"]).ids, invert=True)
    for each, everything in zip(found, alone.search(QUERIES, 1000), strict=True):
        expected = [key for key in everything.ids.tolist() if key in set(alone._table.ids[here].tolist())]
        assert each.ids.tolist() == expected[:5] and each.coverage == here.mean()
    assert part.source(QUERIES[0]).search(3).coverage == here.mean()
    with pytest.raises(Incomplete):  # nobody comes in time
        brief = on(nodes, "wait", patience=0.5)
        Datastore.open(path, encoder=encoder, cluster=brief, version=reader.version).search(QUERIES, 5)
    nodes.add()
    same(waiting.search(QUERIES, 5), alone.search(QUERIES, 5))

    # What is purged leaves no vector on any machine.
    folder = nodes.cache / "indexes" / store.layout.uid
    assert list(folder.rglob("vectors"))
    writer.remove(["3"], purge=True)
    assert list(folder.rglob("vectors")) == []
