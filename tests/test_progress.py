"""Somebody who waits is told how far the work is: at least every ten seconds, and of every method."""

import time
from pathlib import Path

import pytest

import toys
from uptake import api
from uptake.cli import screen
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.store import Datastore
from uptake.text.types import Chunking, Document


def test_lines_go_on_while_one_step_takes_its_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(screen, "_EVERY", 0.01)
    said = ""
    with screen.progress("scoring") as update:
        update(0, 0, "learning rate of ttt-nn: 2 rates tried")
        while said.count("2 rates tried") < 2:
            time.sleep(0.01)
            said += capsys.readouterr().err
        update(1, 3, "a.py: ttt-nn")
        while "a.py" not in said:
            time.sleep(0.01)
            said += capsys.readouterr().err
    assert "scoring: learning rate of ttt-nn: 2 rates tried after " in said
    assert "scoring: 1 of 3, a.py: ttt-nn after " in said
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().err == ""  # nothing is told once it is over


def test_the_rate_and_every_method_of_every_query_are_told(tmp_path: Path) -> None:
    store = Datastore.create(tmp_path / "s", retriever="lexical", chunking=Chunking(100))
    store.add([Document(f"d{n}", f"the cat number {n} sat on the mat, and a dog ran " * 4) for n in range(4)])
    texts = [Document(name, "the cat sat on the mat and a dog ran up a hill") for name in ("a", "b")]
    told = list[tuple[int, int, str]]()
    api.compare(
        toys.lm(),
        texts,
        ["base", "in-context", "ttt-nn"],
        store=store,
        k=1,
        settings=["trainable=top(layers=1)"],
        protocol=PerQuery(20, 20),
        progress=lambda *each: told.append(each),
    )
    chosen = [name for done, total, name in told if not total]
    assert chosen and all(name.startswith("learning rate of ttt-nn: ") for name in chosen)
    left = told[len(chosen) :]
    methods = ("base", "in-context", "ttt-nn")
    assert left[0] == (0, 2, "")
    assert left[1:5] == [*((0, 2, f"a: {name}") for name in methods), (1, 2, "a")]
    assert left[5:] == [*((1, 2, f"b: {name}") for name in methods), (2, 2, "b")]
