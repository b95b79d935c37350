"""Stores that are missing, damaged or another's, a full disk, Ctrl-C: told in a line, and nothing is lost."""

import errno
import os
from pathlib import Path

import pytest

from cli_world import (  # noqa: F401
    Run,
    World,
    evaluated,
    made_fixture,
    refused,
    run_fixture,
    world_fixture,
    write_lines,
)

FULL = OSError(errno.ENOSPC, "No space left on device")


def test_k_beyond_the_store_and_k_of_none(run: Run, world: World) -> None:
    assert evaluated(run, world, "-k", "100000").code == 0
    assert evaluated(run, world, "-k", "0").code == 0
    assert len(run("index", "search", world.lexical, "pump", "-k", "5000", "--json").json) == 4
    for k in ("0", "-1"):
        refused(run("index", "search", world.lexical, "pump", "-k", k), f"-k {k}: use 1 or more")


def test_paths_that_are_no_store(run: Run, world: World, tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", world.data, world.model):
        for verb in (("search", path, "pump"), ("info", path), ("verify", path), ("add", path, world.corpus)):
            refused(run("index", *verb), "not a datastore", "uptake index build")
        refused(run("eval", "-m", world.model, "-s", path, "--data", world.data), "not a datastore")
    for path in (world.data, world.model):
        refused(run("index", "build", path, world.corpus, "--retriever", "lexical"), "already there")


def test_a_store_of_another_encoder(run: Run, world: World) -> None:
    refused(
        run("index", "search", world.dense, "pump", "--encoder", f"lm:{world.other}"), "made with encoder"
    )
    asked = ("index", "build", world.dense, world.corpus, "--retriever", "dense")
    refused(run(*asked, "--encoder", f"lm:{world.other}"), "made with encoder")
    refused(run(*asked, "--metric", "l2"), "is there with metric cosine, not l2")
    assert run("index", "search", world.dense, "pump").code == 0


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--retriever", "lexica"), "did you mean lexical?"),
        (("--metric", "cos"), "did you mean cosine?"),
        (("--index", "hnsw"), "use one of auto, flat, ivf"),
        (("--chunk", "3"), "use 16 to 1000000"),
        (("--encoder", "no/such/folder"), "--retriever lexical"),
        (("--encoder", "./nothing"), "--encoder lm:MODEL"),
        (("--encoder", "lm:./nothing", "--device", "toaster"), "device 'toaster'"),
        (("--dtype", "float31"), "dtype 'float31'"),
        (("--retriever", "lexical", "--encoder", "x"), "takes no encoder"),
    ],
)
def test_bad_ways_to_build(run: Run, world: World, tmp_path: Path, given, words) -> None:
    refused(run("index", "build", tmp_path / "s", world.corpus, *given), words)
    assert not (tmp_path / "s").exists()


def test_the_default_encoder_names_the_ways_without_a_hub(run: Run, world: World, tmp_path: Path) -> None:
    ran = run("index", "build", tmp_path / "s", world.corpus)
    refused(ran, "all-MiniLM-L6-v2", "--encoder DIR", "lm:MODEL", "--retriever lexical")


def test_ids_full_of_quotes(run: Run, world: World, tmp_path: Path) -> None:
    odd = "it's \"so\" `odd` '; DROP TABLE passages; --"
    more = write_lines(tmp_path / "odd.jsonl", {"id": odd, "text": "an odd zeppelin"})
    assert run("index", "add", world.lexical, more).code == 0
    assert run("index", "search", world.lexical, "zeppelin", "--json").json[0]["document"] == odd
    removed = run("index", "remove", world.lexical, odd, "--json").json
    assert (removed["passages_removed"], removed["passages"]) == (1, 24)
    refused(run("index", "remove", world.lexical, odd), "holds nothing of")
    refused(run("index", "remove", world.lexical), "nothing to remove")
    refused(run("index", "remove", world.lexical, "--passage", "9" * 30), "2**63")
    refused(run("index", "remove", world.lexical, "--passage", "x"), "--passage 'x'")


def test_text_cannot_command_the_terminal(run: Run, world: World, tmp_path: Path) -> None:
    text = "\x1b[2J zeppelin \x1b]0;owned\x07 [bold]"
    more = write_lines(tmp_path / "x.jsonl", {"id": "odd", "text": text})
    run("index", "add", world.lexical, more)
    shown = run("index", "search", world.lexical, "zeppelin").out
    assert "\x1b" not in shown and "\x07" not in shown and "[bold]" in shown


def test_a_damaged_index_is_made_anew(run: Run, world: World) -> None:
    before = run("index", "search", world.dense, "the pump", "--json").json
    files = [path for path in Path(os.environ["UPTAKE_CACHE"]).rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(b"damaged" * 20)
    after = run("index", "search", world.dense, "the pump", "--json")
    assert after.json == before
    assert after.err.startswith("note: ") and "making it again" in after.err and after.err.count("\n") == 1


def test_damaged_stores_are_told_of(run: Run, world: World) -> None:
    data = max((world.dense / "passages.lance" / "data").iterdir(), key=lambda path: path.stat().st_size)
    whole = data.read_bytes()
    data.write_bytes(whole[: len(whole) // 2])
    told = run("index", "verify", world.dense)
    assert told.code == 2 and data.name in told.out and told.err.count("\n") == 1
    assert run("index", "verify", world.dense, "--json").json["faults"]
    refused(run("index", "search", world.dense, "pump"), "not what was written; put it back from a copy")
    data.write_bytes(whole)
    (world.dense / "store.json").write_text("{")
    refused(run("index", "info", world.dense), "store.json", "put it back from a copy")
    assert run("index", "verify", world.dense).code == 2


def test_exports_that_cannot_be_written(run: Run, world: World, tmp_path: Path) -> None:
    refused(run("index", "export", world.lexical, tmp_path / "no" / "x.parquet"), "there is no folder")
    refused(run("index", "export", world.lexical, tmp_path), "is a folder")
    refused(run("index", "export", world.lexical, world.corpus), "already there")


# A full disk, and Ctrl-C


def test_a_disk_full_of_passages(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = write_lines(tmp_path / "more.jsonl", {"id": "new", "text": "a zeppelin"})

    def full(*_: object, **__: object) -> None:
        raise OSError("LanceError(IO): No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("uptake.store.passages.table.lance.write_dataset", full)
        refused(run("index", "add", world.lexical, more), "the disk is full", "nothing stored is lost")
    assert run("index", "info", world.lexical, "--json").json["documents"] == 24
    assert run("index", "verify", world.lexical).code == 0
    assert run("index", "add", world.lexical, more).code == 0


@pytest.mark.parametrize("place", ["uptake.report.summary.write_whole", "uptake.report.page.write_whole"])
def test_a_disk_full_of_reports(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    with monkeypatch.context() as patched:
        patched.setattr(place, lambda *_: (_ for _ in ()).throw(FULL))
        ran = evaluated(run, world, "--json", out, "--html", page)
    assert ran.code == 2 and "the disk is full" in ran.err.splitlines()[-1]
    journal = Path(f"{out}.journal")
    assert journal.is_file()
    ran = evaluated(run, world, "--json", out, "--html", page)
    assert ran.code == 0 and "2 of 2 are done" in ran.err and page.is_file() and not journal.exists()


def test_a_disk_full_of_journal(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    synced = 0
    fsync = os.fsync

    def full_after_two(handle: int) -> None:
        nonlocal synced
        synced += "out.json.journal" in str(Path(f"/proc/self/fd/{handle}").readlink())
        if synced > 1:  # one query, and no more
            raise FULL
        fsync(handle)

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full_after_two)
        ran = evaluated(run, world, "--batch", "1", "--json", out)
    refused(ran, "out.json.journal", "No space left on device", "give the same command again")
    assert "are done" in evaluated(run, world, "--batch", "1", "--json", out).err


def test_ctrl_c(run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("uptake.api.compare", pressed)
        ran = evaluated(run, world)
        assert (ran.code, ran.err) == (
            130,
            "uptake: interrupted; nothing was saved: use --json FILE to be able to resume\n",
        )
    with monkeypatch.context() as patched:
        patched.setattr("uptake.lm.loading.load", pressed)
        ran = run("generate", "-m", world.model, "--method", "base", "x")
        assert (ran.code, ran.err) == (130, "uptake: interrupted\n")
    with monkeypatch.context() as patched:
        patched.setattr("uptake.store.passages.writing.StoreWriter.tidy", pressed)
        more = write_lines(tmp_path / "more.jsonl", {"id": "new", "text": "a zeppelin"})
        ran = run("index", "add", world.lexical, more)
        assert ran.code == 130 and "what was stored so far is safe" in ran.err
    assert run("index", "add", world.lexical, more, "--json").json["passages_already_there"] == 1
    assert run("index", "search", world.lexical, "zeppelin", "--json").json[0]["document"] == "new"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 GB")]
)
def test_too_little_memory(run: Run, world: World, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr("uptake.lm.loading.load", lambda *_: (_ for _ in ()).throw(error))
    refused(run("generate", "-m", world.model, "--method", "base", "x"), "out of memory")
