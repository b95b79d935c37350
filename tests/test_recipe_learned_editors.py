"""The recipe of trained editors on a toy: what it writes down, that it goes on, and how runs are chosen."""

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import toys
from recipe_modules import imported


@pytest.fixture(name="recipe")
def recipe_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from imported("learned_editors", monkeypatch)


@pytest.fixture(name="arguments")
def arguments_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    toys.module(window=160).save_pretrained(tmp_path / "model")
    toys.tokenizer().save_pretrained(tmp_path / "model")
    facts = [
        {
            "case_id": n, "prompt": asks.format(f"a{n}"), "target_new": "red", "subject": f"a{n}",
            "ground_truth": "blue", "rephrase_prompt": f"so a{n} is",
            "locality_prompt": other.format(f"b{n}"), "locality_ground_truth": "blue",
        }
        for n in range(160) for asks, other in [("{} is", "let {} be")[:: 1 - 2 * (n % 2)]]
    ]  # fmt: skip
    for name, text in (
        ("counterfact/counterfact-edit.json.xz", json.dumps(facts)),
        ("wikitext2/valid.txt.xz", "\n".join(f"{n} fish " * 130 for n in range(3))),
        ("wikitext2/test.txt.xz", "\n".join(f"{n} birds " * 130 for n in range(9))),
    ):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(lzma.compress(text.encode()))
    return [
        "--model", str(tmp_path / "model"), "--shared", str(tmp_path / "data"),
        "--work", str(tmp_path / "work"), "--steps", "4", "--train", "20", "--valid", "8", "--test", "20",
        "--batch", "2", "--valid-steps", "1", "--save-every", "2",
    ]  # fmt: skip


@pytest.mark.long
def test_each_editor_is_trained_measured_and_not_trained_again(
    recipe: Any, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "SEQUENCE", 3)
    gates = ["--gate", "words", "--gate", "trained(weights=untrained,size=4)"]
    settings = {
        "mend": ["--set", "blocks=1", "--set", "rank=2", "--stop-after", "2", *gates],
        "serac": ["--set", "size=4", "--memory", "6", "--editor", "2"],
        "slag": ["--set", "blocks=1", "--set", "condition=4", "--set", "hidden=4", "--set", "length=3"],
    }
    for name, own in settings.items():
        out = tmp_path / f"{name}.json"
        recipe.main([name, *arguments, *own, "--out", str(out)])
        told = json.loads(out.read_text())
        assert told["training"]["steps"] == (2 if name == "mend" else 4) and told["training"]["of"] == 4
        assert "untrained" in told["test"]
    mend, serac, slag = (json.loads((tmp_path / f"{name}.json").read_text()) for name in settings)
    assert 0 <= mend["test"]["mend"]["same"]["share"] <= 1 and mend["test"]["finetune"]["kl"] >= 0
    for way in ("mend", "finetune", "untrained"):
        assert mend["test"][f"{way} behind words"]["kl"] == 0.0 and f"{way} behind trained" in mend["test"]
    assert set(mend["mend_ahead_of_finetune"]) == {"no gate", "behind words", "behind trained"}
    assert mend["test"]["base"]["same"]["share"] == 1.0 and mend["finetune_tried"]
    assert 0 <= serac["test"]["trained"]["auc"] <= 1 and serac["memory"]["oracle behind trained"]["kl"] == 0
    assert serac["memory"]["base"]["edits"] == 6 and serac["behind"]["base"]["edits"] == 2
    assert set(serac["behind"]) >= {"gated-editor behind threshold chosen", "gated-editor"}
    assert set(serac["let_in"]) == {"valid", "test"} and len(slag["test"]["slag"]["by_place"]) == 3
    monkeypatch.setattr(recipe, "train", lambda *_: pytest.fail("a network was trained again"))
    before = (tmp_path / "slag.json").read_text()
    recipe.main(["slag", *arguments, *settings["slag"], "--out", str(tmp_path / "slag.json")])
    assert (tmp_path / "slag.json").read_text() == before
    rates = ["--editors", "", "--finetune-rates", "1e-3"]
    recipe.main(["others", *arguments, *rates, "--out", str(tmp_path / "others.json")])
    assert "finetune-0.001 behind words" in json.loads((tmp_path / "others.json").read_text())["valid"]
    settings["others"] = []
    files = [str(tmp_path / f"{name}.json") for name in settings]
    recipe.main(["merge", "--out", str(tmp_path / "whole.json"), *files])
    assert set(json.loads((tmp_path / "whole.json").read_text())["runs"]) == set(settings)
    recipe.main(["show", *files])


def test_runs_are_chosen_by_the_valid_part_and_first_edits_paired(recipe: Any, tmp_path: Path) -> None:
    def mend(name: str, success: float, same: float) -> dict[str, Any]:
        told = {"success": {"share": success}, "same": {"share": same}}
        return {"editor": "mend", "name": name, "valid": {"mend": told}}

    def slag(name: str, length: int, success: float, first: list[int]) -> dict[str, Any]:
        valid, test = {"success": {"share": success}}, {"first": first}
        settings = {"length": length}
        told = {"settings": settings, "valid": {"slag": valid}, "test": {"slag": test}}
        return {"editor": "slag", "name": name, **told}

    runs = [
        mend("high", 1.0, 0.2), mend("even", 0.8, 0.7),
        slag("ten", 10, 0.9, [1] * 30), slag("ten-bad", 10, 0.1, [0] * 30),
        slag("one", 1, 0.5, [1, 0, 0] * 10),
    ]  # fmt: skip
    for run in runs:
        (tmp_path / run["name"]).write_text(json.dumps(run))
    found = recipe.merge([tmp_path / run["name"] for run in runs])
    assert [run["name"] for run in found["runs"]["mend"]] == ["even", "high"]
    # What was merged can be merged again; a run that was made anew takes its place.
    (tmp_path / "whole").write_text(json.dumps(found))
    (tmp_path / "high").write_text(json.dumps(mend("high", 1.0, 0.9)))
    again = recipe.merge([tmp_path / "whole", tmp_path / "high"])["runs"]
    assert [run["name"] for run in again["mend"]] == ["high", "even"]
    assert [len(again[name]) for name in ("mend", "serac", "slag")] == [2, 0, 3]
    told = found["slag_first_edit"]
    assert told["difference"] == pytest.approx(2 / 3, abs=1e-3) and 0.3 < told["interval"][0] < 0.67


def test_gates_are_chosen_on_one_part_and_measured_on_another(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gates.json"
    data, model = tmp_path / "data", tmp_path / "model"
    given = ["--model", str(model), "--encoder", f"lm:{model}", "--shared", str(data), "--out", str(out)]
    for recipe in imported("gates", monkeypatch):
        monkeypatch.setattr(recipe, "WORDS", (0.0, 0.5))
        recipe.main([*given, "--valid", "8", "--test", "12"])
    found = json.loads(out.read_text())
    assert found["edits"] == {"valid": 8, "test": 12}
    for rows in (found["subject given"], found["no subject"]):
        assert set(rows) == {"words", "vectors", "vectors and words 0.5"}
        for row in rows.values():
            assert row["test"]["opens_own"]["share"] == 1.0
        for row in (rows["vectors"], rows["vectors and words 0.5"]):
            assert row["valid"]["opens_neighbours"]["share"] <= found["leak"] or row["gate"]["least"] == 0.975
    # A word that no other edit has is the subject: by words every rephrase finds its own edit.
    assert found["subject given"]["words"]["test"]["opens_tight"]["share"] == 1.0
