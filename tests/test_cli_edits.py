"""Edits from the command line: measured by `compare --protocol edits`, bad lines named and counted."""

import json
from pathlib import Path

import pytest

import uptake
from cli_world import Run, World, made_fixture, refused, run_fixture, world_fixture, write_lines  # noqa: F401

EDITS = [
    {
        "id": f"e{n}",
        "prompt": f"the {what} is",
        "target": colour,
        "subject": what,
        "rephrases": [f"a {what} is"],
        "neighbours": [f"the old {what} is"],
    }
    for n, (what, colour) in enumerate({"cat": "red", "dog": "blue", "fish": "grey"}.items())
]
OPTIONS = ("--methods", "finetune", "--protocol", "edits")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))


def test_compare_makes_edits_then_asks(run: Run, world: World, tmp_path: Path) -> None:
    bad = [
        {"id": "b1", "prompt": "the hen is", "target": ""},
        {"id": "b2", "prompt": "the cat is", "target": "x"},
    ]
    long = {"id": "b3", "prompt": "the " * 60 + "cow is", "target": "white"}
    data = write_lines(tmp_path / "edits.jsonl", *EDITS, *bad, long)
    other = write_lines(tmp_path / "other.jsonl", {"id": "u", "text": "one fish, two fish"})
    ran = run(
        "compare", "-m", world.model, "--data", data, *OPTIONS, "--turn", 1,
        "--checkpoints", "1,2", "--answer-tokens", 6, "--locality", other, "--set", "learning_rate=1e-2",
        "--json", tmp_path / "out.json", "--html", tmp_path / "out.html",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "1 empty target" in ran.err and "1 contradicts an earlier edit" in ran.err
    assert "1 longer than the window" in ran.err
    results = uptake.read_json(tmp_path / "out.json")
    found = uptake.summary(results)
    assert found["edits"] == 3 and [at["made"] for at in found["methods"]["finetune"]["at"]] == [1, 2, 3]
    assert found["methods"]["finetune"]["kl"] > 0 and found["protocol"]["made"] == "1 at a time"
    assert "What is left, by age" in (tmp_path / "out.html").read_text()
    assert any("left out while reading" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoints", "9"], "checkpoint 9: there are 3 edits"),
        (["--answer-tokens", "2"], "use --answer-tokens 4 or more"),
        (["--contradictions", "all"], "--contradictions 'all': use one of refuse, last"),
    ],
)
def test_what_does_not_fit_is_said_in_a_line(
    run: Run, world: World, tmp_path: Path, options: list[str], message: str
) -> None:
    data = write_lines(tmp_path / "edits.jsonl", *EDITS)
    refused(run("compare", "-m", world.model, "--data", data, *OPTIONS, *options), message)


def test_the_last_edit_stands_if_asked(run: Run, world: World, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "edits.jsonl", *EDITS, {**EDITS[0], "id": "new", "target": "pink"})
    ran = run(
        "compare", "-m", world.model, "--data", data, *OPTIONS, "--contradictions", "last", "--json", "-"
    )  # fmt: skip
    assert ran.code == 0 and json.loads(ran.out)["edits"] == 3
    assert "1 replaced by a later edit" in ran.err


def test_cost_forecasts_no_edits(run: Run, world: World, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "edits.jsonl", *EDITS)
    refused(run("cost", "-m", world.model, "--data", data, *OPTIONS), "no forecast")
