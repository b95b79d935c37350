"""Recipes as tests call them: modules of a folder that is no package, forgotten after the test."""

import importlib
import json
import lzma
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import toys

RECIPES = Path(__file__).parent.parent / "recipes"


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a recipe's module, then forget it and whatever it imported beside itself."""
    monkeypatch.syspath_prepend(str(RECIPES))
    yield importlib.import_module(name)
    for known, module in [*sys.modules.items()]:
        if Path(getattr(module, "__file__", None) or "/").parent == RECIPES:
            del sys.modules[known]


def write_pile(folder: Path, parts: Mapping[str, Sequence[str]]) -> None:
    """Write a pile of one domain, `pile/wikipedia`, and beside it a toy model with its `tokenizer`."""
    toys.tokenizer().save_pretrained(folder / "tokenizer")
    toys.module().save_pretrained(folder / "tokenizer")
    domain = folder / "pile/wikipedia"
    domain.mkdir(parents=True)
    for part, texts in parts.items():
        rows = [json.dumps({"id": f"{part}{n}", "text": text}) for n, text in enumerate(texts)]
        with lzma.open(domain / f"{part}.jsonl.xz", "wt") as file:
            file.write("\n".join(rows))


def pile_of_cats(folder: Path) -> None:
    """Write a pile of a few short texts that differ by numbers alone."""
    counts = {"train": 12, "valid": 6, "test": 6}
    text = "the {part} cat number {n} sat on mat {mat}. "
    write_pile(
        folder,
        {
            part: [4 * text.format(part=part, n=n, mat=7 * n) for n in range(count)]
            for part, count in counts.items()
        },
    )
