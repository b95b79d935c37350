"""docs/cli.md says what the command line does."""

import importlib.util
from pathlib import Path

PROGRAM = Path(__file__).parent.parent / "docs" / "make_cli.py"


def test_the_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_cli", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf8") == module.page(), "run: python docs/make_cli.py"
