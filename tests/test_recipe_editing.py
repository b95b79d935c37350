"""The recipe of editors on a toy: what it writes down, that it goes on, that `page` draws all together."""

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
from recipe_modules import imported
from uptake.methods.contract.method import Context, Evidence
from uptake.text.types import Found, Passage


@pytest.fixture(name="editing")
def editing_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from imported("editing", monkeypatch)


@pytest.fixture(name="arguments")
def arguments_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    toys.module(window=160).save_pretrained(tmp_path / "model")
    toys.tokenizer().save_pretrained(tmp_path / "model")
    facts = [
        {
            "case_id": n, "prompt": f"a{n} is", "target_new": "red", "subject": f"a{n}",
            "ground_truth": "blue",
            "rephrase_prompt": f"so a{n} is", "locality_prompt": f"b{n} is", "locality_ground_truth": "blue",
        }
        for n in range(40)
    ]  # fmt: skip
    for name, text in (
        ("counterfact/counterfact-edit.json.xz", json.dumps(facts)),
        ("wikitext2/valid.txt.xz", "\n".join(f"{n} fish " * 130 for n in range(3))),
    ):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).write_bytes(lzma.compress(text.encode()))
    return [
        "--model", str(tmp_path / "model"), "--shared", str(tmp_path / "data"),
        "--work", str(tmp_path / "work"),
        "--out", str(tmp_path / "editing.json"), "--edits", "3", "--part", "train",
    ]  # fmt: skip


@pytest.mark.long
def test_editors_are_measured_once_and_drawn_together(
    editing: Any, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(editing, "UNRELATED", 1)
    editors = ("--editors", "controls,gated-memory")
    editing.main(["run", *arguments, *editors])
    (run,) = json.loads((tmp_path / "editing.json").read_text())["runs"].values()
    assert set(run["editors"]) == {"oracle", "other-edit", "gated-memory"} and run["edits"] == 3
    assert run["editors"]["gated-memory"]["kl"] == 0
    before = (tmp_path / "editing.json").read_bytes()
    monkeypatch.setattr(editing, "measure", lambda *_: pytest.fail("an editor was measured again"))
    editing.main(["run", *arguments, *editors])
    assert (tmp_path / "editing.json").read_bytes() == before
    monkeypatch.undo()
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(editing, "KL_TRIES", 1)
    editing.main(["equal-kl", *arguments, "--as", "gated-memory"])
    (run,) = json.loads((tmp_path / "editing.json").read_text())["runs"].values()
    assert run["editors"]["finetune at the KL of gated-memory"]["kl"] > 0
    editing.main(["page", *arguments])
    page = Path(capsys.readouterr().out.splitlines()[-1]).read_text()
    assert "oracle" in page and "gated-memory" in page
    assert "Success against drift" in page and "What is left, by age" in page
    editing.main(["graph", *arguments, "--editors", "gated-memory"])
    (graph,) = json.loads((tmp_path / "editing.json").read_text())["graphs"].values()
    assert graph["gated-memory"]["beliefs"] == 3
    drawn = Path(capsys.readouterr().out.splitlines()[-1]).read_text()
    assert "Beliefs under gated-memory" in drawn and "<svg" in drawn


@pytest.mark.long
def test_the_oracle_alone_says_what_it_says_among_the_controls(
    editing: Any, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editing, "UNRELATED", 1)
    editing.main(["oracle", *arguments])
    figures = tmp_path / "editing.json"
    (run,) = json.loads(figures.read_text())["runs"].values()
    alone = run["editors"]["oracle"]
    assert set(run["editors"]) == {"oracle"} and run["edits"] == 3
    monkeypatch.setattr(editing, "measure", lambda *_: pytest.fail("it was asked again"))
    editing.main(["oracle", *arguments])
    monkeypatch.undo()
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    figures.unlink()
    editing.main(["run", *arguments, "--editors", "controls"])
    (run,) = json.loads(figures.read_text())["runs"].values()
    told = ("success", "tight", "forced", "success_interval", "tight_interval")
    assert {name: run["editors"]["oracle"].get(name) for name in told} == {
        name: alone.get(name) for name in told
    }
    assert run["editors"]["oracle"]["same"] is not None and alone["same"] is None


def test_a_thousand_edits_are_told_by_four_figures(editing: Any) -> None:
    told = {"success": 0.9, "tight": 0.6, "leak": 0.01, "bits_change": 0.002}
    runs = {
        "few": {"edits": 100, "editors": {"memit": told}},
        "many": {"edits": 1000, "editors": {"oracle": {"tight": 0.5}, "other-edit": {}, "memit": told}},
    }
    assert editing.thousand(runs) == [
        {
            "method": "memit", "run": "many", "success": 0.9, "tight_paraphrase": 0.6,
            "oracle_tight_paraphrase": 0.5, "leak": 0.01, "bits_change": 0.002,
        }
    ]  # fmt: skip


def test_a_name_that_no_editor_has_is_one_line(editing: Any, arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="use controls, finetune"):
        editing.main(["run", *arguments, "--editors", "memti"])


def test_settings_are_searched_one_after_another(editing: Any) -> None:
    asked = list[list[str]]()

    def score(settings: list[str]) -> float:
        asked.append(settings)
        return {"a=1": 0.1, "a=2": 0.5}.get(settings[0], 0) + (settings[-1] == "b=7")

    search = editing.editing_search
    assert search.best({"a": ("1", "2", "3"), "b": ("7", "8")}, score) == ["a=2", "b=7"]
    assert asked == [["a=1", "b=7"], ["a=2", "b=7"], ["a=3", "b=7"], ["a=2", "b=7"], ["a=2", "b=8"]]
    good = {"success": 1.0, "tight": 0.5, "same": 0.7, "bits_change": 0.01}
    assert search.score(good) == pytest.approx(0.75 * 0.85)
    assert search.score({**good, "tight": None}) == pytest.approx(0.85)
    assert search.score({**good, "bits_change": 0.04}) == pytest.approx(0.75 * (0.7 + 0.25) / 2)
    assert search.score({"success": 0.0, "tight": 0.0, "same": 1.0, "bits_change": 0.0}) == 0


def test_every_setting_of_the_search_is_the_editors(editing: Any) -> None:
    for name, axes in editing.editing_search.SEARCH.items():
        for setting, values in axes.items():
            for value in values:
                editing.EDITORS[name].spec([f"{setting}={value}"], 8)


def test_while_settings_are_looked_for_a_value_is_found_once(
    editing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, lm = editing.editing_search.editor, toys.lm()
    searched, search = list[Any](), editor.search_all
    monkeypatch.setattr(editor, "search_all", lambda *asked: searched.append(asked[2]) or search(*asked))
    few = ("values.steps=2", "values.contexts=1", "ordinary.tokens=64", "ordinary.length=32", "depth=0")
    passages = tuple(Passage(number, "x", f"so {number} is") for number in (1, 2))
    evidence = Evidence(Found(passages, (0.0, 0.0)))

    def change(*settings: str) -> Any:
        method = editing.EDITORS["memit"].spec([*few, *settings]).method
        (state,) = method.adapt([method.init(lm)], lm, [evidence], Context())
        (found,) = state.delta.differences.values()
        return found

    plain = [change(f"strength={strength}") for strength in (1, 9)]
    assert len(searched) == 4
    with editing.editing_search.values_kept():
        kept = [change(f"strength={strength}") for strength in (1, 9)]
        assert len(searched) == 6
        change("values.steps=3")
        assert len(searched) == 8
    assert all(torch.equal(*pair) for pair in zip(plain, kept, strict=True))
    change()
    assert len(searched) == 10


@pytest.mark.long
def test_what_is_chosen_on_valid_is_what_runs(
    editing: Any, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editing, "UNRELATED", 1)
    few = {"memit": {"depth": ("0.0",), "strength": ("0.1", "1.0")}}
    monkeypatch.setattr(editing.editing_search, "SEARCH", few)
    more = ("--editors", "memit", "--together", "3", "--batch", "8")
    editing.main(["tune", *arguments, *more])
    whole = json.loads((tmp_path / "editing.json").read_text())
    tuned = whole["tuned"]["memit"]
    assert [each["settings"] for each in tuned["tried"]] == [
        ["depth=0.0", "strength=0.1"],
        ["depth=0.0", "strength=1.0"],
    ]
    assert tuned["chosen"] in [each["settings"] for each in tuned["tried"]] and not whole["runs"]
    editing.main(["run", *arguments, *more])
    editing.main(["run", *arguments, *more, "--brief"])
    runs = json.loads((tmp_path / "editing.json").read_text())["runs"]
    whole, brief = (runs[f"3 train edits, at once{how}"]["editors"]["memit"] for how in ("", ", brief"))
    assert whole["settings"]["depth"] == 0.0 and brief["denied"] is None is not whole["denied"]
    assert all(brief[name] == whole[name] for name in ("success", "tight", "same", "leak", "kl"))
    with pytest.raises(SystemExit, match="chosen on valid"):
        editing.main(["tune", *arguments, *more, "--part", "test"])


@pytest.mark.long
def test_an_editor_that_could_not_be_asked_is_not_in_the_figures(
    editing: Any, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uptake.evaluation.protocols import edits

    monkeypatch.setattr(editing, "UNRELATED", 1)

    def full(*_: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(edits, "reply_to", full)
    with pytest.raises(SystemExit, match=r"gated-memory: .* prompts were not answered, .*CUDA out of memory"):
        editing.main(["run", *arguments, "--editors", "gated-memory"])
    assert not (tmp_path / "editing.json").exists()
