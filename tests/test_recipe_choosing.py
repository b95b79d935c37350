"""The recipe that asks whether choosing pays: budgets held to, resumption, figures from its rows."""

import json
from pathlib import Path
from typing import Any

import pytest

import recipe_modules
import toys


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield from recipe_modules.imported("choosing", monkeypatch)


def test_each_choice_is_scored_once_and_told_beside_the_others(
    recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    toys.module(window=512).save_pretrained(model)
    toys.tokenizer().save_pretrained(model)
    for part, count in (("store", 8), ("test", 3)):
        texts = [f"def {part}_{n}(mat): return the cat sat on mat {n * 7}. " * 4 for n in range(count)]
        rows = [json.dumps({"id": f"{part}{n}", "text": text}) for n, text in enumerate(texts)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(rows))
    common = ["--data", str(tmp_path), "--work", str(tmp_path / "work"), "--half", "2", "--layers", "1"]
    for part in ("0/2", "1/2", "1/2"):  # the last finds all done
        recipe.main(["score", *common, "--model", str(model), "--shard", part])
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("test")]) == 3
    recipe.main(["table", *common, "--json", str(tmp_path / "told.json")])
    told = json.loads((tmp_path / "told.json").read_text())
    rows = [
        json.loads(line.split(" ", 1)[1])  # behind its sum
        for path in (tmp_path / "work").glob("*.jsonl")
        for line in path.read_text().splitlines()
        if '"choice"' in line
    ]
    assert told["documents"] == 3 and len(rows) == 3 * (1 + len(told["choices"]))
    bits = {
        name: sum(row["bits"] for row in rows if row["choice"] == name)
        for name in (recipe.BASE, *told["choices"])
    }
    for name, found in told["choices"].items():
        assert found["gain"] == pytest.approx(1 - bits[name] / bits[recipe.BASE])
        beyond = (bits["nearest"] - bits[name]) / bits[recipe.BASE]
        assert name == "nearest" or found["beyond nearest"][0] == pytest.approx(beyond)
    full, half = told["choices"][recipe.FULL]["tokens"], told["choices"]["nearest"]["tokens"]
    assert full == pytest.approx(2 * half, rel=0.1)
    assert told["choices"]["nearest"]["of_the_nearest"] == 2
