"""A store's chunks against chunks in memory and the plain way, against damage, changes and crashes."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import spoiling
import toys
from stubs import Letters, StubEncoder
from uptake.errors import BadInput, Damaged, Mismatch
from uptake.store import Datastore
from uptake.store.views import key_index, view_writer
from uptake.text.chunks.view import listed
from uptake.text.overlap import LeakFilter, Overlap
from uptake.text.tokenizer import Tokenizer
from uptake.text.types import Chunking, Document, stable_hash

LENGTH = 8
WORDS = "amber birch cedar delta ember fjord grove heath islet jetty knoll larch marsh north oasis".split()  # noqa: SIM905
QUERIES = ["amber birch cedar", "knoll larch", "oasis", "zzzz"]


class Counting(Tokenizer):
    """A tokenizer that counts what it is given, and may be killed after so much."""

    def __init__(self):
        super().__init__(toys.tokenizer())
        self.characters, self.fails_after = 0, None

    def encode(self, text):
        self.characters += len(text)
        if self.fails_after is not None and self.characters > self.fails_after:
            raise KeyboardInterrupt
        return super().encode(text)


def document(name, words=40, group="", seed=0):
    chosen = np.random.default_rng([seed, *map(ord, name)]).choice(WORDS, words)
    return Document(name, " ".join(chosen), group)


def make(path, documents, retriever="lexical", **settings):
    encoder = None if retriever == "lexical" else StubEncoder()
    store = Datastore.create(path, retriever=retriever, encoder=encoder, chunking=Chunking(64), **settings)
    store.add(documents)
    return store


def made(path, documents, retriever="lexical", **settings):
    store, encode = make(path, documents, retriever, **settings), Counting()
    store.read_chunks(encode, length=LENGTH)
    return store, encode


def chunks_of(store, encode=None, **query):
    return store.source("x", **query).chunks((encode or Counting()).fingerprint)


def contents(chunks):
    """Return id -> what is read under it, for every chunk that may be read."""
    view = chunks._view
    ids = torch.from_numpy(view.columns.records["id"][view.live])
    found, mask = chunks.tokens(ids)
    rows = zip(ids.tolist(), found.tolist(), mask.tolist(), strict=True)
    return {key: (row, own) for key, row, own in rows if any(own)}


def in_memory(documents, embedder=None):
    return listed(documents, Counting(), LENGTH, embedder)


def bound_in_memory(documents, embedder=None):
    return in_memory(documents, embedder).bound("", "", Overlap("x"), LeakFilter())


@pytest.mark.parametrize("retriever", ["lexical", "dense"])
@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_a_store_finds_and_reads_what_the_same_documents_in_memory_do(tmp_path, monkeypatch, retriever, kind):
    monkeypatch.setattr(key_index, "LARGE", 50)
    documents = [document(str(i), group=f"g{i % 3}") for i in range(12)]
    store, encode = made(tmp_path / "s", documents, retriever, index=kind)
    embedder = None if retriever == "lexical" else StubEncoder()
    for leak in (LeakFilter(), LeakFilter.off()):
        query = {"document_id": "3", "group": "g1", "whole_text": documents[3].text, "leak": leak}
        chunks = chunks_of(store, encode, **query)
        plain = in_memory(documents, embedder).bound("3", "g1", Overlap(documents[3].text), leak)
        assert contents(chunks) == contents(plain)
        found, want = chunks.search(QUERIES, 6), plain.search(QUERIES, 6)
        same = np.mean([len({*a} & {*b}) for a, b in zip(found.tolist(), want.tolist(), strict=True)])
        if retriever == "lexical":
            assert torch.equal(found, want)
        else:  # lists are looked into in part, and float16 may turn two that are all but equally near
            assert same >= (6 if kind == "flat" else 4)
    assert len(contents(chunks)) > len(contents(chunks_of(store, document_id="3"))) > 0


def test_a_hybrid_store_merges_both_rankings_and_their_order_is_by_rank(tmp_path):
    documents = [document(str(i)) for i in range(8)]
    found = {}
    for retriever in ("hybrid", "lexical", "dense"):
        store, encode = made(tmp_path / retriever, documents, retriever)
        found[retriever] = chunks_of(store, encode).search(QUERIES, 400).tolist()
    for hybrid, *lists in zip(*found.values(), strict=True):
        totals = {}
        for ranking in lists:
            for rank, key in enumerate([key for key in ranking if key >= 0], start=1):
                totals[key] = totals.get(key, 0) + 1 / (60 + rank)
        want = sorted(totals, key=lambda key: (-totals[key], key))
        assert [key for key in hybrid if key >= 0] == want[:400]


def test_removed_documents_are_gone_and_new_ones_wanted(tmp_path):
    documents = [document(str(i)) for i in range(6)]
    store, encode = made(tmp_path / "s", documents)
    whole = contents(chunks_of(store))
    store.remove(["2"])
    left = [d for d in documents if d.id != "2"]
    assert contents(chunks_of(store)) == contents(bound_in_memory(left)) != whole
    assert torch.equal(chunks_of(store).search(QUERIES, 9), bound_in_memory(left).search(QUERIES, 9))
    gone = torch.tensor([key for key in whole if key not in contents(chunks_of(store))])
    assert len(gone) and not chunks_of(store).tokens(gone)[1].any(), "an id from before is masked"
    store.add([document("new")])
    with pytest.raises(BadInput, match="1 of its documents have no chunks yet; cut them with `uptake index"):
        chunks_of(store)
    before = encode.characters
    told = store.read_chunks(encode, length=LENGTH)
    assert told.documents == 1 and encode.characters - before == len(document("new").text)
    now = [*left, document("new")]
    assert contents(chunks_of(store)) == contents(bound_in_memory(now))
    assert torch.equal(chunks_of(store).search(QUERIES, 9), bound_in_memory(now).search(QUERIES, 9))


def test_a_changed_document_has_its_new_chunks_and_back_again_its_old_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(view_writer, "_DEAD", 1.0)
    store, encode = made(tmp_path / "s", [document("b"), document("a")])
    first = contents(chunks_of(store))
    for seed in (1, 2):  # the same document, dead and alive, lies side by side in the files
        store.add([document("a", seed=seed)])
        store.read_chunks(encode, length=LENGTH)
        now = [document("b"), document("a", seed=seed)]
        assert contents(chunks_of(store)) == contents(bound_in_memory(now))
        assert torch.equal(chunks_of(store).search(QUERIES, 9), bound_in_memory(now).search(QUERIES, 9))
    store.add([document("a")])
    assert contents(chunks_of(store)) == first


def test_a_running_reader_keeps_its_version_while_the_store_is_made_anew(tmp_path):
    documents = [document(str(i)) for i in range(6)]
    store, encode = made(tmp_path / "s", documents)
    held = chunks_of(store)
    ids, before = held.search(QUERIES, 4), contents(held)
    other = Datastore.open(tmp_path / "s")
    other.remove([d.id for d in documents[1:]])
    other.add([document("7"), document("8")])
    other.read_chunks(encode, length=2 * LENGTH, fresh=True)
    assert contents(held) == before and torch.equal(held.search(QUERIES, 4), ids)
    now = chunks_of(other)
    assert now.fingerprint != held.fingerprint and not now.tokens(ids)[1].any(), "other chunks, other ids"


def test_a_passage_that_was_dropped_is_read_by_no_chunk(tmp_path):
    store, encode = made(tmp_path / "s", [document("a"), document("b")])
    (gone,) = store.passages(store._table.ids[1:2])
    few = chunks_of(store, encode).without([gone.id])
    span = set(range(gone.start, gone.start + len(gone.text)))
    for place, record in enumerate(few._view.columns.records):
        own = few._view.columns
        read = set(range(record["start"], record["start"] + record["tokens"]))
        if own.continued[place]:
            read |= set(
                range(record["start"], own.records["start"][place + 1] + own.records["tokens"][place + 1])
            )
        hit = record["document"] == stable_hash(gone.document) and read & span
        assert (int(record["id"]) in contents(few)) == (not hit)
    assert 0 < len(contents(few)) < len(contents(chunks_of(store)))


def test_another_tokenizer_length_or_encoder_is_refused(tmp_path):
    store, encode = made(tmp_path / "s", [document("a")], "dense")
    with pytest.raises(Mismatch, match=r"cut by the tokenizer of a model \(.*\), not by this one \(other\)"):
        store.source("x").chunks("other")
    with pytest.raises(Mismatch, match=r"are of 8 tokens, cut by .*, asked for are of 9 tokens"):
        store.read_chunks(encode, length=9)
    with pytest.raises(BadInput, match="chunk length 0"):
        store.read_chunks(encode, length=0)
    about = tmp_path / "s" / "chunks" / "about.json"
    spoiling.change(about, lambda data: data["settings"].update(encoder="stranger"))
    spoiling.sealed_anew(tmp_path / "s")
    with pytest.raises(Mismatch, match="were embedded by stranger, the store has stub"):
        chunks_of(Datastore.open(tmp_path / "s", encoder=StubEncoder()))
    spoiling.change(about, lambda data: data["settings"].update(width=data["settings"].pop("length")))
    spoiling.sealed_anew(tmp_path / "s")
    with pytest.raises(Damaged, match=r"invalid id, size or setting.*--fresh` cuts them anew"):
        chunks_of(store)
    store.read_chunks(encode, length=9, fresh=True)
    assert chunks_of(store).length == 9 and store.info()["chunk_tokens"] == 9
    bare = make(tmp_path / "bare", [document("a")])
    with pytest.raises(BadInput, match="holds no chunks; cut them with `uptake index chunks"):
        chunks_of(bare)


@pytest.mark.parametrize("documents", [[], [Document("a", "amber")]])
@pytest.mark.parametrize("retriever", ["lexical", "dense", "hybrid"])
def test_a_corpus_shorter_than_one_chunk_is_masked(tmp_path, documents, retriever):
    store, encode = made(tmp_path / "s", documents, retriever)
    chunks = chunks_of(store, encode)
    found = chunks.search(["amber", "birch"], 3)
    mask = chunks.tokens(found)[1]
    assert found.shape == (2, 3) and mask.shape == (2, 3, 2 * LENGTH)
    assert mask[0].sum() == sum(len(d.text) for d in documents)
    assert not chunks.tokens(torch.full((2, 1), -1))[1].any()


@pytest.mark.parametrize("name", ["values", "passages", "chunks", "texts", "words"])
def test_damage_is_refused_told_and_mended(tmp_path, name):
    store, encode = made(tmp_path / "s", [document("a"), document("b")], "hybrid")
    (file,) = (tmp_path / "s" / "chunks").glob(f"*/{name}")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    with file.open("r+b") as opened:
        opened.write(raw)
    store = Datastore.open(tmp_path / "s", encoder=StubEncoder())
    with pytest.raises(Damaged, match=f"{name}: not what was written; `uptake index chunks` cuts it again"):
        chunks_of(store)
    assert any(f"chunks/{name}: not what was written" in line for line in store.verify())
    store.read_chunks(encode, length=LENGTH)
    assert contents(chunks_of(store)) == contents(bound_in_memory([document("a"), document("b")]))
    assert store.verify() == []


def test_purging_leaves_no_chunk_of_what_was_removed(tmp_path):
    secret = Document("secret", "zzzz the quarry zzzz holds gold zzzz")
    documents = [document(str(i)) for i in range(6)]
    store, _ = made(tmp_path / "s", [*documents, secret], "hybrid")
    files = lambda: [f for f in (tmp_path / "s" / "chunks").rglob("*") if f.is_file()]  # noqa: E731
    assert any(b"quarry" in file.read_bytes() for file in files())
    store.remove(["secret"], purge=True)
    assert not any(b"quarry" in file.read_bytes() for file in files())
    assert contents(chunks_of(store)) == contents(bound_in_memory(documents)) and store.verify() == []


def test_an_interruption_loses_only_what_was_not_committed(tmp_path, monkeypatch):
    monkeypatch.setattr(view_writer, "COMMIT", 200)
    monkeypatch.setattr(view_writer, "CHARACTERS", 100)
    documents = [document(str(i)) for i in range(8)]
    store, first, second = make(tmp_path / "s", documents), Counting(), Counting()
    first.fails_after = 1200
    with pytest.raises(KeyboardInterrupt):
        store.read_chunks(first, length=LENGTH)
    with pytest.raises(BadInput, match="have no chunks yet"):
        chunks_of(store)
    store.read_chunks(second, length=LENGTH)
    assert second.characters <= sum(len(d.text) for d in documents) - 900
    assert contents(chunks_of(store)) == contents(bound_in_memory(documents)) and store.verify() == []


WRITER = """
import sys
sys.path[:0] = {path!r}
from stubs import Letters
from uptake.store import Datastore
from uptake.store.views import view_writer
view_writer.COMMIT, view_writer.CHARACTERS = 100, 100
store = Datastore.open(sys.argv[1])
store.read_chunks(Letters(), length=8, progress=lambda done, every: print(done, flush=True))
"""


def test_killed_writers_lose_nothing_they_told_of(tmp_path):
    documents = [document(str(i), 20) for i in range(60)]
    store, done = make(tmp_path / "s", documents), 0
    for lines in (8, 25):
        command = [sys.executable, "-c", WRITER.format(path=sys.path), str(tmp_path / "s")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            said = [int(writer.stdout.readline()) for _ in range(lines)]
            writer.kill()
        assert said[0] >= done, "what an earlier writer told of was not cut again"
        done = said[-1]
        with pytest.raises(BadInput, match="have no chunks yet"):
            chunks_of(store, Letters())
    told = store.read_chunks(Letters(), length=LENGTH)
    assert 0 < told.documents < 60
    plain = listed(documents, Letters(), LENGTH).bound("", "", Overlap("x"), LeakFilter())
    assert contents(chunks_of(store, Letters())) == contents(plain)
    assert torch.equal(chunks_of(store, Letters()).search(QUERIES, 9), plain.search(QUERIES, 9))
    assert store.verify() == []
    assert len([folder for folder in (tmp_path / "s" / "chunks").iterdir() if folder.is_dir()]) == 1


def test_a_huge_document_is_embedded_in_parts(tmp_path, monkeypatch):
    from uptake.store.views import chunk_reading

    monkeypatch.setattr(chunk_reading, "_EMBEDDED", 3)
    store, _ = made(tmp_path / "s", [document("a"), document("b")], "dense")
    want = bound_in_memory([document("a"), document("b")], StubEncoder())
    assert torch.equal(chunks_of(store).search(QUERIES, 5), want.search(QUERIES, 5))
