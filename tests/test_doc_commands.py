"""Every command that the documentation tells people to type is one: its options exist, its values fit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer.main

import doc_commands
import doc_scripts
from doc_commands import ROOT, STANDS_FOR, Command
from uptake.cli import inputs
from uptake.cli.main import app
from uptake.evaluation.tune import Recipe

COMMANDS = doc_commands.commands()
# "uptake report 2" is the format of a report.
OURS = [each for each in COMMANDS if each.program == "uptake" and each.words != ("report", "2")]
SCRIPTS = sorted({command.program for command in COMMANDS if command.program != "uptake"})
# Commands that check their options, then set the number of threads, then begin.
CHECKS_FIRST = ("eval", "compare", "stream", "generate", "edit", "tune", "train", "cost", "adapt")
UNFINISHED = ("MissingParameter", "NoArgsIsHelpError", "BadOptionUsage")
# Options of other programs that the pages speak of.
OF_OTHERS = {
    "--batch_size": "lm-evaluation-harness",
    "--use_cache": "lm-evaluation-harness",
    "--enable-lora": "vLLM and SGLang",
    "--lora": "llama.cpp",
    "--lora-init-without-apply": "llama.cpp",
    "--generate": "ray get-auth-token",
    "--build-arg": "podman build",
    "--format": "podman build",
    "--isolation": "podman build",
    "--stop-timeout": "podman run",
}


class Checked(Exception):
    """All options have been checked; now the work would begin."""


def parsed(command: Any, name: str, words: list[str], parent: Any = None) -> Any:
    """Return the context of the innermost command, its options parsed, nothing of it run."""
    context = command.make_context(name, words, parent=parent)
    rest = [*context._protected_args, *context.args]
    if not hasattr(command, "resolve_command") or not rest:
        return context
    inner, found, rest = command.resolve_command(context, rest)
    return parsed(found, inner, rest, context)


def fault(command: Command, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a command up to where its work would begin; return what is wrong with it, "" for nothing."""

    def reached(*_: object) -> NoReturn:
        raise Checked

    monkeypatch.setattr(inputs, "set_threads", reached)
    monkeypatch.setattr(inputs, "given_text", lambda text: text)  # would read standard input for "-"
    monkeypatch.setattr(inputs, "recipe", lambda path: path and Recipe("ttt-nn", 5, ("learning_rate=1e-4",)))
    try:
        words = [STANDS_FOR.get(word, word) for word in command.words]
        context = parsed(typer.main.get_command(app), "uptake", words)
        if command.whole and context.info_name in CHECKS_FIRST and not context.params.get("show"):
            context.command.invoke(context)
    except Checked:
        return ""
    except Exception as error:
        if type(error).__name__ == "Exit" or (not command.whole and type(error).__name__ in UNFINISHED):
            return ""
        return f"{command}\n  {error.format_message() if hasattr(error, 'format_message') else error}"
    return ""


def test_there_are_commands_to_check() -> None:
    assert len(OURS) > 100 and len(SCRIPTS) > 20
    assert {"README.md", "docs/index.md", "docs/cli.md", "docs/methods/mac.md"} <= {
        each.page for each in OURS
    }


@pytest.mark.parametrize("page", sorted({command.page for command in OURS}))
def test_every_command_line_of_a_page_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [wrong for each in OURS if each.page == page and (wrong := fault(each, monkeypatch))] == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("uptake compare -m M --data D --metods base", "No such option: --metods"),
        ("uptake compare -m M --methods base", "Missing option '--data'"),
        ("uptake compare -m M --data D --methods base,tt-nn", "did you mean 'ttt-nn'"),
        (
            "uptake compare -m M --data D --methods online --set rate=1 --protocol running",
            "no setting 'rate'",
        ),
        ("uptake compare -m M --data D --methods base --within fast", "--within"),
        ("uptake tune -m M -s S --data D --out R --budget soon", "--budget"),
        ("uptake edit -m M --out fixes --edits E --contradictions ask", "--contradictions"),
        ("uptake stream -m M --questions Q --epsilon -1", "epsilon"),
        ("uptake index add", "Missing argument"),
        ("uptake indx build S C", "No such command 'indx'"),
    ],
)
def test_a_wrong_line_would_be_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = doc_commands.in_text(f"So:\n\n    {line}   # a note\n")
    assert words in fault(command, monkeypatch)
    if "Missing" not in words:
        (command,) = doc_commands.in_text(f"```sh\n{line} \\\n    --seed 1\n```\n")
        assert fault(command, monkeypatch)


@pytest.fixture(scope="module", name="found")
def found_fixture() -> dict[str, list[str]]:
    """What is wrong with the lines of each script, found in a process of its own.

    What a recipe defines would stay in this one, and be named among the settings of other tests.
    """
    path = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, doc_scripts.__file__, *SCRIPTS],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_of_the_docs_takes_its_options(found: dict[str, list[str]], script: str) -> None:
    assert found[script] == []


def options_of(command: Any) -> set[str]:
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own.union(*(options_of(inner) for inner in getattr(command, "commands", {}).values()))


def test_options_that_sentences_name_exist() -> None:
    known = options_of(typer.main.get_command(app)) | {"--help"} | OF_OTHERS.keys()
    sources = [ROOT / "Makefile"]
    for folder in ("bench", "recipes", "examples", "tools"):
        sources += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh")]
    for source in sources:
        known |= set(re.findall(r"[\"\s](--[a-z][\w-]+)", source.read_text(encoding="utf8")))
    named = {
        (page, option)
        for page, code in doc_commands.inline()
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)
    }
    assert len(named) > 150
    assert sorted((page, option) for page, option in named if option not in known) == []


def slug(heading: str) -> str:
    """Return the anchor that GitHub and mkdocs make of a heading."""
    shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", shown.replace("`", "")).strip().replace(" ", "-")


def test_every_link_leads_somewhere() -> None:
    def prose(page: Path) -> str:
        return re.sub(r"```.*?```", "", page.read_text(encoding="utf8"), flags=re.S)

    dead = []
    for page in [*doc_commands.PAGES, ROOT / "CHANGELOG.md"]:
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if re.match(r"\w+:", link):
                continue
            if not target.exists():
                dead.append(f"{doc_commands.named(page)}: {link}")
            elif anchor and anchor not in map(slug, re.findall(r"^#+ (.+)$", prose(target), re.M)):
                dead.append(f"{doc_commands.named(page)}: no heading {link}")
    assert dead == []
