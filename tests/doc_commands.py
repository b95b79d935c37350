"""Finds the command lines that the documentation tells people to type.

A line of a block is complete: whoever copies it gets what it says. A command inside a sentence may leave
out what the sentence does not speak of.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md", "recipes/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# What stands for a value that the reader knows.
STANDS_FOR = {"METHOD": "fwl", "[NAME]": "ttt-nn", "NAMES": "base"}
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.M | re.S)
_INDENTED = re.compile(r"(?:^(?: {4,}|\t)\S[^\n]*\n?)+", re.M)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_SHELL = {"", "sh", "bash", "console"}
_SCRIPT = re.compile(r"\bpython ((?:recipes|bench|examples)/\w+\.py)([^';]*)")


@dataclass(frozen=True)
class Command:
    """One command: where it stands, its words after the program's name, and whether it is complete."""

    page: str
    program: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {self.program} {shlex.join(self.words)}"


def commands() -> list[Command]:
    """Return every command of every page once, `uptake` and Python scripts of this repository."""
    found = (command for page in PAGES for command in in_text(page.read_text(encoding="utf8"), named(page)))
    return list(dict.fromkeys(found))


def inline() -> Iterator[tuple[str, str]]:
    """Yield each page's name with every piece of code that stands in its sentences."""
    for page in PAGES:
        text = _INDENTED.sub("", _FENCE.sub("", page.read_text(encoding="utf8")))
        yield from ((named(page), " ".join(code.split())) for code in _INLINE.findall(text))


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def in_text(text: str, page: str = "page") -> Iterator[Command]:
    """Yield the commands of a page, those of its blocks first."""
    blocks = [body for language, body in _FENCE.findall(text) if language in _SHELL]
    prose = _FENCE.sub("", text)
    blocks += _INDENTED.findall(prose)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            yield from _of_line(line.strip(), page, True)
    for code in _INLINE.findall(_INDENTED.sub("", prose)):
        yield from _of_line(" ".join(code.split()), page, False)


def _of_line(line: str, page: str, whole: bool) -> Iterator[Command]:
    if script := _SCRIPT.search(line):
        yield _command(page, script[1], script[2], whole)
    elif line.startswith("uptake "):
        yield _command(page, "uptake", line.removeprefix("uptake "), whole)
    elif " or: uptake " in line:  # the other way to do it, behind a #
        yield _command(page, "uptake", line.partition(" or: uptake ")[2], True)


def _command(page: str, program: str, rest: str, whole: bool) -> Command:
    words = shlex.split(rest, comments=True)
    words = words[: words.index("<")] if "<" in words else words  # a file for standard input
    # A usage line, and a line with dots, leave out what is said beside it.
    left_out = {"...", "[OPTIONS]"}
    kept = tuple(word for word in words if word not in left_out)
    return Command(page, program, kept, whole and not left_out & set(words))
