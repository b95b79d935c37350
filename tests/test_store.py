"""The datastore against a naive dictionary, against bad input, and against damage."""

import errno
import json
import os
import subprocess
import sys

import hypothesis.strategies as some
import lance
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import spoiling
from spoiling import sealed_anew
from stubs import StubEncoder
from uptake.errors import BadInput, Busy, Damaged, Mismatch, UptakeError
from uptake.store import Datastore, QueryText
from uptake.store.passages import table as table_module
from uptake.store.passages import writing
from uptake.store.remote.lease import FileLease
from uptake.text.overlap import LeakFilter, Overlap
from uptake.text.types import Chunking, Document

WORDS = "amber birch cedar delta ember fjord grove heath islet jetty knoll larch marsh north oasis".split()  # noqa: SIM905
ODD_IDS = [
    "'",
    '"',
    "' OR 1=1 --",
    "a\nb",
    "id IN (1)",
    "\x00",
    "zürich/東京 \U0001f600",
    "../../etc",
    "%s{}",
    "",
]


def document(name, seed=0, words=60, group=""):
    chosen = np.random.default_rng([seed, *map(ord, name)]).choice(WORDS, words)
    return Document(name, " ".join(chosen), group, {"seed": str(seed)})


def make(path, **settings):
    return Datastore.create(path, **{"encoder": StubEncoder(), "chunking": Chunking(64)} | settings)


def stored(store):
    return {passage.id: passage for passage in store.passages(store._table.ids)}


def test_importing_the_store_loads_nothing_heavy():
    code = "import sys, uptake.store; print([m for m in ('lance', 'faiss', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("retriever", ["hybrid", "dense", "lexical"])
def test_add_search_reopen(tmp_path, retriever):
    encoder = None if retriever == "lexical" else StubEncoder()
    store = make(tmp_path / "s", retriever=retriever, encoder=encoder)
    assert store.count == 0 and [len(r.ids) for r in store.search(["amber"], 3)] == [0]
    documents = [document(str(i)) for i in range(30)] + [Document("odd", "xylophone quintet in a quarry")]
    seen = []
    added = store.add(documents, progress=lambda done, known: seen.append((done, known)))
    assert added.documents == 31 and added.passages == store.count and added.already == 0
    assert seen[-1] == (store.count, store.count) and {known for _, known in seen} == {store.count}
    again = Datastore.open(tmp_path / "s", encoder=encoder)
    for opened in (store, again):
        (found,) = opened.search(["xylophone quintet in a quarry"], 5)
        assert opened.passages(found.ids)[0].document == "odd"
        assert (np.diff(found.scores) <= 0).all() and len(found.ids) <= 5
    assert store.add(documents) == type(added)(31, 0, added.passages)
    assert again.verify() == [] and again.fingerprint == store.fingerprint
    assert again.search([], 5) == [] and len(again.search(["amber"], 0)[0].ids) == 0


def test_nothing_is_embedded_twice(tmp_path):
    encoder = StubEncoder()
    store = make(tmp_path / "s", encoder=encoder)
    documents = [document(str(i)) for i in range(5)]
    store.add(documents)
    count = encoder.embedded
    assert count == store.count
    store.add(documents)
    assert encoder.embedded == count


def test_a_changed_document_replaces_its_old_passages(tmp_path):
    store = make(tmp_path / "s")
    store.add([document("a", 1), document("b", 1)])
    store.add([document("a", 2)])
    expected = {p.id for d in (document("a", 2), document("b", 1)) for p in Chunking(64).passages(d)}
    assert set(store._table.ids.tolist()) == expected
    store.add([document("a", 1), document("a", 3), document("a", 1)])  # back and forth within one batch
    expected = {p.id for d in (document("a", 1), document("b", 1)) for p in Chunking(64).passages(d)}
    assert set(store._table.ids.tolist()) == expected and store.verify() == []


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    metric=some.sampled_from(["cosine", "ip", "l2"]),
    steps=some.lists(
        some.one_of(
            some.tuples(
                some.just("add"),
                some.lists(some.tuples(some.integers(0, 9), some.integers(0, 3)), max_size=8),
            ),
            some.tuples(some.just("remove"), some.lists(some.integers(0, 9), max_size=4)),
            some.tuples(some.just("purge"), some.lists(some.integers(0, 9), max_size=2)),
            some.tuples(some.just("reopen"), some.just(0)),
        ),
        min_size=2,
        max_size=7,
    ),
)
def test_the_store_is_a_dictionary_with_search(tmp_path_factory, metric, steps):
    encoder = StubEncoder()
    path = tmp_path_factory.mktemp("algebra") / "s"
    store, naive = make(path, metric=metric, retriever="dense"), {}
    for what, which in steps:
        if what == "add":
            documents = [document(ODD_IDS[place], seed) for place, seed in which]
            store.add(documents)
            naive |= {d.id: {p.id: p for p in Chunking(64).passages(d)} for d in documents}
        elif what == "reopen":
            store = Datastore.open(path, encoder=encoder)
        else:
            gone = store.remove([ODD_IDS[place] for place in which], purge=what == "purge")
            assert gone == sum(len(naive.pop(ODD_IDS[place], ())) for place in dict.fromkeys(which))
        passages = {key: p for of in naive.values() for key, p in of.items()}
        assert stored(store) == passages and store.count == len(passages)
        query = encoder.embed(["amber birch north"])[0]
        ids = np.array(list(passages), np.int64)
        vectors = encoder.embed([p.text for p in passages.values()])
        scores = vectors @ query if metric != "l2" else -((vectors - query) ** 2).sum(axis=1)
        expected = np.sort(scores)[::-1][:7]
        (found,) = store.search(["amber birch north"], 7)
        np.testing.assert_allclose(found.scores, expected, atol=1e-5)
        own = {int(key): score for key, score in zip(ids, scores, strict=True)}
        np.testing.assert_allclose([own[key] for key in found.ids.tolist()], expected, atol=1e-5)
    assert store.verify() == []


def test_a_source_withholds_leaks_and_keeps_its_order(tmp_path):
    store = make(tmp_path / "s")
    whole = document("q", words=200)
    store.add([document(str(i), group="g" if i % 4 == 0 else "") for i in range(40)])
    store.add([whole, Document("copy", whole.text)])
    query = next(Chunking(64).split(whole.text))[1]
    source = store.source(query, document_id="q", group="g", whole_text=whole.text)
    short, long = source.search(3), source.search(10**6)
    assert short.passages == long.passages[:3] and short.overlaps == long.overlaps[:3]
    # Asking for many first changes nothing.
    assert store.source(query, document_id="q", group="g", whole_text=whole.text).search(3) == short
    overlap, leak = Overlap(whole.text), LeakFilter()
    clean = {k for k, p in stored(store).items() if not leak.judge(overlap, "q", "g", p).leaks}
    assert {p.id for p in long.passages} == clean and len(long.passages) == len(clean)
    assert long.withheld == store.count - len(clean) and 0 < short.withheld <= long.withheld
    free = store.source(query, document_id="q", whole_text=whole.text, leak=LeakFilter.off()).search(2)
    assert {p.document for p in free.passages} == {"q", "copy"}
    assert free.withheld == 0 and max(free.overlaps) == 1.0
    ids = [p.id for p in short.passages]
    np.testing.assert_array_equal(source.vectors(ids), store.vectors(ids))
    assert source.search(0).passages == ()


def test_sampling_is_uniform_leak_free_and_without_replacement(tmp_path):
    store = make(tmp_path / "s", retriever="lexical", encoder=None)
    store.add([document(str(i), words=5) for i in range(12)])
    source = store.source("amber", document_id="3")
    counts = {}
    for seed in range(600):
        drawn = [p.document for p in source.sample(4, np.random.default_rng(seed)).passages]
        assert len(set(drawn)) == 4 and "3" not in drawn
        for name in drawn:
            counts[name] = counts.get(name, 0) + 1
    assert len(counts) == 11 and all(abs(count - 600 * 4 / 11) < 60 for count in counts.values())
    everything = source.sample(100, np.random.default_rng(0))
    assert len(everything.passages) == 11 and everything.withheld == 1
    assert source.sample(0, np.random.default_rng(0)).passages == ()


def test_a_batch_of_sources_equals_one_by_one_in_any_order(tmp_path):
    store = make(tmp_path / "s")
    store.add([document(str(i)) for i in range(60)])
    queries = [QueryText(document(str(i), 9).text, str(i)) for i in range(6)]
    together = [s.search(9) for s in store.sources(queries)]
    backwards = [s.search(9) for s in store.sources(queries[::-1])][::-1]
    assert together == backwards == [store.sources([query])[0].search(9) for query in queries]
    assert store.sources([]) == []


def test_readers_keep_their_version(tmp_path):
    store = make(tmp_path / "s")
    store.add([document(str(i)) for i in range(10)])
    reader = Datastore.open(tmp_path / "s", encoder=StubEncoder())
    source = reader.source("amber birch")
    before = (reader.count, reader.contents, reader.search(["amber"], 5)[0].ids.tolist())
    store.add([document("new")])
    store.remove(["1", "2", "3"])
    assert before == (reader.count, reader.contents, reader.search(["amber"], 5)[0].ids.tolist())
    assert len(source.search(10**6).passages) == before[0] != store.count
    old = Datastore.open(tmp_path / "s", encoder=StubEncoder(), version=reader.version)
    assert old.contents == reader.contents != store.contents
    with pytest.raises(BadInput, match="opened at version"):
        old.add([])
    with pytest.raises(BadInput, match="version 9999 is not stored"):
        Datastore.open(tmp_path / "s", version=9999)


def test_new_words_are_found_at_once_and_removed_ones_no_more(tmp_path):
    store = make(tmp_path / "s", retriever="lexical", encoder=None)
    store.add([document(str(i)) for i in range(20)])
    table = store._table
    later = table.append(list(Chunking(64).passages(Document("new", "zeppelin over the harbour"))), None)
    sealed_anew(tmp_path / "s")
    assert len(later.match("zeppelin", 5)[0]) == 1 and len(table.match("zeppelin", 5)[0]) == 0
    again = Datastore.open(tmp_path / "s")
    again.remove(["new"])
    assert len(again.search(["zeppelin"], 5)[0].ids) == 0


@pytest.mark.parametrize(
    "query",
    [
        "",
        "\x00",
        "'\"",
        "a AND (b OR",
        "x" * 200_000,
        "\ud800",
        "東京 ünï",
        "; DROP TABLE",
        "* ? ~ ^ : \\",
        "word " * 50_000,
    ],
)
def test_any_string_is_a_query(tmp_path, query):
    store = make(tmp_path / "s")
    store.add([document(str(i)) for i in range(5)])
    assert len(store.search([query], 3)[0].ids) == 3  # by vectors; the words may find none
    assert len(store.source(query, whole_text=query).search(3).passages) == 3


def test_odd_ids_and_odd_texts_come_back_as_they_were(tmp_path):
    store = make(tmp_path / "s")
    texts = [
        "nul \x00 inside",
        "lone \ud800 surrogate",
        "日本語テキスト \U0001f600",
        "\u202e bidi",
        "tab\t\r\n mixed",
        "   ",
        "",
    ]
    store.add([Document(name, text) for name, text in zip(ODD_IDS, texts, strict=False)])
    by_document = {p.document: p.text for p in stored(store).values()}
    assert by_document["'"] == texts[0] and by_document['"'] == "lone \ufffd surrogate"
    assert len(by_document) == 5  # white space makes no passage
    store.add([Document("\ud800", "a surrogate for a name")])
    (found,) = store.sources([QueryText("a surrogate for a name", document_id="\ud800")])
    assert "\ufffd" not in {p.document for p in found.search(99).passages}
    assert store.remove(["\ud800"]) == 1
    for name in ODD_IDS:
        store.remove([name])
    assert store.count == 0


def test_bad_requests_are_refused_in_one_line(tmp_path):
    store = make(tmp_path / "s")
    store.add([document("a")])
    lexical = make(tmp_path / "l", retriever="lexical", encoder=None)
    lexical.add([document("a")])
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    attempts = [
        (BadInput, lambda: store.search(["x"], -1)),
        (BadInput, lambda: store.source("x").search(-1)),
        (BadInput, lambda: store.source("x").sample(-1, np.random.default_rng(0))),
        (BadInput, lambda: store.passages([123])),
        (BadInput, lambda: store.passages([2**64])),
        (BadInput, lambda: store.remove(passages=["one"])),
        (BadInput, lambda: lexical.vectors(lexical._table.ids[:1])),
        (BadInput, lambda: make(tmp_path / "s")),
        (BadInput, lambda: make(tmp_path / "file")),
        (BadInput, lambda: make(tmp_path / "x", retriever="magic")),
        (BadInput, lambda: make(tmp_path / "x", metric="hamming")),
        (BadInput, lambda: make(tmp_path / "x", index="tree")),
        (BadInput, lambda: make(tmp_path / "x", retriever="lexical")),
        (BadInput, lambda: Datastore.open(tmp_path / "folder")),
        (BadInput, lambda: Datastore.open(tmp_path / "nowhere")),
        (BadInput, lambda: Datastore.open(tmp_path / "s").search(["x"], 1)),  # its encoder was an object
        (BadInput, lambda: Datastore.open(tmp_path / "l", encoder=StubEncoder())),
        (Mismatch, lambda: Datastore.open(tmp_path / "s", encoder=StubEncoder(salt="other"))),
    ]
    for kind, attempt in attempts:
        with pytest.raises(kind) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert "stub-16-other" in str(caught.value) and "stub-16-" in str(caught.value)
    assert not (tmp_path / "x").exists() and list((tmp_path / "folder").iterdir()) == []


def test_a_second_writer_is_refused_by_name(tmp_path):
    store = make(tmp_path / "s")
    code = (
        "import sys; from pathlib import Path; from uptake.store.remote.lease import FileLease\n"
        "with FileLease(Path(sys.argv[1])): print('held', flush=True); input()"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path / "s" / "writer.lock")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        for attempt in (lambda: store.add([document("a")]), lambda: store.remove(["a"])):
            with pytest.raises(Busy, match=f"process {other.pid} on "):
                attempt()
        other.communicate("\n")
    assert store.add([document("a")]).passages > 0
    with FileLease(tmp_path / "s" / "writer.lock"), pytest.raises(Busy):
        store.add([])


def test_a_vector_that_is_not_finite_is_refused(tmp_path):
    store = make(tmp_path / "s")
    store.add([document("a")])
    store._encoding._encoder.embed = lambda texts: np.full((len(texts), 16), np.nan, np.float32)
    with pytest.raises(BadInput, match="not finite"):
        store.add([document("b")])
    assert Datastore.open(tmp_path / "s", encoder=StubEncoder()).verify() == []


def test_a_full_disk_keeps_what_was_stored(tmp_path, monkeypatch):
    store = make(tmp_path / "s")
    store.add([document("a")])
    count = store.count

    def full(*_, **__):
        raise OSError("LanceError(IO): No space left on device (os error 28), src/lib.rs:1")

    with monkeypatch.context() as patched:
        patched.setattr(table_module.lance, "write_dataset", full)
        with pytest.raises(UptakeError, match="disk is full; free some space") as caught:
            store.add([document("b")])
        assert "\n" not in str(caught.value)
    with monkeypatch.context() as patched:
        # What has no sum does not count, and must not read as damage.
        sync, room = os.fsync, iter([True] * 4)  # for the notes that an add has begun, and no more

        def little(handle: int) -> None:
            if not next(room, False):
                raise OSError(errno.ENOSPC, "No space left")
            sync(handle)

        patched.setattr("os.fsync", little)
        with pytest.raises(UptakeError, match="disk is full"):
            store.add([document("b")])
    assert store.count == count and Datastore.open(tmp_path / "s", encoder=StubEncoder()).verify() == []
    assert store.add([document("b")]).passages > 0 and store.verify() == []


@pytest.mark.parametrize("retriever", ["dense", "hybrid"])
def test_what_is_added_whole_is_seen_whole_or_not_at_all(tmp_path, monkeypatch, retriever):
    monkeypatch.setattr(writing, "BATCH", 2)
    store, other = (make(tmp_path / name, retriever=retriever) for name in "ab")
    before, after = (
        [document("a", 1), document("b", 2)],
        [document("a", 3), document("c", 4), document("d", 5)],
    )
    store.add(before), other.add(before)
    held, seen = stored(store), []

    def come():
        for each in after:
            yield each
            seen.append(stored(Datastore.open(store.path, encoder=StubEncoder())))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.add(come(), whole=True)
    assert seen == [held] * 3 and stored(store) == held and not store.unfinished
    store.add(after, whole=True), other.add(after)
    assert stored(store) == stored(other) != held and store.verify() == []
    reopened = Datastore.open(store.path, encoder=StubEncoder())
    (found,), (wanted,) = reopened.search(["a b c"], 10), other.search(["a b c"], 10)
    assert sorted(found.ids.tolist()) == sorted(wanted.ids.tolist())


def test_a_purge_takes_what_was_written_down_and_never_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "BATCH", 1)
    store = make(tmp_path / "s")
    store.add([document("a", 1)])

    def come():
        yield Document("b", "zyxwvut canary " * 3)
        yield document("c", 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.add(come(), whole=True)
    files = lambda: b"".join(path.read_bytes() for path in store.path.rglob("*") if path.is_file())  # noqa: E731
    assert b"zyxwvut" in files()
    store.remove(["b"], purge=True)
    assert b"zyxwvut" not in files() and store.count and store.verify() == []


def test_purged_text_is_nowhere_in_the_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    store = make(tmp_path / "s")
    store.add([document(str(i)) for i in range(20)])
    store.add([Document("secret-name", "Tungsten-Marmalade " * 30, meta={"key": "secretmeta"})])
    vector = store.vectors(
        [next(k for k, p in stored(store).items() if p.document == "secret-name")]
    ).tobytes()
    store.search(["amber"], 3)
    marks = [b"ungsten", b"secret-name", b"secretmeta", vector]
    files = lambda: [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]  # noqa: E731
    assert all(any(mark in data for data in files()) for mark in marks)
    assert store.remove(["secret-name"]) > 0
    assert store.remove(purge=True) == 0
    assert not [mark for mark in marks for data in files() if mark in data]
    assert store.verify() == [] and len(store.search(["amber"], 5)[0].ids) == 5


def test_export_is_plain_parquet(tmp_path):
    import pyarrow.parquet as parquet

    store = make(tmp_path / "s")
    store.add([document(name) for name in ODD_IDS])
    assert store.export(tmp_path / "out.parquet") == store.count
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert {row["id"]: row["text"] for row in rows} == {k: p.text for k, p in stored(store).items()}
    assert np.asarray(rows[0]["vector"], np.float32).shape == (16,)
    with pytest.raises(BadInput, match="already there"):
        store.export(tmp_path / "out.parquet")


def test_a_byte_flipped_in_any_file_is_found(tmp_path):
    store = make(tmp_path / "s")
    store.add([document(str(i)) for i in range(20)])
    store.remove(["3"])
    store.search(["amber"], 3)
    assert store.verify() == []
    random = np.random.default_rng(0)
    for path in sorted((tmp_path / "s").rglob("*")):
        if not path.is_file() or path.name in ("writer.lock", "latest_version_hint.json"):
            continue
        good = path.read_bytes()
        for place in random.integers(0, len(good), 3).tolist():
            path.write_bytes(good[:place] + bytes([good[place] ^ 0x20]) + good[place + 1 :])
            faults = store.verify()
            assert faults and all("\n" not in fault for fault in faults), (path, place)
        path.write_bytes(good)
    assert store.verify() == []


def test_missing_and_broken_parts_are_told_with_their_cure(tmp_path):
    store = make(tmp_path / "s")
    store.add([document(str(i)) for i in range(20)])
    home = tmp_path / "s"
    data = next((home / "passages.lance" / "data").iterdir())
    kept = data.read_bytes()
    data.unlink()
    assert any("missing" in line and "copy" in line for line in store.verify())
    data.write_bytes(kept)
    layout = (home / "store.json").read_bytes()
    (home / "store.json").write_bytes(layout)
    spoiling.change(home / "store.json", lambda data: data.update(format="1"))
    odd = (home / "store.json").read_bytes()
    for broken in (b"", b"{", b"[]", b"{}", b"[" * 100_000, odd):
        (home / "store.json").write_bytes(broken)
        assert any("store.json" in line for line in store.verify())
        with pytest.raises(Damaged):
            Datastore.open(home)
    (home / "store.json").write_bytes(layout)
    spoiling.change(home / "store.json", lambda data: data.update(format=2))
    with pytest.raises(BadInput, match="update Uptake"):
        Datastore.open(home)
    (home / "store.json").unlink()
    with pytest.raises(Damaged, match="missing"):
        Datastore.open(home)
    (home / "store.json").write_bytes(layout)
    assert store.verify() == []
    (home / "passages.lance").rename(home / "elsewhere")
    with pytest.raises(Damaged, match="missing"):
        Datastore.open(home)


@pytest.mark.parametrize("meta", ["", "[1]", "7", "{", "[" * 100_000])
def test_a_meta_that_is_none_is_told(tmp_path, meta):
    make(tmp_path / "s", retriever="lexical", encoder=None).add([document("a")])
    lance.dataset(str(tmp_path / "s" / "passages.lance")).update({"meta": f"'{meta}'"})
    sealed_anew(tmp_path / "s")
    store = Datastore.open(tmp_path / "s")
    with pytest.raises(Damaged, match=r"passages\.lance: a passage's meta is not .*put it back") as caught:
        store.passages(store._table.ids)
    assert "\n" not in str(caught.value)


def test_a_damaged_text_index_is_mended_by_a_purge(tmp_path):
    store = make(tmp_path / "s")
    store.add([document(str(i)) for i in range(20)])
    for part in (tmp_path / "s" / "passages.lance" / "_indices").rglob("*.lance"):
        part.write_bytes(b"\x00" * part.stat().st_size)
    faults = store.verify()
    assert any("--purge" in line for line in faults)
    again = Datastore.open(tmp_path / "s", encoder=StubEncoder())
    again.remove(purge=True)
    assert again.verify() == [] and len(again.search(["amber"], 3)[0].ids) == 3


def test_a_row_stored_twice_is_told(tmp_path):
    store = make(tmp_path / "s", retriever="lexical", encoder=None)
    store.add([document("a")])
    store._table.append(store.passages(store._table.ids[:1]), None)
    sealed_anew(tmp_path / "s")
    assert any("more than once" in line for line in store.verify())


def test_sums_are_what_sha256sum_checks(tmp_path):
    store = make(tmp_path / "s")
    store.add([document("a")])
    done = subprocess.run(["sha256sum", "--quiet", "-c", "checksums.sha256"], cwd=tmp_path / "s", check=False)
    assert done.returncode == 0
    assert json.loads((tmp_path / "s" / "store.json").read_text())["format"] == 1
