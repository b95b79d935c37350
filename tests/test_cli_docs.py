"""docs/cli.md says what the command line does, and docs/trainable.md what each kind of trainable does."""

import importlib.util
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"


def program(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date() -> None:
    module = program("make_cli")
    assert module.PAGE.read_text(encoding="utf8") == module.page(), "run: python docs/make_cli.py"


def test_the_tables_of_kinds_of_trainable_are_up_to_date() -> None:
    module = program("make_trainable")
    assert module.PAGE.read_text(encoding="utf8") == module.page(), "run: python docs/make_trainable.py"
