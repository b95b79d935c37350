"""ChunkNeighbours found ahead: those that a search finds, none of a document's own, resumed and refused."""

import numpy as np
import pytest
import torch

from test_chunk_view import LENGTH, Counting, document, made
from uptake.errors import BadInput, Busy, Damaged, Mismatch
from uptake.store import Datastore
from uptake.store.remote.lease import FileLease
from uptake.store.views import chunk_neighbours
from uptake.store.views.chunk_neighbours import ChunkNeighbours, NeighbourCache, find_neighbours, queries_of
from uptake.text.chunks.cutting import cut
from uptake.text.chunks.view import BoundChunks
from uptake.text.types import stable_hash

DOCUMENTS = [document(str(number)) for number in range(6)]


@pytest.fixture(name="store")
def store_fixture(tmp_path):
    return made(tmp_path / "s", DOCUMENTS)[0]


def chunks_for(store):
    fingerprint = Counting().fingerprint
    return lambda d: store.source("x", document_id=d.id, group=d.group, whole_text=d.text).chunks(fingerprint)


def corpus(documents=DOCUMENTS):
    return [(each, queries_of(each, Counting(), LENGTH)) for each in documents]


def test_what_is_kept_is_what_a_search_finds_and_nothing_finds_itself(store, tmp_path):
    counts = []
    find_neighbours(tmp_path / "n", corpus(), chunks_for(store), 3, counts.append)
    assert counts == [1, 2, 3, 4, 5, 6]
    fingerprint = chunks_for(store)(DOCUMENTS[0]).fingerprint
    stored = ChunkNeighbours.read(tmp_path / "n", fingerprint)
    view = chunks_for(store)(DOCUMENTS[0])._view
    whose = dict(
        zip(view.columns.records["id"].tolist(), view.columns.records["document"].tolist(), strict=True)
    )
    found = 0
    for each, queries in corpus():
        ids = stored.of(each.id, queries)
        assert ids.shape == (len(queries), 3) and ids.dtype == np.int64
        assert ids.tolist() == chunks_for(store)(each).search(queries, 3).tolist()
        assert stable_hash(each.id) not in {whose[key] for key in ids[ids >= 0].tolist()}
        found += (ids >= 0).sum()
    assert found > 50
    free = store.source("x").chunks(Counting().fingerprint).search(corpus()[0][1], 1)
    assert stable_hash("0") in {whose[key] for key in free[:, 0].tolist()}, "without its name it finds itself"
    with pytest.raises(BadInput, match="document 'stranger': no neighbours are stored"):
        stored.of("stranger", [])
    with pytest.raises(BadInput, match="document '0': no neighbours are stored"):
        stored.of("0", ["other queries"])


def test_queries_are_a_documents_full_chunks():
    columns, _ = cut(Counting(), "0", "", [(0, DOCUMENTS[0].text)], LENGTH)
    full = [columns.text(place) for place in range(len(DOCUMENTS[0].text) // LENGTH)]
    assert queries_of(DOCUMENTS[0], Counting(), LENGTH) == full
    assert queries_of(document("short", 1), Counting(), LENGTH) == []


def test_an_interruption_is_resumed_and_says_the_same(store, tmp_path, monkeypatch):
    monkeypatch.setattr(chunk_neighbours, "_COMMIT", 40)
    looked = []

    def until(limit):
        def of(d):
            if len(looked) == limit:
                raise KeyboardInterrupt
            looked.append(d.id)
            return chunks_for(store)(d)

        return of

    with pytest.raises(KeyboardInterrupt):
        find_neighbours(tmp_path / "n", corpus(), until(4), 2)
    find_neighbours(tmp_path / "n", corpus(), chunks_for(store), 2)
    find_neighbours(tmp_path / "whole", corpus(), chunks_for(store), 2)
    fingerprint = chunks_for(store)(DOCUMENTS[0]).fingerprint
    one, other = (ChunkNeighbours.read(tmp_path / name, fingerprint) for name in ("n", "whole"))
    assert len(one.metadata.commits) > 1 and (one.arrays["ids"] == other.arrays["ids"]).all()
    assert len(one.arrays["documents"]) == len(DOCUMENTS)


def test_another_store_another_k_damage_and_a_second_writer_are_refused(store, tmp_path):
    find_neighbours(tmp_path / "n", corpus(), chunks_for(store), 2)
    fingerprint = chunks_for(store)(DOCUMENTS[0]).fingerprint
    with pytest.raises(Mismatch, match="holds 2 neighbours each, not 3"):
        find_neighbours(tmp_path / "n", corpus(), chunks_for(store), 3)
    with pytest.raises(BadInput, match="k = 0"):
        find_neighbours(tmp_path / "n", corpus(), chunks_for(store), 0)
    with pytest.raises(BadInput, match="holds no neighbours"):
        ChunkNeighbours.read(tmp_path / "nothing", fingerprint)
    with FileLease(tmp_path / "n" / "writer.lock"), pytest.raises(Busy):
        find_neighbours(tmp_path / "n", corpus(), chunks_for(store), 2)
    Datastore.open(store.path).remove(["5"])
    changed = Datastore.open(store.path)
    now = chunks_for(changed)(DOCUMENTS[0]).fingerprint
    for attempt in (
        lambda: ChunkNeighbours.read(tmp_path / "n", now),
        lambda: find_neighbours(tmp_path / "n", corpus(), chunks_for(changed), 2),
    ):
        with pytest.raises(
            Mismatch, match=f"of chunks {fingerprint}, not of {now}, for the store has changed"
        ):
            attempt()
    (file,) = (tmp_path / "n" / "neighbours").glob("*/documents")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(Damaged, match="delete it and search for the neighbours again"):
        ChunkNeighbours.read(tmp_path / "n", fingerprint)


def test_a_corpus_of_nothing_long_enough_has_no_neighbours(store, tmp_path):
    short = document("short", 1)
    find_neighbours(tmp_path / "n", corpus([short]), chunks_for(store), 2)
    stored = ChunkNeighbours.read(tmp_path / "n", chunks_for(store)(short).fingerprint)
    assert stored.of("short", []).shape == (0, 2)


def test_a_search_is_made_once_and_never_again_by_whoever_asks(store, tmp_path, monkeypatch):
    fingerprint = Counting().fingerprint
    searched = []
    search = BoundChunks.search

    def listening(self, queries, k):
        searched.append(list(queries))
        return search(self, queries, k)

    monkeypatch.setattr(BoundChunks, "search", listening)
    source = store.source("x", document_id="0")

    def ask(name, stored, queries, k=2):
        return (
            source.with_chunks(lambda chunks: stored.chunks(name, chunks))
            .chunks(fingerprint)
            .search(queries, k)
        )

    (_, one), (_, two) = corpus()[:2]
    with NeighbourCache(tmp_path / "n") as stored:
        first = ask("d", stored, one)
        assert ask("d", stored, one).tolist() == first.tolist() and searched == [one]
        with pytest.raises(Busy), NeighbourCache(tmp_path / "n"):
            pass
        there = source.with_chunks(lambda chunks: stored.chunks("d", chunks)).chunks(fingerprint)
        bare = source.chunks(fingerprint)
        assert (there.length, there.fingerprint) == (bare.length, bare.fingerprint)
        assert all(map(torch.equal, there.tokens(first), bare.tokens(first)))
        seeds = (np.random.default_rng(0) for _ in range(2))
        assert torch.equal(there.sample(3, 2, next(seeds)), bare.sample(3, 2, next(seeds)))
        assert there.without([]).search(one, 2).tolist() == first.tolist()
    searched.clear()
    with pytest.raises(KeyboardInterrupt), NeighbourCache(tmp_path / "n") as stored:
        assert ask("d", stored, one).tolist() == first.tolist() and not searched
        ask("e", stored, one)
        ask("d", stored, two)
        assert searched == [one, two], "another document, other queries"
        raise KeyboardInterrupt
    searched.clear()
    with NeighbourCache(tmp_path / "n") as stored:
        ask("d", stored, one)
        ask("e", stored, one)
        assert searched == [one], "what was not yet written down is searched for again"
        with pytest.raises(Mismatch, match="holds 2 neighbours each, not 3"):
            ask("d", stored, one, 3)
    Datastore.open(store.path).remove(["5"])
    source = Datastore.open(store.path).source("x")
    with NeighbourCache(tmp_path / "n") as stored, pytest.raises(Mismatch, match="the store has changed"):
        ask("d", stored, one)
