"""Write docs/cli.md from the command line itself: `python docs/make_cli.py`; a test compares."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from uptake.cli.main import app

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# From the command line

*This page is made by `docs/make_cli.py` from the command line itself.*

Results go to standard output, everything else to standard error. The exit code is 0 on success;
2 for input that cannot be used, with one line that says why and what to do; 3 if `uptake generate` printed
the base model's answer because training diverged; 130 after Ctrl-C. Building a store, and scoring with
`--json FILE`, save their progress: the same command resumes from there.
"""


def page() -> str:
    """Return the page."""
    return "\n".join((HEAD, *_verbs(typer.main.get_command(app), "uptake"))).rstrip() + "\n"


def _verbs(command: Any, path: str) -> Iterator[str]:
    for name in command.list_commands(None):
        verb, called = command.commands[name], f"{path} {name}"
        if hasattr(verb, "commands"):
            yield f"## {called}\n\n{_prose(verb.help)}\n"
            yield from (block.replace("## ", "### ", 1) for block in _verbs(verb, called))
        else:
            yield "\n".join(_verb(verb, called))


def _verb(verb: Any, called: str) -> Iterator[str]:
    arguments = [each for each in verb.params if each.param_type_name == "argument"]
    options = [each for each in verb.params if each.param_type_name == "option" and each.name != "help"]
    usage = " ".join((called, *map(_shown, arguments), *(["[OPTIONS]"] if options else [])))
    yield f"## {called}\n\n    {usage}\n\n{_prose(verb.help)}\n"
    if arguments:
        rows = [(f"`{_shown(each)}`", _prose(each.help)) for each in arguments]
        yield _table("Argument", rows)
    panels: dict[str, list[Any]] = {}
    for each in options:
        panels.setdefault(each.rich_help_panel or "Options", []).append(each)
    for panel, members in panels.items():
        yield _table(panel, [(_names(each), _told(each)) for each in members])
    if verb.epilog:
        lines = verb.epilog.replace(r"\[", "[").splitlines()[1:]
        yield "Examples:\n\n" + "\n".join("  " + line for line in lines) + "\n"


def _table(title: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"| {title} | |", "|---|---|", *(f"| {name} | {told} |" for name, told in rows)]
    return "\n".join(lines) + "\n"


def _shown(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return (name if argument.required else f"[{name}]") + "..." * (argument.nargs != 1)


def _names(option: Any) -> str:
    value = f" {option.metavar}" if option.metavar else ""
    return ", ".join(
        f"`{name}{value}`".replace("|", r"\|") for name in sorted(option.opts, key=len, reverse=True)
    )


def _told(option: Any) -> str:
    told = _prose(option.help).replace("|", r"\|")
    if option.required:
        return f"{told} Required."
    return (
        told if option.default is None or option.default is False else f"{told} Default: `{option.default}`."
    )


def _prose(text: str | None) -> str:
    paragraphs = (text or "").strip().split("\n\n")
    return "\n\n".join(re.sub(r"\s+", " ", paragraph) for paragraph in paragraphs)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf8")
