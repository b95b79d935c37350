"""The recipe of MAC at its smallest: it runs, goes on, and its control holds no answer."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import recipe_modules


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from recipe_modules.imported("mac", monkeypatch)


@pytest.mark.long
def test_the_recipe_runs_and_goes_on(recipe: Any, tmp_path: Path, capsys: Any) -> None:
    common = recipe.common
    tokenizer = common.toy_tokenizer(recipe.Names.syllables())
    common.save(common.small_model(tokenizer, 16, 2), tokenizer, tmp_path / "model")
    small = "--worlds 1 2 1 --passes 1 --test 6 --seeds 2 --settings width=16 slots=1 documents=4"
    places = {"model": tmp_path / "model", "work": tmp_path / "work", "out": tmp_path / "out.json"}
    asked = [*small.split(), *(f"--{name}={path}" for name, path in places.items())]
    recipe.main(asked)
    told = json.loads((tmp_path / "out.json").read_text())
    assert [row["way"] for row in told["rows"]] == 2 * list(recipe.METHODS)
    assert [row["seed"] for row in told["rows"]] == [0, 0, 0, 1, 1, 1]
    assert told["settings"]["steps"] == [1, 2, 1] and len(told["trainings"]) == 2
    for training in told["trainings"]:
        assert len(training["course"]) == 3
        assert [row["documents"] for row in training["sizes"]] == list(recipe.SIZES)
    assert "test, 6 documents" in capsys.readouterr().out
    recipe.main(asked)
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == told["rows"]


def test_other_documents_hold_no_answer(recipe: Any) -> None:
    names = recipe.Names.syllables()
    test, other = (recipe.common.world(names, 30, 2, split) for split in ("test", "valid"))
    told = recipe.told_otherwise(test, other)
    assert [each.id for each in told.documents] == [each.id for each in test.documents]
    assert told.questions == test.questions
    for name in names.pairs(30, "test", 0):
        assert any(name in each.text for each in test.documents)
        assert not any(name in each.text for each in told.documents)
