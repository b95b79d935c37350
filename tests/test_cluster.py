"""One store on a real Ray cluster of several nodes: what one machine finds, and nothing lost in silence."""

import json
import shutil

import numpy as np
import pytest

import toys
import uptake
from cli_world import refused, run_fixture  # noqa: F401
from stubs import StubEncoder
from test_evaluate import DOCUMENTS, sentence
from test_parallel import PLAN
from test_store import document, make
from uptake.errors import BadInput, Incomplete, UptakeError
from uptake.evaluation.engine import evaluate
from uptake.lm.causal import Causal
from uptake.store import Datastore, QueryText
from uptake.store.cluster import Cluster
from uptake.store.cluster import build as build_module
from uptake.store.cluster import index as index_module
from uptake.store.cluster.status import status
from uptake.store.datastore import Added
from uptake.text import readers
from uptake.text.readers import Skipped
from uptake.text.types import Document

ray = pytest.importorskip("ray", reason="a cluster needs uptake[ray]")

import clusters  # noqa: E402
from clusters import nodes_fixture  # noqa: E402, F401

pytestmark = pytest.mark.long

ROWS = 100  # of a shard
QUERIES = ["amber birch north", "knoll larch", "oasis oasis delta", "fjord"]


def on(nodes, missing="fail", **settings):
    return Cluster(nodes.address, **{"rows": ROWS, "missing": missing, "patience": 300} | settings)


def actors(store):
    return [shard._actors[0] for shard in store._snapshot.index._shards]


def same(one, other):
    for mine, its in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine.ids, its.ids)
        np.testing.assert_array_equal(mine.scores, its.scores)
        assert mine.coverage == its.coverage == 1.0


def corpus(folder):
    """Write documents into several files; return them. One id comes twice, and one line is broken."""
    folder.mkdir()
    for number in range(12):
        made = document(f"text {number}", words=90)
        (folder / f"{number:02d}.txt").write_text(made.text)
    lines = [json.dumps({"id": f"line {n % 39}", "text": document(str(n), words=90).text}) for n in range(40)]
    lines.append(json.dumps({"id": "zh", "text": "点击绿色按钮即可重新启动水泵。"}))
    (folder / "lines.jsonl").write_text("\n".join([*lines, "{broken"]))
    return folder


def table_of(store):
    ids = store._table.ids
    return [passage.id for passage in store.passages(ids)], store.vectors(ids)


def test_build(nodes, tmp_path, monkeypatch):
    """What one process stores; two workers, the driver and a node are lost on the way."""
    monkeypatch.setattr(build_module, "_BLOCK", 40)
    nodes.have(2)
    texts = corpus(tmp_path / "corpus")
    alone, left_out = make(tmp_path / "alone"), Skipped()
    expected = alone.add(readers.read(texts, skipped=left_out))
    (tmp_path / "seen").mkdir()
    witness = clusters.Witness(tmp_path / "seen")
    store = make(tmp_path / "s", encoder=witness)
    store.add([Document("line 3", "an older text of the third line")])

    class Driver(Exception):
        """The driver's death."""

    def dies(done, known):
        if done > 80:
            raise Driver

    skipped = Skipped()
    pieces = readers.pieces(texts, skipped=skipped)
    (tmp_path / "seen" / "deadly").write_text("embedding")  # for a worker
    with pytest.raises(Driver):
        store.build(pieces, nodes.address, 2, progress=dies)
    assert (tmp_path / "seen" / "died").exists() and store.count == 1
    progress, before, largest = [], len(witness.seen()), 40 + 9  # a block ends with its last document

    def loses_a_node(done, known):
        progress.append((done, known))
        if len(progress) == 2:
            nodes.lose_one_with("Builder")

    (tmp_path / "seen" / "died").unlink()
    (tmp_path / "seen" / "deadly").write_text("noting")  # its fragment is there, and belongs to nothing
    added = store.build(pieces, nodes.address, 2, progress=loses_a_node, left_out=skipped.add)
    assert (tmp_path / "seen" / "died").exists()
    assert progress[0][0] > 0 and progress[-1] == (expected.passages,) * 2
    assert (added, skipped.counts) == (expected, left_out.counts) and skipped.total == 2
    assert store.verify() == [] and not (store.path / "building").exists()
    mine, own = table_of(alone), table_of(store)
    assert mine[0] == own[0]
    np.testing.assert_array_equal(mine[1], own[1])
    # What was finished before the driver died is not embedded again; nor the rest, but for what was in hand.
    again = witness.seen()
    assert len(again) - before <= expected.passages - progress[0][0] + 2 * largest
    assert {clusters.hash_of(passage.text) for passage in alone.passages(mine[0])} <= set(again)
    gone = store.remove(["corpus/03.txt"])
    (tmp_path / "seen" / "deadly").write_text("full")
    with pytest.raises(UptakeError, match="the disk is full; free some space and repeat"):
        store.build(pieces, nodes.address, 1)
    there = expected.passages - gone
    assert store.count == there and store.verify() == []
    assert store.build(pieces, nodes.address, 1) == Added(expected.documents, gone, there)
    same(store.search(QUERIES, 5), alone.search(QUERIES, 5))


def test_object_storage(nodes, tmp_path):
    """Workers write fragments into a bucket and shards read them there, by the options the driver has."""
    import buckets

    nodes.have(1)
    texts = corpus(tmp_path / "corpus")
    with buckets.emulator() as options:
        uri, encoder = "s3://bucket/notes.store", StubEncoder()
        alone = make(tmp_path / "alone", retriever="dense")
        alone.add(readers.read(texts))
        store = make(uri, retriever="dense", storage_options=options)
        store.build(readers.pieces(texts, skipped=Skipped()), nodes.address, 1)
        assert store.verify() == [] and not (store.path / "building").exists()
        reader = Datastore.open(uri, encoder=encoder, cluster=on(nodes, rows=1000), storage_options=options)
        same(reader.search(QUERIES, 5), alone.search(QUERIES, 5))


@pytest.fixture
def model(tmp_path):
    toys.module().save_pretrained(tmp_path / "model")
    toys.tokenizer().save_pretrained(tmp_path / "model")
    return uptake.load(str(tmp_path / "model"))


def test_evaluate(nodes, model, tmp_path):
    """Bit for bit what one process gives, though its neighbours come from a shard and a node is lost."""
    nodes.have(3)  # for a shard and two workers
    path = tmp_path / "s"
    store = Datastore.create(path, retriever="dense", encoder=f"lm:{model.name}", dtype="float32")
    store.add([Document(f"train/{number}", sentence(100 + number)) for number in range(12)])
    alone = evaluate(model, PLAN, DOCUMENTS, store)
    seen = []

    def loses_a_node(done, total, name):
        seen.append((done, total))
        if done == 1 and seen.count((done, total)) == 1:
            nodes.lose_one_with("Scorer")

    far = Datastore.open(path, cluster=on(nodes, rows=1000), version=store.version)
    shared = evaluate(model, PLAN, DOCUMENTS, far, workers=2, ray=nodes.address, progress=loses_a_node)
    told = [[(r.method, r.k, r.query, r.bits, r.coverage) for r in each.rows] for each in (shared, alone)]
    assert told[0] == told[1] and shared.showcases == alone.showcases
    total = len({row.query for row in alone.rows})
    assert list(dict.fromkeys(seen)) == [(done, total) for done in range(total + 1)]
    nameless = Causal(toys.module(), model.tokenizer)
    with pytest.raises(BadInput, match=r"uptake\.load"):
        evaluate(nameless, PLAN, DOCUMENTS, store, ray=nodes.address)


def test_the_command_line(nodes, run, tmp_path):
    nodes.have(1)
    texts = corpus(tmp_path / "corpus")
    ray.shutdown()  # the program connects by itself, and what Ray prints must not be in its results
    told = run(
        "index", "build", tmp_path / "s", texts, "--retriever", "lexical", "--ray", nodes.address, "--json"
    )
    alone = run("index", "build", tmp_path / "alone", texts, "--retriever", "lexical", "--json")
    assert told.code == alone.code == 0 and told.json == alone.json
    for store in ("s", "alone"):
        assert (
            run("index", "search", tmp_path / store, "绿色按钮", "--json").json[0]["document"].endswith("zh")
        )
    assert run("cluster", "status", "--ray", nodes.address, "--json").json == []
    (tmp_path / "nothing").mkdir()
    refused(
        run("index", "build", tmp_path / "t", tmp_path / "nothing", "--ray", nodes.address), "nothing to read"
    )
    asked = ("eval", "-m", "model", "-s", tmp_path / "s", "--data", texts)
    refused(run(*asked, "--shard-rows", "100"), "--shard-rows 100", "--ray")
    refused(run(*asked, "--missing", "wiat"), "did you mean wait")


def test_a_copy_of_a_store_has_shards_of_its_own(nodes, tmp_path):
    """Two copies with one uid, changed apart, count their versions alike."""
    nodes.have(2)
    make(tmp_path / "a", retriever="dense").add([document(str(number)) for number in range(9)])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    stores = []
    for name in "ab":
        Datastore.open(tmp_path / name, encoder=StubEncoder()).add([document(f"{name} new")])
        alone = Datastore.open(tmp_path / name, encoder=StubEncoder())
        stores.append(Datastore.open(tmp_path / name, encoder=StubEncoder(), cluster=on(nodes)))
        same(stores[-1].search(QUERIES, 1000), alone.search(QUERIES, 1000))
    assert stores[0].layout.uid == stores[1].layout.uid and stores[0].version == stores[1].version
    assert {record["store"] for record in status(nodes.address)} >= {str(tmp_path / name) for name in "ab"}


def test_search(nodes, tmp_path, monkeypatch):
    """What one machine finds, at every version; then a node is lost, and another comes."""
    _, second = nodes.have(2)
    store = make(tmp_path / "s", retriever="dense")
    store.add([document(str(number)) for number in range(26)])
    assert ROWS < store.count <= 2 * ROWS  # two shards
    path, encoder = tmp_path / "s", StubEncoder()
    alone = Datastore.open(path, encoder=encoder)
    reader = Datastore.open(path, encoder=encoder, cluster=on(nodes))
    for k in (1, 20, 1000):
        same(reader.search(QUERIES, k), alone.search(QUERIES, k))
    monkeypatch.setattr(index_module, "_INLINE", 0)  # as for large batches, which do not go with the call
    same(reader.search(QUERIES, 3), alone.search(QUERIES, 3))
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
    told = {each["first"]: each["state"] for each in status(nodes.address)}
    assert told == {first: "silent" if first == lost["first"] else "ready" for first in (0, ROWS)}
    assert part.source(QUERIES[0]).search(3).coverage == here.mean()
    with pytest.raises(Incomplete):  # nobody comes in time
        brief = on(nodes, "wait", patience=0.5)
        Datastore.open(path, encoder=encoder, cluster=brief, version=reader.version).search(QUERIES, 5)
    nodes.have(2)
    same(waiting.search(QUERIES, 5), alone.search(QUERIES, 5))

    # What is purged leaves no vector on any machine.
    pattern = f"indexes/{store.layout.uid}/**/vectors"
    assert any(list(cache.glob(pattern)) for cache in nodes.caches.values())
    writer.remove(["3"], purge=True)
    assert not any(list(cache.glob(pattern)) for cache in nodes.caches.values())
