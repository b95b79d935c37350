"""What the command line's tests share: a toy model, documents and stores on disk, and a way to run a verb."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import toys
from uptake.cli import screen
from uptake.cli.main import main

TOPICS = ("pump", "valve", "rotor", "gauge", "boiler", "filter")


@dataclass(frozen=True)
class Ran:
    """What a run of the program left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class World:
    """Where everything lies; `model` and `data` are never written to."""

    model: Path
    other: Path
    corpus: Path
    data: Path
    lexical: Path
    dense: Path


Run = Callable[..., Ran]


def text(topic: str, number: int) -> str:
    """A few sentences about a topic, each number's a little different."""
    return " ".join(
        f"The {topic} number {number} is part {part}, and its {topic} seal {number * part} holds water back."
        for part in range(1, 9)
    )


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf8")
    return path


def save(folder: Path, seed: int) -> Path:
    toys.module(seed=seed, window=128).save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    return folder


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> Ran:
    """Run the program in this process, as a shell would."""
    monkeypatch.setattr("sys.argv", ["uptake", *map(str, arguments)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main()
    out, err = capsys.readouterr()
    return Ran(int(left.value.code or 0), out, err)


@pytest.fixture(name="run")
def run_fixture(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("COLUMNS", "100")
    # What a slow machine would say meanwhile is no part of what a command says.
    monkeypatch.setattr(screen, "_EVERY", 3600.0)
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


@pytest.fixture(name="made", scope="session")
def made_fixture(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Everything, made once; use `world`, whose stores are copies."""
    from uptake.store.datastore import Datastore
    from uptake.text import readers

    here = tmp_path_factory.mktemp("cli")
    documents = [{"id": f"{topic}/{n}", "text": text(topic, n)} for topic in TOPICS for n in range(4)]
    world = World(
        save(here / "model", 0),
        save(here / "other", 1),
        write_lines(here / "corpus.jsonl", *documents),
        write_lines(here / "test.jsonl", *({"id": f"test/{t}", "text": text(t, 7)} for t in TOPICS)),
        here / "lexical.store",
        here / "dense.store",
    )
    Datastore.create(world.lexical, retriever="lexical").add(readers.read(world.corpus))
    Datastore.create(world.dense, retriever="dense", encoder=f"lm:{world.model}").add(
        readers.read(world.corpus)
    )
    return world


@pytest.fixture(name="world")
def world_fixture(made: World, tmp_path: Path) -> World:
    """A world whose stores a test may change."""
    copies = [shutil.copytree(store, tmp_path / store.name) for store in (made.lexical, made.dense)]
    return World(made.model, made.other, made.corpus, made.data, *copies)


def refused(ran: Ran, *words: object) -> None:
    """Exit code 2, nothing on standard output, one line on standard error that has these words."""
    assert ran.code == 2, ran
    assert ran.err.count("\n") == 1 and ran.err.startswith("uptake"), ran.err
    assert "Traceback" not in ran.err and "Errno" not in ran.err
    assert [word for word in words if str(word) not in ran.err] == [], ran.err


def evaluated(run: Run, world: World, *more: object) -> Ran:
    return run("eval", "-m", world.model, "-s", world.lexical, "--data", world.data, "--suffix", "40",
               "-k", "2", "--no-leak-filter", "--limit", "2", *more)  # fmt: skip
