"""The recipe of editors on a toy: what it writes down, that it goes on, that `page` draws all together."""

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import toys
from recipe_modules import imported


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
