"""A store is refreshed while it is searched: a reader keeps its version, whole, until it opens another."""

import threading

import numpy as np
import pytest

from tests.stubs import StubEncoder
from uptake.retrievers.query_encoder import QueryMap
from uptake.store import Datastore
from uptake.text.types import Chunking, Document

QUERIES = ["pump seal 3", "valve 7 of the new kind", "part 11"]


def corpus(kind, count=30):
    more = "valve " if kind == "new" else "seal of a kind "
    return [Document(f"d{n}", f"the {kind} pump {n} has seal {n} " + more * (n % 5)) for n in range(count)]


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    where = tmp_path / "s.store"
    Datastore.create(where, encoder=StubEncoder(), chunking=Chunking(4096)).add(corpus("old"))
    return where


def opened(path, **more):
    return Datastore.open(path, encoder=StubEncoder(), **more)


def answers(store):
    return [(r.ids.tolist(), r.scores.tolist()) for r in store.search(QUERIES, 10)]


def scores(store):
    return [r.scores.tolist() for r in store.search(QUERIES, 10)]


def texts(store):
    return [[p.text for p in store.passages(r.ids.tolist())] for r in store.search(QUERIES, 10)]


def test_a_reader_sees_one_version_whole_while_another_thread_replaces_every_document(path):
    reader = opened(path, search_by="sum")
    before, words = answers(reader), texts(reader)
    seen, done = [], threading.Event()

    def search():
        while not done.is_set():
            seen.append((answers(reader), texts(reader)))

    searching = threading.Thread(target=search)
    searching.start()
    writer = opened(path)
    for some in (corpus("new")[:10], corpus("new")[10:20], corpus("new")[20:]):
        writer.add(some)
    done.set()
    searching.join()
    assert seen and all(one == (before, words) for one in seen)
    assert all("new" in text for found in texts(opened(path)) for text in found)


def test_a_refreshed_store_answers_as_one_built_anew(path, tmp_path):
    writer = opened(path)
    writer.add(corpus("new"))
    anew = Datastore.create(tmp_path / "anew.store", encoder=StubEncoder(), chunking=Chunking(4096))
    anew.add(corpus("new"))
    own = QueryMap(anew.view.encoder_fingerprint, np.eye(16, k=1, dtype=np.float32))
    # What was replaced counts no more in how rare a word is either.
    for way in (
        {},
        {"search_by": "lexical"},
        {"search_by": "sum"},
        {"search_by": "sum", "query_encoder": own},
    ):
        assert answers(opened(path, **way)) == answers(anew.searched(**way))


def test_an_interrupted_refresh_is_said_and_finished_by_the_same_call(path, monkeypatch):
    monkeypatch.setattr("uptake.store.passages.writing.BATCH", 8)
    reader = opened(path)
    before = answers(reader)

    def broken():
        yield from corpus("new")[:20]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(path).add(broken(), label="new.jsonl")
    assert answers(reader) == before
    halfway = opened(path)
    assert halfway.unfinished == ("new.jsonl",)
    assert {p for found in texts(halfway) for p in found} <= {d.text for d in corpus("old") + corpus("new")}
    opened(path).add(corpus("new"), label="new.jsonl")
    assert opened(path).unfinished == ()
    assert all("new" in text for found in texts(opened(path)) for text in found)


def test_words_count_what_was_removed_until_a_purge_writes_the_store_anew(path, tmp_path):
    """How rare a word is, among all that the index was made of; vectors know nothing of each other."""
    left = corpus("old")[9:]
    anew = Datastore.create(tmp_path / "anew.store", encoder=StubEncoder(), chunking=Chunking(4096))
    anew.add(left)
    opened(path).remove([document.id for document in corpus("old")[:6]])
    opened(path).remove([document.id for document in corpus("old")[6:9]])
    dense, lexical = {"search_by": "dense"}, {"search_by": "lexical"}
    assert scores(opened(path, **dense)) == scores(anew.searched(**dense))
    assert scores(opened(path, **lexical)) != scores(anew.searched(**lexical))
    opened(path).remove([], purge=True)
    assert scores(opened(path, **lexical)) == scores(anew.searched(**lexical))
    assert texts(opened(path, **lexical)) == texts(anew.searched(**lexical))
