"""A store in object storage, as an emulator of S3 gives it: the same store, and one writer at a time."""

import threading

import pytest

import buckets
from cli_world import run_fixture  # noqa: F401
from stubs import Letters, StubEncoder
from test_store import document
from uptake.errors import BadInput, Busy, UptakeError
from uptake.store import Datastore
from uptake.store.layout import TABLE
from uptake.store.passages.table import Table
from uptake.store.remote import lease as lease_module
from uptake.store.remote.lease import ObjectLease, lease
from uptake.store.remote.objects import ChangedError, locate
from uptake.text.types import Document

QUERIES = ["amber birch north", "knoll larch", "绿色按钮"]


@pytest.fixture(scope="module")
def options():
    with buckets.emulator() as options:
        yield options


@pytest.fixture
def place(options, request):
    return locate(f"s3://bucket/{request.node.name}/s.store", options)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))


def made(path, **settings):
    store = Datastore.create(path, encoder=StubEncoder(), **settings)
    store.add(
        [*(document(str(number)) for number in range(4)), Document("zh", "点击绿色按钮即可重新启动水泵。")]
    )
    return store


def found(store):
    return [(one.ids.tolist(), one.scores.tolist()) for one in store.search(QUERIES, 5)]


@pytest.mark.long
def test_a_store_is_the_same_as_in_a_folder(place, options, tmp_path):
    """Made, opened by its URI, added to, searched by both retrievers, removed from, purged, exported."""
    far, near = made(place), made(tmp_path / "s")
    assert found(far) == found(near) and far.verify() == []
    again = Datastore.open(str(place), encoder=StubEncoder(), storage_options=options)
    for store in (again, near):
        assert store.add([document("more"), document("1")]).already > 0
        store.remove(["2"])
    assert found(again) == found(near) and again.verify() == []
    assert found(Datastore.open(place, encoder=StubEncoder(), version=far.version)) == found(far)
    again.remove(["3"], purge=True)
    with pytest.raises(UptakeError):
        Datastore.open(place, encoder=StubEncoder(), version=far.version)
    assert again.verify() == [] and again.info()["bytes"] > 0
    assert again.export(tmp_path / "rows.parquet") == again.count
    (place / "checksums.sha256").write_bytes((place / "checksums.sha256").read_bytes().replace(b"a", b"b"))
    assert again.verify()


def test_what_a_crash_left_of_a_new_store_makes_room_and_nothing_else_does(place):
    Table.create(place / TABLE, 16)  # and store.json is not there yet
    store = made(place, retriever="dense")
    with pytest.raises(BadInput, match="already there"):
        made(place)
    assert Datastore.open(place, encoder=StubEncoder()).count == store.count
    (place.parent / "other.store" / "thesis.tex").write_bytes(b"years of work")
    with pytest.raises(BadInput, match="already there"):
        made(place.parent / "other.store")
    assert [name for name, _ in (place.parent / "other.store").sizes()] == ["thesis.tex"]
    with pytest.raises(BadInput, match="not a datastore"):
        Datastore.open(place.parent / "nothing")
    with pytest.raises(BadInput, match="mapped from files"):
        store.read_tokens(Letters())
    assert "secret" not in repr(place) + str(place)


def test_what_is_no_place_is_refused(options):
    for wrong in ("ftp://bucket/s", "s3://bucket", "s3:///s", "s3://bucket/a/../b"):
        with pytest.raises(BadInput, match="give a folder, or s3"):
            locate(wrong, options)
    with pytest.raises(BadInput, match="URIs"):
        locate("folder", options)
    with pytest.raises(BadInput, match="bogus"):
        Datastore.open("s3://bucket/s", storage_options=options | {"aws_bogus": "1"})


def test_one_writer_at_a_time(place, monkeypatch):
    """A living writer keeps others out; a dead one does after a while no more, and learns of it."""
    store = made(place)
    monkeypatch.setattr(lease_module, "_RENEWED", 0.05)
    monkeypatch.setattr(lease_module, "_LIFE", 60.0)
    with lease(place / "writer.lock"), pytest.raises(Busy, match=r"process \d+ on .* is writing"):
        store.add([document("another")])
    store.add([document("another")])  # given back
    monkeypatch.setattr(ObjectLease, "_renew", lambda self: None)  # the process stands still
    monkeypatch.setattr(lease_module, "_LIFE", 0.2)
    with lease(place / "writer.lock") as slow:
        slow.check()
        with lease(place / "writer.lock") as quick:
            quick.check()
            with pytest.raises(Busy):
                slow.check()
        with pytest.raises(Busy):
            slow.check()
    assert store.remove(["another"]) > 0  # what the slow one gave back was not its own


def test_the_command_line_takes_uris_and_options_from_the_environment(options, run, tmp_path, monkeypatch):
    for name, value in options.items():
        monkeypatch.setenv(name.upper() if name.startswith("aws_") else f"AWS_{name.upper()}", value)
    (tmp_path / "text.txt").write_text("amber birch north")
    store = "s3://bucket/by-command.store"
    for _ in range(2):
        told = run("index", "build", store, tmp_path / "text.txt", "--retriever", "lexical", "--json")
        assert told.code == 0 and told.json["passages"] == 1
    assert "amber" in run("index", "search", store, "birch").out
    assert run("index", "verify", store).code == 0


def test_of_several_at_once_one_gets_the_lease(place):
    tags, lost = [], []

    def tries():
        try:
            tags.append((place / "lock").write_if(b"mine", {}))
        except ChangedError:
            lost.append(1)

    threads = [threading.Thread(target=tries) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(tags), len(lost)) == (1, 3)


def test_an_answer_that_was_lost_is_no_other_writer_and_what_was_given_back_is_not_taken_again(place):
    with lease(place / "writer.lock") as held:
        held._tag = {"e_tag": '"of before the last write"'}
        held.check()
    held._over.wait = lambda seconds: False  # the moment to renew came just before the end
    held._renew()
    assert (place / "writer.lock").read_bytes() == b""
