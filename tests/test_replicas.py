"""Two actors a shard, readers beside a writer: nobody waits for a slow or dead one, nobody sees a mixture."""

import importlib.util
import re
import threading
import urllib.request

import numpy as np
import pytest

from stubs import StubEncoder
from test_store import document, make
from uptake.errors import BadInput
from uptake.store import Datastore
from uptake.store.cluster import Cluster
from uptake.store.cluster.status import status

ray = pytest.importorskip("ray", reason="a cluster needs uptake[ray]")

from clusters import nodes_fixture, wait_until  # noqa: E402, F401
from gated import Gate, Gated  # noqa: E402
from uptake.store.cluster import replicas as replicas_module  # noqa: E402
from uptake.store.cluster.index import merge  # noqa: E402
from uptake.store.cluster.wire import Answer, from_bytes, from_pieces, to_bytes, to_pieces  # noqa: E402

QUERIES = ["amber birch north", "knoll larch", "oasis oasis delta", "fjord"]


def same(one, other):
    for mine, its in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine.ids, its.ids)
        np.testing.assert_array_equal(mine.scores, its.scores)
        assert mine.coverage == its.coverage == 1.0


def opened(store, nodes, **settings):
    cluster = Cluster(nodes.address, **{"rows": 1000, "patience": 300} | settings)
    return Datastore.open(store.path, encoder=StubEncoder(), cluster=cluster)


def searched(nodes):
    """Return how many queries each replica of the only shard has answered."""
    return {each["replica"]: each["queries"] for each in status(nodes.address)}


@pytest.fixture
def store(tmp_path):
    made = make(tmp_path / "s", retriever="dense")
    made.add([document(str(number)) for number in range(12)])
    return made


@pytest.mark.long
def test_replicas_take_turns_and_stand_in(nodes, store, monkeypatch):
    monkeypatch.setattr(replicas_module, "Shard", Gated)
    nodes.have(2)
    expected = store.search(QUERIES, 5)
    reader = opened(store, nodes, replicas=2)
    reader.prepare()
    (shard,) = reader._snapshot.index._shards
    wait_until(lambda: shard._next() + shard._next() == 1)  # the second has the version open too
    for _ in range(4):
        same(reader.search(QUERIES, 5), expected)
    assert searched(nodes) == {0: 2 * len(QUERIES), 1: 2 * len(QUERIES)}

    # One is killed with a query in flight, and then for good: the other answers, and nobody notices.
    told = []
    gate = Gate(store.path.parent, 0)
    for for_good in (False, True):
        gate.shut()
        asking = threading.Thread(target=lambda: told.append(reader.search(QUERIES, 5)))
        while shard._turn != 1:  # the next is the first's
            same(reader.search(QUERIES, 5), expected)
        asking.start()
        gate.held()
        ray.kill(shard._actors[0], no_restart=for_good)
        asking.join()
        gate.open()
        same(told.pop(), expected)
        for _ in range(4):
            same(reader.search(QUERIES, 5), expected)
        wait_until(lambda: shard._next() + shard._next() == 1)  # Ray, or we, have started it again
        same(reader.search(QUERIES, 5), expected)


@pytest.mark.long
def test_a_late_replica_is_not_waited_for(nodes, store, monkeypatch):
    monkeypatch.setattr(replicas_module, "Shard", Gated)
    nodes.have(2)
    expected = store.search(QUERIES, 5)
    reader = opened(store, nodes, replicas=2, hedge=0.5)
    reader.prepare()
    index = reader._snapshot.index
    (shard,) = index._shards
    wait_until(lambda: shard._next() + shard._next() == 1)
    for _ in range(4):
        same(reader.search(QUERIES, 5), expected)
    gate = Gate(store.path.parent, 0)
    gate.shut()
    before = index.hedging.resent
    for _ in range(2):  # one of which is the first's to answer
        same(reader.search(QUERIES, 5), expected)
    gate.held()
    assert index.hedging.resent > before
    gate.open()
    same(reader.search(QUERIES, 5), expected)


@pytest.mark.parametrize(
    "settings", [{"hedge": 0.9}, {"hedge": 0.0, "replicas": 2}, {"hedge": 1, "replicas": 2}]
)
def test_hedging_wants_a_second_replica_and_a_share(settings):
    with pytest.raises(BadInput, match="hedge"):
        Cluster(**settings)


@pytest.mark.long
def test_readers_see_one_version_while_others_write(nodes, store):
    """Two search on and on while a third adds and removes: each answer is that of its version, whole."""
    nodes.have(2)
    done = threading.Event()
    seen, failed = [], []

    def read():
        try:
            while True:
                last = done.is_set()
                reader = opened(store, nodes, rows=60)
                for k in (5, 50):
                    seen.append((reader.version, k, reader.search(QUERIES, k)))
                if last:
                    return
        except BaseException as error:
            failed.append(error)

    bound = opened(store, nodes, rows=60)  # to the first version, throughout
    first = bound.search(QUERIES, 50)
    readers = [threading.Thread(target=read) for _ in range(2)]
    for each in readers:
        each.start()
    writer = Datastore.open(store.path, encoder=StubEncoder())
    for number in range(6):
        before = len(seen)
        writer.add([document(f"new {number}")])
        writer.remove([str(number)])
        wait_until(lambda before=before: len(seen) > before or failed)
        same(bound.search(QUERIES, 50), first)
    done.set()
    for each in readers:
        each.join()
    assert not failed
    versions = {version for version, _, _ in seen}
    assert len(versions) > 2 and max(versions) == writer.version
    for version in versions:
        alone = Datastore.open(store.path, encoder=StubEncoder(), version=version)
        expected = {k: alone.search(QUERIES, k) for k in (5, 50)}
        for _, k, found in [each for each in seen if each[0] == version]:
            same(found, expected[k])


@pytest.mark.long
def test_the_status_tells_all(nodes, store):
    nodes.have(2)
    reader = opened(store, nodes, rows=60)
    for _ in range(3):
        reader.search(QUERIES, 5)
    shards = status(nodes.address)
    ranges = [(0, 60), (60, 120)]
    assert [(each["first"], each["stop"], each["state"]) for each in shards] == [
        (*r, "ready") for r in ranges
    ]
    for each in shards:
        assert each["versions"] == {store.version: store._table.part(each["first"], each["stop"]).count}
        assert each["queries"] == 3 * len(QUERIES) and each["queries_a_second"] > 0
        assert each["bytes_own"] > 0 and each["bytes_mapped"] > 0
    shard = reader._snapshot.index._shards[1]
    ray.kill(shard._actors[0])
    wait_until(lambda: [each["state"] for each in status(nodes.address)] == ["ready", "missing"])


@pytest.mark.skipif(not importlib.util.find_spec("prometheus_client"), reason="metrics need ray[default]")
@pytest.mark.long
def test_metrics_are_on_rays_page(nodes, store):
    nodes.have(2)
    reader = opened(store, nodes, rows=60)
    for _ in range(3):
        reader.search(QUERIES, 5)
    found = {}

    def told():
        for node in ray.nodes():
            if node["Alive"]:
                url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
                page = urllib.request.urlopen(url, timeout=60).read().decode()
                for line in re.findall(r"^ray_uptake_.*", page, re.M):
                    name, tags, value = re.fullmatch(r"(\w+)\{(.*)\} (\S+)", line).groups()
                    tags = dict(re.findall(r'(\w+)="(.*?)"', tags))
                    if tags["store"] == store.path.name and "le" not in tags:
                        found[name, tags["rows"], tags["replica"]] = float(value)
        return len(found) >= 6

    wait_until(told, pause=0.5)
    for rows in ("0-60", "60-120"):
        assert found["ray_uptake_shard_queries_total", rows, "0"] == 3 * len(QUERIES)
        assert found["ray_uptake_shard_search_seconds_count", rows, "0"] == 3
        assert found["ray_uptake_shard_search_seconds_sum", rows, "0"] > 0


def test_what_is_sent_arrives():
    random = np.random.default_rng(0)
    for count in (1, 3, 300):
        queries = random.standard_normal((count, 96)).astype(np.float32)
        pieces = to_pieces(queries)
        assert max(map(len, pieces)) <= 100 * 1024  # what Ray sends along
        np.testing.assert_array_equal(from_pieces(tuple(pieces), 96), queries)
    for shape in ((0, 0), (4, 0), (4, 7)):
        ids, scores = random.integers(0, 1 << 62, shape), random.standard_normal(shape).astype(np.float32)
        rows, told, same_scores, seconds = from_bytes(to_bytes(Answer(9, ids, scores, 0.25)))
        assert (rows, seconds) == (9, 0.25)
        np.testing.assert_array_equal(told, ids)
        np.testing.assert_array_equal(same_scores, scores)


def test_merging_puts_equal_scores_in_the_order_of_ids():
    random = np.random.default_rng(0)
    for _ in range(50):
        ids = random.permutation(60).reshape(3, 1, 20)
        scores = random.integers(0, 9, ids.shape).astype(np.float32)
        order = np.argsort(-scores, axis=2, kind="stable")
        ids, scores = (np.take_along_axis(each, order, axis=2) for each in (ids, scores))
        (found,) = merge(list(ids), list(scores), 25, 1.0)
        expected = sorted(zip(-scores.ravel(), ids.ravel(), strict=True))[:25]
        assert list(zip(-found.scores, found.ids, strict=True)) == expected
