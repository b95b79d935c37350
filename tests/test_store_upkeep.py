"""What a store clears away, and when: drafts of the dead, versions long outlived."""

import os
import time
import warnings
from dataclasses import replace
from datetime import timedelta

import pytest

import killing
from stubs import StubEncoder
from uptake.errors import BadInput, Damaged
from uptake.store import Datastore
from uptake.store.inventory import TABLE, Inventory, manifest
from uptake.store.passages import index_cache as bases_module
from uptake.store.passages import writing as writing_module
from uptake.store.passages.index_cache import IndexCache
from uptake.store.remote.lease import FileLease


def make(path):
    return Datastore.create(path, encoder=StubEncoder(), chunking=killing.CHUNKING)


def test_a_draft_goes_once_nobody_holds_it(tmp_path):
    left, held, young, stranger = (
        tmp_path / name for name in (f".s-{'a' * 32}", f".s-{'b' * 32}", f".s-{'c' * 32}", ".s-notes")
    )
    for folder in (left, held, young, stranger):
        folder.mkdir()
    (left / "writer.lock").write_text("process 1 on nowhere\n")
    with FileLease(held / "writer.lock"):
        store = make(tmp_path / "s")
        assert {path.name for path in tmp_path.iterdir()} == {"s", held.name, young.name, stranger.name}
    long_ago = time.time() - 2 * 86_400
    os.utime(young, (long_ago, long_ago))
    Datastore.open(tmp_path / "s", encoder=StubEncoder())
    assert {path.name for path in tmp_path.iterdir()} == {"s", stranger.name}
    assert store.add(killing.documents(0)[:3]).passages > 0


def test_a_draft_that_is_a_link_or_whose_lock_is_one_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / f".s-{'a' * 32}").symlink_to(tmp_path / "folder")
    (tmp_path / f".s-{'b' * 32}").mkdir()
    (tmp_path / f".s-{'b' * 32}" / "writer.lock").symlink_to(tmp_path / "mine")
    make(tmp_path / "s")
    assert len(list(tmp_path.iterdir())) == 5 and (tmp_path / "mine").read_text() == "precious"


def test_a_version_goes_a_week_after_another_took_its_place(tmp_path, monkeypatch):
    store = make(tmp_path / "s")
    store.add(killing.documents(0)[:40])
    old = store.version
    reader = Datastore.open(tmp_path / "s", encoder=StubEncoder())
    store.remove([killing.name(3)])
    assert Datastore.open(tmp_path / "s", version=old).count == reader.count
    assert killing.held(tmp_path / "s", killing.mark(3)) and len(reader.passages(reader._table.ids)) > 0
    assert store._table.outlived(timedelta(days=7)) == []
    monkeypatch.setattr(writing_module, "_RETAINED", timedelta(0))
    store.add(killing.documents(0)[50:60])
    with pytest.raises(BadInput, match="is not stored"):
        Datastore.open(tmp_path / "s", version=old)
    assert store.verify() == [] and Datastore.open(tmp_path / "s", encoder=StubEncoder()).verify() == []
    assert len(list((tmp_path / "s" / "passages.lance" / "_versions").glob("*.manifest"))) == 1
    assert all((tmp_path / "s" / name).exists() for name in Inventory.read(tmp_path / "s").sums)


def test_a_death_while_an_old_index_is_deleted_leaves_no_half_of_it(tmp_path, monkeypatch):
    store = make(tmp_path / "s")
    for number in range(4):
        store.add(killing.documents(0)[20 * number : 20 * number + 20])
        store.search(["word1"], 3)
    assert len(IndexCache(store.layout.uid, {}).folders()) == 2
    # A half: of every tree that is deleted only the first file goes.
    monkeypatch.setattr(
        bases_module.shutil,
        "rmtree",
        lambda folder, **_: [file.unlink() for file in list(folder.rglob("*"))[:1] if file.is_file()],
    )
    store.add(killing.documents(0)[100:150])
    store.search(["word1"], 3)
    store.remove(purge=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Datastore.open(tmp_path / "s", encoder=StubEncoder()).search(["word1"], 3)[0].ids) == 3


def test_a_store_inside_a_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "notes.jsonl").write_text("{}")
    for inside in ("s", "a/b/s"):
        with pytest.raises(BadInput, match=r"notes.jsonl is a file, nothing can lie in it; give another"):
            make(tmp_path / "notes.jsonl" / inside)


def test_what_a_dead_writer_left_half_written_is_not_summed_and_is_purged(tmp_path):
    """Lance writes into files of a name that begins with a dot, then renames them."""
    store = make(tmp_path / "s")
    store.add([killing.document(1, 0)])
    torn = tmp_path / "s" / TABLE / "data" / ".tmpAbCdEf"
    torn.write_bytes(b"half of a text")
    store.add([killing.document(2, 0)])
    torn.write_bytes(b"half of a text, and more of it")  # its writer lives after all
    assert store.verify() == []
    store.remove(purge=True)
    assert not torn.exists() and store.verify() == []


def test_who_reads_a_version_that_was_purged_is_told_so(tmp_path):
    store = make(tmp_path / "s")
    store.add(killing.documents(0)[:40])
    readers = [Datastore.open(tmp_path / "s", encoder=StubEncoder()) for _ in range(4)]
    version, ids = store.version, store._table.ids.tolist()
    readers[3].search(["word1"], 3)  # one that has checked its files already
    store.remove([killing.name(3)], purge=True)
    asked = (
        lambda: readers[0].passages(ids[:3]),
        lambda: readers[1].search(["word1"], 3),
        lambda: readers[2].searched("lexical").search(["word1"], 3),
        lambda: readers[3].passages(ids[:3]),
        lambda: readers[0].vectors(ids[:3]),
        lambda: list(readers[0]._table.stream()),
    )
    for ask in asked:
        with pytest.raises(BadInput, match=f"version {version} was purged while it was open; open the store"):
            ask()
    going = Inventory.read(tmp_path / "s")
    replace(going, state="deleting", sums=going.sums | {manifest(version): "0" * 64}).write(tmp_path / "s")
    with pytest.raises(BadInput, match="was purged while it was open"):  # half way through a purge
        readers[0].passages(ids[:3])
    going.write(tmp_path / "s")
    # What is damaged is damaged, and not said to be purged.
    reader = Datastore.open(tmp_path / "s", encoder=StubEncoder())
    for file in (tmp_path / "s" / TABLE / "data").iterdir():
        file.unlink()
    with pytest.raises(Damaged):
        reader.passages(ids[:1])
