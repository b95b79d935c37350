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
        (["--checkpoints", "9"], "checkpoint 9: 3 edits are to be made"),
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


def test_edit_keeps_lists_answers_and_takes_back(run: Run, world: World, tmp_path: Path) -> None:
    bad = {"id": "b", "prompt": "the hen is", "target": ""}
    data, out = write_lines(tmp_path / "edits.jsonl", *EDITS, bad), tmp_path / "fixes"
    lora = ("--set", "trainable=lora(rank=2)", "--set", "learning_rate=1e-2")
    ran = run("edit", "-m", world.model, "--edits", data, "--method", "finetune", *lora, "--out", out,
              "--adapter", tmp_path / "adapter")  # fmt: skip
    assert ran.code == 0, ran.err
    assert "1 empty target" in ran.err and "made 3" in ran.err and (tmp_path / "adapter").is_dir()
    listed = run("edit", "--out", out, "--list")
    assert [line.split("\t") for line in listed.out.splitlines()] == [
        [edit["id"], edit["prompt"], edit["target"]] for edit in EDITS
    ]
    base = run("generate", "-m", world.model, "--method", "base", "--tokens", 8, "the cat is")
    changed = run("generate", "-m", world.model, "--delta", out, "--tokens", 8, "the cat is")
    assert changed.code == 0 and changed.out != base.out
    told = run("generate", "-m", world.model, "--delta", out, "--tokens", 8, "--json", "the cat is")
    assert told.json["prompt"] + told.json["text"] == changed.out.rstrip("\n")
    for number in range(3):
        assert run("edit", "-m", world.model, "--out", out, "--remove", f"e{number}").code == 0
    assert run("edit", "--out", out, "--list").out == ""
    assert run("generate", "-m", world.model, "--delta", out, "--tokens", 8, "the cat is").out == base.out


def test_deltas_are_added_scaled_subtracted_and_shown(run: Run, world: World, tmp_path: Path) -> None:
    data, out = write_lines(tmp_path / "edits.jsonl", *EDITS), tmp_path / "fixes"
    lora = ("--method", "finetune", "--set", "trainable=lora(rank=2)")
    assert run("edit", "-m", world.model, "--edits", data, *lora, "--out", out).code == 0
    one, two, none = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "none"))
    assert run("delta", "scale", one, out, "--by", "0.5").code == 0
    assert run("delta", "add", two, one, one, one, one).code == 0
    assert run("delta", "subtract", none, two, one).code == 0
    sizes = {}
    for path in (out, one, two, none):
        shown = run("delta", "info", path, "--json").json
        sizes[path] = sum(part["size"] for part in shown["parts"])
    assert sizes[one] == pytest.approx(sizes[out] / 2) and sizes[two] == pytest.approx(2 * sizes[out])
    assert sizes[none] == pytest.approx(1.5 * sizes[out], rel=1e-4)
    assert "LowRank" in run("delta", "info", out).out
    huge = tmp_path / "huge.safetensors"
    refused(run("delta", "scale", huge, out, "--by", "1e39"), "no longer finite: scale it by less")
    assert not huge.exists()
    assert run("delta", "make", world.model, world.other, tmp_path / "task.safetensors").code == 0
    tuned = run("generate", "-m", world.model, "--delta", tmp_path / "task.safetensors", "--tokens", 6, "so")
    other = run("generate", "-m", world.other, "--method", "base", "--tokens", 6, "so")
    assert tuned.out == other.out


def test_what_cannot_be_done_with_edits_is_said_in_a_line(run: Run, world: World, tmp_path: Path) -> None:
    data, out = write_lines(tmp_path / "edits.jsonl", *EDITS), tmp_path / "fixes"
    assert run("edit", "-m", world.model, "--edits", data, "--method", "gated-memory", "--out", out).code == 0
    refused(run("edit", "--out", out, "--edits", data), "--model")
    refused(run("edit", "--out", tmp_path / "none", "--list"), "edits.json")
    refused(run("edit", "-m", world.model, "--out", out, "--remove", "x"), "has no edit 'x'")
    refused(run("edit", "-m", world.other, "--out", out, "--edits", data), "load that model")
    refused(run("delta", "info", out), "changes more than weights")
    refused(run("delta", "scale", tmp_path / "o.safetensors", out, "--by", "nan"), "finite")
    refused(run("edit", "-m", world.model, "--edits", data, "--out", data), f"{data} is a file: give")
    refused(run("edit", "-m", world.model, "--out", tmp_path / "none"), "no edits for", "--edits")
    assert not (tmp_path / "none").exists()
    refused(run("generate", "-m", world.model, "--delta", tmp_path / "none", "so"), "no delta at")
    refused(run("generate", "-m", world.model, "--delta", out, "--method", "base", "so"), "leave one out")
    new = tmp_path / "new"
    refused(
        run("edit", "-m", world.model, "--edits", data, "--method", "base", "--out", new),
        "base: it reads nothing",
    )
    assert not new.exists(), "edits were stored that nothing makes"
    both = (
        "--out",
        out,
        "--edits",
        write_lines(tmp_path / "more.jsonl", {**EDITS[0], "prompt": "its cat is", "id": "m", "subject": ""}),
    )
    told = run("edit", "-m", world.model, *both, "--adapter", tmp_path / "adapter")
    refused(told, f"made 1; {out} holds 4 edits, and there is no adapter: ")
    assert len(run("edit", "--out", out, "--list").out.splitlines()) == 4
    twice = run("edit", "-m", world.model, "--out", out, "--remove", "e0", "--remove", "e0")
    assert twice.code == 0 and twice.err.startswith("took back 1: e0\n")


def test_what_is_no_delta_is_named_with_what_to_do(run: Run, world: World, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "edits.jsonl", EDITS[0])
    lora = ("--method", "finetune", "--set", "trainable=lora(rank=2)", "--set", "learning_rate=1e-2")
    adapter, zero = tmp_path / "adapter", tmp_path / "zero.safetensors"
    ran = run(
        "edit", "-m", world.model, "--edits", data, *lora, "--out", tmp_path / "f", "--adapter", adapter
    )
    assert ran.code == 0 and f"{tmp_path / 'f'} holds 1 edit" in ran.err and "1 edits" not in ran.err
    for command in (("generate", "-m", world.model, "--delta", adapter, "so"), ("delta", "info", adapter)):
        refused(run(*command), "is a peft adapter")
    for command in (
        ("generate", "-m", world.model, "--delta", world.model, "so"),
        ("delta", "info", world.model),
    ):
        refused(run(*command), "is a model: `uptake delta make BASE")
    same = run("delta", "make", world.model, world.model, zero)
    assert same.code == 0 and "the two models are the same" in same.err
