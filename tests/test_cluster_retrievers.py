"""A store on a Ray cluster under trained query encoders and RAG: the passages and digits of one machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toys
import uptake
from stubs import StubEncoder
from test_cluster import ROWS, on, same
from test_evaluate import DOCUMENTS, SMALL
from test_store import document, make
from uptake import api
from uptake.evaluation.engine import evaluate
from uptake.evaluation.plan import Plan
from uptake.lm.base import LM
from uptake.retrievers.candidates import Candidates, candidates
from uptake.retrievers.query_encoder import QueryMap
from uptake.retrievers.table import ReaderTable
from uptake.retrievers.training import Tuning, train
from uptake.store import Datastore, QueryText
from uptake.tasks.questions import Question
from uptake.text.types import Document

pytest.importorskip("ray", reason="a cluster needs uptake[ray]")

from clusters import nodes_fixture  # noqa: F401

pytestmark = pytest.mark.long

ASKED = [
    Question(f"q{n}", f"what does text {n} say of amber birch", (f"birch {n}",), document=f"{n}")
    for n in range(8)
]


@pytest.fixture
def texts() -> list[Document]:
    return [document(str(number)) for number in range(26)]


@pytest.fixture
def model(tmp_path: Path) -> LM:
    toys.module(window=512).save_pretrained(tmp_path / "model")
    toys.tokenizer().save_pretrained(tmp_path / "model")
    return uptake.load(str(tmp_path / "model"))


def encoders(store: Datastore, found: list[Candidates], table: ReaderTable) -> list[QueryMap]:
    """Train a query encoder by the reader's word with and without words beside it, and by marks."""
    table.fill([entry for one in found for entry in one.entries()])
    asked = [one.asked(table) for one in found]
    return [
        train(asked, store.view.encoder_fingerprint, replace(Tuning(loss, passes=3), words=words)).encoder
        for loss, words in (("pdist", False), ("emdr2", True), ("loop", False), ("contrastive", True))
    ]


def test_what_a_cluster_searches_trains_the_same_encoders_and_is_searched_by_them(
    nodes: Any, texts: list[Document], model: LM, tmp_path: Path
) -> None:
    nodes.have(2)
    path, encoder = tmp_path / "s", StubEncoder()
    make(path, retriever="hybrid").add(texts)
    alone = Datastore.open(path, encoder=encoder)
    far = Datastore.open(path, encoder=encoder, cluster=on(nodes))
    assert ROWS < far.count <= 2 * ROWS  # two shards
    here, there = (candidates(store, ASKED, 6) for store in (alone, far))
    for one, other in zip(here, there, strict=True):
        assert one.passages == other.passages
        for name in ("words", "vectors", "vector"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    table = ReaderTable(model)
    trained = encoders(alone, here, table)
    assert len({one.fingerprint for one in trained}) == len(trained)  # they are not all the start
    read = table.count
    assert [one.fingerprint for one in encoders(far, there, table)] == [one.fingerprint for one in trained]
    assert table.count == read
    queries = [question.text for question in ASKED]
    for made in trained:
        for way in ("sum", "dense", "hybrid"):
            same(*(store.searched(way, 5.0, made).search(queries, 9) for store in (far, alone)))
    vector = trained[0].embed(["fjord"], encoder)[0]
    asked = QueryText(texts[3].text, texts[3].id)
    found = [
        store.searched("dense").sources([asked])[0].with_vector(vector).search(12) for store in (far, alone)
    ]
    assert found[0] == found[1] and texts[3].id not in {p.document for p in found[0].passages}


def test_a_refresh_under_a_cluster_is_seen_whole_by_who_opens_it_again(
    nodes: Any, texts: list[Document], tmp_path: Path
) -> None:
    nodes.have(2)
    path, encoder = tmp_path / "s", StubEncoder()
    make(path, retriever="hybrid").add(texts)
    made = QueryMap(encoder.fingerprint, np.random.default_rng(0).normal(0, 0.2, (16, 16)).astype(np.float32))
    queries = [question.text for question in ASKED]
    far = Datastore.open(path, encoder=encoder, cluster=on(nodes)).searched("sum", 5.0, made)
    before = far.search(queries, 9)
    newer = [replace(each, text=each.text[::-1]) for each in texts[:5]] + texts[8:] + [document("new")]
    writer = Datastore.open(path, encoder=encoder, cluster=on(nodes))
    writer.add(newer)
    writer.remove([each.id for each in texts[5:8]])
    same(far.search(queries, 9), before)
    again, alone = (
        Datastore.open(path, encoder=encoder, cluster=where).searched("sum", 5.0, made)
        for where in (on(nodes), None)
    )
    found = again.search(queries, 9)
    same(found, alone.search(queries, 9))
    read = {passage.document for each in found for passage in again.passages(each.ids.tolist())}
    assert not read & {each.id for each in texts[5:8]}
    assert [each.ids.tolist() for each in found] != [each.ids.tolist() for each in before]


def test_rag_over_a_cluster_scores_bit_for_bit_what_one_process_does(
    nodes: Any, texts: list[Document], model: LM, tmp_path: Path
) -> None:
    nodes.have(3)  # for a shard and two workers
    path = tmp_path / "s"
    store = Datastore.create(path, retriever="hybrid", encoder=f"lm:{model.name}", dtype="float32")
    store.add(texts)
    width = store.view.dimensions
    noise = np.random.default_rng(0).normal(0, 0.2, (width, width)).astype(np.float32)
    made = QueryMap(store.view.encoder_fingerprint, noise)
    plan = Plan(api.method_specs(["rag"], ["marginal=sequence", "temperature=5"]), SMALL, (2,), batch=1)
    alone = evaluate(model, plan, DOCUMENTS, store.searched("sum", 5.0, made))
    way: Any = {"search_by": "sum", "vector_weight": 5.0, "query_encoder": made}
    far = Datastore.open(path, cluster=on(nodes, rows=1000), version=store.version, **way)
    shared = evaluate(model, plan, DOCUMENTS, far, workers=2, ray=nodes.address)
    told = [[(r.method, r.k, r.query, r.bits, r.coverage) for r in each.rows] for each in (shared, alone)]
    assert told[0] == told[1] and len(told[0]) > 0
    plain = evaluate(model, plan, DOCUMENTS, store)
    assert [r.bits for r in plain.rows] != [r.bits for r in alone.rows]  # the query encoder took part
