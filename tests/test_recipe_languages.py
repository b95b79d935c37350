"""The recipe about languages: what is left of a page, which pages are scored, its figures from a report."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import recipe_modules
import toys

PAGE = """# Kopf { #head }

Ein Satz mit [einem Verweis](https://example.org) und `code`.

/// tip | Tipp

```Python
x = 1
```

{* ../../docs_src/a.py hl[1] *}

<div class="termy">Innen</div>

* Punkt
"""


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from recipe_modules.imported("languages", monkeypatch)


def test_of_a_page_its_prose_is_left(recipe: Any) -> None:
    assert recipe.prose(PAGE) == "# Kopf\n\nEin Satz mit einem Verweis und `code`.\n\nInnen\n\n* Punkt"


def write_docs(folder: Path, pages: int) -> None:
    for code, word in (("de", "und "), ("en", "and "), ("fr", "et ")):
        for number in range(pages):
            path = folder / code / "docs" / f"sub/p{number}.md"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"# {word}{number}\n\n" + f"the cat {word}{number} sat on the mat. " * 60)
    (folder / "en/docs/only.md").write_text("only in English")
    for code in ("de", "en", "fr"):
        (folder / code / "docs/same.md").write_text("left in English " * 200)


def test_scored_pages_are_in_the_store_in_no_language(recipe: Any, tmp_path: Path) -> None:
    write_docs(tmp_path / "docs", 5)
    asked = [
        "--docs",
        str(tmp_path / "docs"),
        "--data",
        str(tmp_path / "in"),
        "--languages",
        "de",
        "en",
        "fr",
    ]
    recipe.main(["build", *asked, "--pages", "2"])
    parts = {
        part: [json.loads(line) for line in (tmp_path / f"in/{part}.jsonl").read_text().splitlines()]
        for part in ("test", "store")
    }
    groups = {part: {each["group"] for each in some} for part, some in parts.items()}
    assert len(groups["test"]) == 2 and len(groups["store"]) == 3 and not groups["test"] & groups["store"]
    assert {each["language"] for each in parts["test"]} == {"German", "English", "French"}
    assert "only.md" not in groups["store"] and "same.md" not in groups["store"]
    with pytest.raises(SystemExit, match="has 5 pages"):
        recipe.main(["build", *asked, "--pages", "6"])


def test_figures_are_told_by_language(
    recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_docs(tmp_path / "docs", 5)
    toys.tokenizer().save_pretrained(tmp_path / "model")
    toys.module().save_pretrained(tmp_path / "model")
    asked = [
        "--docs",
        str(tmp_path / "docs"),
        "--data",
        str(tmp_path / "in"),
        "--model",
        str(tmp_path / "model"),
    ]
    recipe.main(["build", *asked, "--pages", "2", "--languages", "de", "en", "fr"])
    report, kept = tmp_path / "r.json", tmp_path / "k.json"
    recipe.main(["score", *asked, "--json", str(report), "--neighbours", "1"])
    capsys.readouterr()
    recipe.main(["table", "--report", str(report), "--json", str(kept)])
    told = capsys.readouterr().out
    recipe.main(["table", "--json", str(kept)])
    assert capsys.readouterr().out == told
    assert all(f"| {name} * | 2 |" in told for name in ("German", "English", "French"))
    assert "| worst |" in told and "ttt-nn, ia3" in told
    found = json.loads(kept.read_text())
    assert found["groups"]["by"] == "language" and "against_random" in found["methods"]["ttt-nn, lora"]
