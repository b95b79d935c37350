"""Markdown: a file is one document, its front matter becomes meta, its headings are places."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from uptake.text.files import SkipError
from uptake.text.reading import File, Format, Item
from uptake.text.records import document
from uptake.text.types import Document

_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_FRONT_CHARACTERS = 1 << 16  # of front matter; longer, it is text
_DEPTH = 50  # of brackets in it
_LINE = re.compile(r"[^\n]*\n?")
_FENCE = re.compile(r" {0,3}(```+|~~~+)")
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*[ \t]*\r?\n?$", re.DOTALL)
_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)[ \t]*\r?\n?$")
_HEADING_CHARACTERS = 100
_LINE_CHARACTERS = 1000  # looked at: the patterns above take the square of a line's length at worst


def read(file: File) -> Iterator[Item]:
    """Yield the one document of a file; front matter that is no YAML mapping stays in its text."""
    try:
        text = file.reading.decode(file.whole_text())
    except UnicodeDecodeError:
        raise SkipError(file.reading.not_text) from None
    meta, begins = _front_matter(text)
    text = text[begins:]
    found = document({**meta, file.reading.text_key: text}, file.name, file.reading)
    if isinstance(found, Document):
        found = replace(found, places=tuple(_headings(text)))
    yield found, file.where


def _front_matter(text: str) -> tuple[dict[str, Any], int]:
    """Return the scalars of YAML front matter as they are written, and where the text after it begins."""
    if not text.startswith("---"):
        return {}, 0
    match = _FRONT_MATTER.match(text[:_FRONT_CHARACTERS])
    if match is None or sum(map(match[1].count, "[{")) > _DEPTH:
        return {}, 0
    import yaml

    try:
        # BaseLoader makes texts, lists and mappings of them, and nothing else.
        found = yaml.load(match[1], Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}, 0
    if not isinstance(found, dict):
        return {}, 0
    # A file is named by its path: sites repeat `id: index` in every folder.
    return {
        f"front_{key}" if key in ("id", "group") else key: value
        for key, value in found.items()
        if isinstance(key, str) and isinstance(value, str) and value
    }, match.end()


def _headings(text: str) -> Iterator[tuple[int, str]]:
    """Yield each heading and where it begins; what stands in a code fence is none."""
    fence, before, before_at = "", "", 0
    for match in _LINE.finditer(text):
        line = match[0]
        mark = _FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        elif not fence and (heading := _HEADING.match(line[:_LINE_CHARACTERS])) and heading[1].strip():
            yield match.start(), _named(heading[1])
        elif not fence and before.strip() and _UNDERLINE.match(line[:_LINE_CHARACTERS]):
            yield before_at, _named(before)
            line = ""
        before, before_at = (
            ("" if mark or line.lstrip().startswith(("#", ">", "-", "*")) else line),
            match.start(),
        )


def _named(heading: str) -> str:
    return " ".join(heading.split())[:_HEADING_CHARACTERS]


format = Format((".md", ".markdown"), read)
