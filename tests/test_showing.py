"""What files and people say is printed as text: no escape sequence works, and no line is endless."""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import spoiling
from cli_world import Run, World, made_fixture, run_fixture, world_fixture  # noqa: F401
from uptake.cli import screen
from uptake.showing import MOST, message, one_line, visible

CLI = Path(__file__).parent.parent / "src" / "uptake" / "cli"
HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202egnp\x9b31m"


def harmless(text: str) -> bool:
    return not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


@given(st.text())
def test_no_text_has_controls_and_plain_text_stays_as_it_is(text: str) -> None:
    assert harmless(visible(text)) and harmless(message(text)) and "\n" not in one_line(text)
    for plain in ("line one\n\tline two", "漢字\u3000 é", "👩\u200d🚀"):
        assert visible(plain) == plain


def test_a_line_that_is_too_long_keeps_both_ends_and_says_what_it_lost() -> None:
    shown = message(f"uptake: {'x' * 5000} is no number: use 1 to 9")
    assert shown.startswith("uptake: xxx") and shown.endswith("is no number: use 1 to 9")
    assert len(shown) < MOST + 60 and "(4,2" in shown and "characters left out)" in shown
    assert message("short") == "short"


def test_a_bad_value_is_not_repeated_whole(run: Run, world: World) -> None:
    ran = run("index", "search", world.lexical, "pump", "-k", "9" * 20_000)
    assert ran.code == 2 and ran.err.count("\n") == 1 and len(ran.err) < 1200
    ran = run("index", "info", "x" * 20_000)
    assert ran.code == 2 and ran.err.count("\n") == 1 and len(ran.err) < 1200


def test_facts_of_a_store_are_text(run: Run, world: World) -> None:
    spoiling.change(
        world.dense / "store.json",
        lambda data: data["views"]["passages"].update(encoder=HOSTILE + "y" * 5000),
    )
    spoiling.sealed_anew(world.dense)
    ran = run("index", "info", world.dense)
    assert ran.code == 0 and "owned" in ran.out and harmless(ran.out) and harmless(ran.err)
    assert "characters left out" in ran.out
    assert harmless(run("index", "info", world.dense, "--json").out)


def test_text_in_a_table_and_what_a_model_says_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table()
    table.add_column(HOSTILE)
    table.add_row(HOSTILE, style="bold")
    screen.results().print(table)
    screen.messages().print(HOSTILE, markup=False)
    screen.echo(HOSTILE)
    screen.note(HOSTILE)
    screen.facts({"name": HOSTILE})
    out, err = capsys.readouterr()
    assert out.count("owned") >= 3 and err.count("owned") == 2 and harmless(out) and harmless(err)


def test_colours_of_our_own_still_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    from rich.text import Text

    screen.results().print(Text("bold" + HOSTILE, style="bold"))
    out = capsys.readouterr().out
    assert out.startswith("\x1b[1m") and out.count("\x1b") == 2 and "\x07" not in out


@pytest.mark.parametrize("path", sorted(CLI.glob("*.py")), ids=lambda path: path.name)
def test_only_the_screen_prints(path: Path) -> None:
    if path.name == "screen.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "Console", "typer.echo", "typer.secho", "click.echo"), (
                f"{path.name}:{node.lineno} prints past screen.py"
            )
