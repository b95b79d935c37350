"""The recipe that trains NPLM and Transformer-N: equal sizes, resumption, figures, and models of its own."""

import json
from pathlib import Path
from typing import Any

import pytest

import recipe_modules
import uptake
from uptake.lm.causal import Causal


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield from recipe_modules.imported("nplm", monkeypatch)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    recipe_modules.pile_of_cats(tmp_path)
    return [
        "train", "--pile", str(tmp_path / "pile"), "--tokenizer", str(tmp_path / "tokenizer"),
        "--size", "toy",
        "--window", "32", "--warm-up", "2", "--batch", "3", "--test", "12", "--every", "2",
    ]  # fmt: skip


def test_it_goes_on_where_it_stopped_and_its_networks_are_models(
    recipe: Any, command: list[str], tmp_path: Path
) -> None:
    def run(name: str, *more: str) -> dict[str, Any]:
        recipe.main(
            [*command, "--work", str(tmp_path / name), "--out", str(tmp_path / f"{name}.json"), *more]
        )
        return json.loads((tmp_path / f"{name}.json").read_text())["networks"]

    whole = run("whole", "--steps", "4")
    run("parts", "--steps", "2")
    again = run("parts", "--steps", "4")
    base = whole["transformer"]
    for name in recipe.NAMES:
        assert again[name]["windows"] == whole[name]["windows"]
        assert whole[name]["course"][-1]["valid"] < whole[name]["course"][0]["valid"]
        assert abs(whole[name]["parameters"] / base["parameters"] - 1) < 0.01
        # Bits over bytes, and the gain over the first, from the windows themselves.
        own, other = (sum(bits for _, bits in each["windows"]) for each in (whole[name], base))
        assert whole[name]["gain"] == pytest.approx(1 - own / other, abs=1e-4)
        share = whole[name]["bits_per_byte"] / base["bits_per_byte"]
        assert share == pytest.approx(own / other, abs=1e-4)
    model = uptake.load(str(tmp_path / "whole/nplm"))
    assert isinstance(model, Causal) and model.module.config.reach == 31


def test_fresh_text_says_which_method_gains(recipe: Any, command: list[str], tmp_path: Path) -> None:
    recipe.main(
        [*command, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "a.json"), "--steps", "2"]
    )
    data = tmp_path / "fresh"
    data.mkdir()
    for part, count in (("store", 6), ("test", 2)):
        texts = [f"def {part}_{n}(mat): return cat sat on the mat number {n * 3}. " * 3 for n in range(count)]
        lines = [json.dumps({"id": f"{part}{n}", "text": text}) for n, text in enumerate(texts)]
        (data / f"{part}.jsonl").write_text("\n".join(lines))
    out = tmp_path / "b.json"
    recipe.main(
        ["methods", "--data", str(data), "--work", str(tmp_path / "work"), "--out", str(out), "--k", "2",
         "--documents", "2", "--methods", "base", "ttt-nn", "in-context"]
    )  # fmt: skip
    told = json.loads(out.read_text())
    assert set(told["networks"]) == set(recipe.NAMES)
    for found in told["networks"].values():
        assert found["ttt-nn"]["gain"] != 0 and found["base"]["bits_per_byte"] > 0
