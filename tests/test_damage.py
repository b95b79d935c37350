"""Files of a store are neither changed, lost, added, cut nor exchanged unseen; and who may read them."""

import os
import shutil
import stat

import lance
import pytest

import spoiling
from cli_world import Run, World, made_fixture, refused, run_fixture, world_fixture  # noqa: F401
from stubs import StubEncoder
from test_token_view import StubKeyer
from uptake.errors import BadInput, Damaged, UptakeError
from uptake.store import Datastore
from uptake.store import inventory as inventory_module
from uptake.store import relist as relist_module
from uptake.store.inventory import NAME, TABLE, Inventory, Recorder
from uptake.store.relist import relist
from uptake.store.verify import verify_store
from uptake.text.types import Chunking, Document


def words(number):
    return Document(str(number), f"amber birch {number} cedar delta ember fjord {number}", f"group {number}")


def made(path, count=6, retriever="hybrid"):
    encoder = None if retriever == "lexical" else StubEncoder()
    store = Datastore.create(path, retriever=retriever, encoder=encoder, chunking=Chunking(64))
    store.add([words(number) for number in range(count)])
    store.remove(["2"])
    return store


def test_no_bit_of_a_deletion_file_reaches_lance(tmp_path):
    """One bit made a search hang; another asked for 137 GB."""
    made(tmp_path / "s")
    (marks,) = (tmp_path / "s" / TABLE / "_deletions").iterdir()
    good = marks.read_bytes()
    for at in range(0, len(good), 3):
        marks.write_bytes(good[:at] + bytes([good[at] ^ 1 << at % 8]) + good[at + 1 :])
        with pytest.raises(Damaged, match=r"_deletions/.*: not what was written; put it back") as caught:
            Datastore.open(tmp_path / "s", encoder=StubEncoder()).search(["amber"], 3)
        assert "\n" not in str(caught.value)


def test_a_search_of_a_damaged_store_is_one_line(run: Run, world: World) -> None:
    assert run("index", "remove", world.lexical, "pump/1").code == 0
    (marks,) = (world.lexical / TABLE / "_deletions").iterdir()
    marks.write_bytes(b"\xff" * marks.stat().st_size)
    for verb in (("search", world.lexical, "pump"), ("add", world.lexical, world.corpus)):
        refused(run("index", *verb), "not what was written")
    assert run("index", "verify", world.lexical).code == 2


@pytest.mark.parametrize("how", ["missing", "empty", "shortened", "line gone", "older", "another store's"])
def test_the_list_itself_is_checked_and_so_a_changed_group_is_found(tmp_path, how):
    store = made(tmp_path / "s", retriever="lexical")
    listed = tmp_path / "s" / NAME
    older = listed.read_bytes()
    store.add([words(9)])
    whole = listed.read_bytes()
    lance.dataset(str(tmp_path / "s" / TABLE)).update({"group": "'stranger'"}, "id > 0")
    if how == "another store's":
        made(tmp_path / "other", retriever="lexical")
    spoilt = {
        "missing": None,
        "empty": b"",
        "shortened": whole[: len(whole) // 2],
        "line gone": b"".join(whole.splitlines(keepends=True)[:-3] + whole.splitlines(keepends=True)[-1:]),
        "older": older,
        "another store's": (tmp_path / "other" / NAME).read_bytes() if how == "another store's" else b"",
    }[how]
    listed.unlink()
    if spoilt is not None:
        listed.write_bytes(spoilt)
    assert any(NAME in line for line in verify_store(tmp_path / "s"))
    with pytest.raises(Damaged, match=NAME):
        Datastore.open(tmp_path / "s")
    with pytest.raises(Damaged, match=NAME):
        store.add([words(10)])


@pytest.mark.parametrize("how", ["gone", "renamed key", "of before", "another store's", "with a note"])
def test_a_view_that_is_not_the_one_listed_is_refused_and_told(tmp_path, how):
    keyer = StubKeyer()
    for name in ("s", "other"):
        made(tmp_path / name, retriever="lexical").read_tokens(keyer)
    store, about = Datastore.open(tmp_path / "s"), tmp_path / "s" / "tokens" / "about.json"
    before = about.read_bytes()
    store.add([words(9)])
    store.read_tokens(keyer)
    if how == "gone":
        about.unlink()
    elif how == "renamed key":
        spoiling.change(
            about,
            lambda data: data["commits"][0]["bytes"].update(keyz=data["commits"][0]["bytes"].pop("keys")),
        )
    elif how == "with a note":
        spoiling.change(about, lambda data: data.update(note=1))
    else:
        about.write_bytes(
            before if how == "of before" else (tmp_path / "other/tokens/about.json").read_bytes()
        )
    lines = verify_store(tmp_path / "s")
    assert any("tokens/about.json" in line for line in lines) and not any("\n" in line for line in lines)
    with pytest.raises(Damaged, match="--fresh"):
        Datastore.open(tmp_path / "s").source("x").tokens(keyer.fingerprint)
    again = Datastore.open(tmp_path / "s")
    again.add([words(11)])  # has nothing to do with it, and does not hide it
    if how != "gone":
        assert any("tokens/about.json" in line for line in again.verify())
    again.read_tokens(keyer, fresh=True)
    assert again.verify() == []


@pytest.mark.parametrize("key", ["id", "name", "fingerprint", "dimensions", "settings", "commits", "format"])
def test_a_renamed_key_is_no_traceback_of_verify(tmp_path, key):
    made(tmp_path / "s", retriever="lexical").read_tokens(StubKeyer())
    spoiling.change(tmp_path / "s/tokens/about.json", lambda data: data.update({f"{key}_": data.pop(key)}))
    spoiling.sealed_anew(tmp_path / "s")
    (line,) = verify_store(tmp_path / "s")
    assert "tokens/about.json" in line and "\n" not in line


def test_a_file_that_came_to_it_is_told(tmp_path):
    store = made(tmp_path / "s")
    shutil.copy(
        next((tmp_path / "s" / TABLE / "data").iterdir()), tmp_path / "s" / TABLE / "data" / "more.lance"
    )
    assert any("more.lance: not in checksums.sha256" in line for line in store.verify())


@pytest.mark.parametrize("room", range(1, 9))
def test_a_writer_that_stops_anywhere_leaves_what_was_listed(tmp_path, monkeypatch, room):
    store = made(tmp_path / "s")
    before = set(store._table.ids.tolist())
    real, left = inventory_module.write_atomically, [None] * room

    def stops(path, data):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        real(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(inventory_module, "write_atomically", stops)
        try:
            store.add([words(number) for number in range(20, 24)])
            store.remove(["3"], purge=True)
        except KeyboardInterrupt:
            pass
    again = Datastore.open(tmp_path / "s", encoder=StubEncoder())
    assert [line for line in again.verify() if "unfinished" not in line] == []
    assert set(again._table.ids.tolist()) >= before - {p.id for p in Chunking(64).passages(words(3))}
    again.add([words(number) for number in range(20, 24)])
    assert again.verify() == [] and Inventory.read(tmp_path / "s").state == "complete"


def test_a_damaged_older_version_goes_with_a_purge(tmp_path):
    store = made(tmp_path / "s")
    old = tmp_path / "s" / inventory_module.manifest(1)
    old.write_bytes(b"\xff" * old.stat().st_size)
    with pytest.raises(Damaged, match="--purge STORE` drops that older version"):
        Datastore.open(tmp_path / "s", version=1)
    assert Datastore.open(tmp_path / "s", encoder=StubEncoder()).count == store.count
    store.remove(purge=True)
    assert store.verify() == [] and not old.exists()


def test_large_files_are_hashed_again_once_they_have_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    from uptake.store import cache

    monkeypatch.setattr(cache, "_SMALL", 0)
    monkeypatch.setattr(cache, "_SETTLED", -(10**18))
    hashed = []
    real = cache.sha256
    monkeypatch.setattr(cache, "sha256", lambda path: hashed.append(path) or real(path))
    made(tmp_path / "s")
    counts = []
    for _ in range(4):  # the first makes the index, the second reads it from the disk
        hashed.clear()
        Datastore.open(tmp_path / "s", encoder=StubEncoder()).search(["amber"], 2)
        counts.append(len(hashed))
    assert counts[0] > 0 and counts[2] == counts[3] == 0
    for file in (tmp_path / "s" / TABLE / "data").iterdir():
        times = file.stat()
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as an editor that hides its work would
        with pytest.raises(Damaged):
            Datastore.open(tmp_path / "s", encoder=StubEncoder()).search(["amber"], 2)


@pytest.mark.parametrize("mask", [0o077, 0o027])
def test_everything_in_a_store_has_the_mode_that_the_umask_leaves(tmp_path, mask):
    before = os.umask(mask)
    try:
        store = made(tmp_path / "s")
        store.read_tokens(StubKeyer())
        store.remove(["1"], purge=True)
    finally:
        os.umask(before)
    for path in [tmp_path / "s", *(tmp_path / "s").rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o777 if path.is_dir() else 0o666) & ~mask, path


@pytest.mark.long
def test_a_lost_list_is_made_anew_from_what_can_be_read(tmp_path, run: Run):
    store = made(tmp_path / "s")
    count = store.count
    with pytest.raises(BadInput, match="is sound"):
        relist(tmp_path / "s")
    (tmp_path / "s" / NAME).unlink()
    ran = run("index", "verify", tmp_path / "s", "--relist")
    assert ran.code == 0 and f"{count} passages" in ran.err, ran
    again = Datastore.open(tmp_path / "s", encoder=StubEncoder())
    assert again.count == count and again.add([words(12)]).passages > 0 and again.verify() == []


@pytest.mark.long
def test_what_lance_cannot_read_is_given_up(tmp_path, monkeypatch):
    made(tmp_path / "s")
    (marks,) = (tmp_path / "s" / TABLE / "_deletions").iterdir()
    good = marks.read_bytes()
    monkeypatch.setattr(relist_module, "_SECONDS", 20.0)
    refusals = 0
    for at in range(16, len(good), len(good) // 8):
        (tmp_path / "s" / NAME).unlink(missing_ok=True)
        marks.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        try:
            relist(tmp_path / "s")
        except UptakeError as error:
            refusals += 1
            assert "\n" not in str(error) and not (tmp_path / "s" / NAME).exists()
    assert refusals > 0


def test_a_list_says_whose_it_is(tmp_path):
    made(tmp_path / "s")
    with pytest.raises(Damaged, match="of another store"):
        Recorder.begin(tmp_path / "s", "0" * 32)
