"""Recipes as tests call them: modules of a folder that is no package, forgotten after the test."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

RECIPES = Path(__file__).parent.parent / "recipes"


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a recipe's module, then forget it and whatever it imported beside itself."""
    monkeypatch.syspath_prepend(str(RECIPES))
    yield importlib.import_module(name)
    for known, module in [*sys.modules.items()]:
        if Path(getattr(module, "__file__", None) or "/").parent == RECIPES:
            del sys.modules[known]
