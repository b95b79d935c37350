"""The recipe of fast weights beside their base: one setting for all domains, figures from its own rows."""

import json
from pathlib import Path
from typing import Any

import pytest

import recipe_modules
import toys


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield from recipe_modules.imported("fwl_mixture", monkeypatch)


def test_every_way_reads_the_same_and_an_interrupted_run_goes_on(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    toys.module(window=2048).save_pretrained(model)
    toys.tokenizer().save_pretrained(model)
    for part, count in (("after", 2), ("valid", 1), ("test", 2)):
        texts = [f"def {part}_{n}(mat): return the cat sat on mat {n * 7}. " * 20 for n in range(count)]
        rows = [json.dumps({"id": f"{part}{n}", "text": text}) for n, text in enumerate(texts)]
        (tmp_path / f"{part}.jsonl").write_text("\n".join(rows))
    command = [
        "--model", str(model), "--fresh", str(tmp_path), "--characters", "600", "--first", "1", "--then", "1",
        "--test", "2", "--paces", "0.3", "1.0", "--rates", "1e-3", "--top-rates", "1e-3", "--work",
        str(tmp_path / "work"), "--out", str(tmp_path / "told.json"),
    ]  # fmt: skip
    recipe.main(command)
    first = json.loads((tmp_path / "told.json").read_text())
    calls: list[object] = []
    monkeypatch.setattr("fwl.score", lambda *given: calls.append(given))
    recipe.main(command)
    assert not calls and json.loads((tmp_path / "told.json").read_text()) == first
    found = first["domains"]["fresh"]
    assert set(found["ways"]) == {recipe.BASE, recipe.ALONE, recipe.MIXED, recipe.DYNAMIC, recipe.TOP}
    base = sum(found["ways"][recipe.BASE]["bits"])
    assert found["documents"] == 2 and found["ways"][recipe.BASE]["bits_per_byte"] == pytest.approx(
        base / (2 * 600)
    )
    for way, own in found["ways"].items():
        assert own["gain"] == pytest.approx(1 - sum(own["bits"]) / base)
        assert way == recipe.BASE or own["bits"] != found["ways"][recipe.BASE]["bits"]
    # A mixture of three shares, half of the weight on the base at first.
    pairs = zip(found["ways"][recipe.MIXED]["bits"], found["ways"][recipe.BASE]["bits"], strict=True)
    assert all(own <= plain + 2.59 for own, plain in pairs)
    assert first["chosen"].keys() == found["ways"].keys() - {recipe.BASE}


def test_a_given_layer_is_read_in_longer_segments_beside_its_control(recipe: Any, tmp_path: Path) -> None:
    model = tmp_path / "model"
    toys.module(window=2048).save_pretrained(model)
    toys.tokenizer().save_pretrained(model)
    for part in ("after", "valid", "test"):
        text = f"def {part}(mat): return the cat sat on mat. " * 20
        (tmp_path / f"{part}.jsonl").write_text(json.dumps({"id": part, "text": text}))
    common = ["--model", str(model), "--fresh", str(tmp_path), "--characters", "600", "--test", "1"]
    sizes = ["--top-rates", "1e-3", "--rates", "1e-3", "--paces", "1.0"]
    recipe.main([
        *common, *sizes, "--first", "0", "--then", "1", "--ways", recipe.ALONE,
        "--work", str(tmp_path / "one"), "--out", str(tmp_path / "one.json"),
    ])  # fmt: skip
    layer, ways = tmp_path / "one" / "then.safetensors", [recipe.MIXED, recipe.STILL]
    recipe.main([
        *common, *sizes, "--layer", str(layer), "--segment", "300", "--context", "200", "--ways", *ways,
        "--work", str(tmp_path / "two"), "--out", str(tmp_path / "two.json"),
    ])  # fmt: skip
    assert not list((tmp_path / "two").glob("*.safetensors")), "nothing is trained where a layer is given"
    found = json.loads((tmp_path / "two.json").read_text())["domains"]["fresh"]["ways"]
    assert set(found) == {recipe.BASE, *ways}
    base = sum(found[recipe.BASE]["bits"])
    beyond = (sum(found[recipe.STILL]["bits"]) - sum(found[recipe.MIXED]["bits"])) / base
    assert found[recipe.MIXED][f"beyond {recipe.STILL}"][0] == pytest.approx(beyond) and beyond
