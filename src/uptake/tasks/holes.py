"""Holes in source files: what is to be filled in, and what of the file may be read for it.

From where a hole begins to the end of its line nothing is shown, for what stands behind a name often
gives it away. The rest of the file, before and after, may be read: its support. Places of names are
found by Python's own tokenizer; it knows nothing of models.
"""

import ast
import io
import keyword
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from uptake.errors import BadInput
from uptake.text.types import Chunking, Document, Passage, passage_id, stable_hash

Kind = Literal["identifier", "line"]
Around = Literal["before", "after", "both", "none"]


@dataclass(frozen=True, slots=True)
class Hole:
    """Characters `start` to `end` of a document are to be filled in; up to `blank` nothing is shown."""

    document: Document
    start: int
    end: int
    blank: int

    @property
    def target(self) -> str:
        return self.document.text[self.start : self.end]

    @property
    def before(self) -> str:
        return self.document.text[: self.start]

    @property
    def after(self) -> str:
        return self.document.text[self.blank :]

    def support(self, around: Around = "both", size: int = 512) -> tuple[Passage, ...]:
        """Return what stands around the hole in pieces of at most `size` characters, the nearest first."""
        near: list[tuple[int, Passage]] = []
        for shown, offset in ((self.before, 0), (self.after, self.blank)):
            if around not in ("both", "before" if offset == 0 else "after"):
                continue
            for start, text in Chunking(size).split(shown):
                # The hole is no part of what is read, so both sides are measured without it.
                gap = len(shown) - start - len(text) if offset == 0 else start
                key = passage_id(self.document.id, offset + start, text)
                near.append((gap, Passage(key, text, "", self.document.id, "", offset + start)))
        return tuple(passage for _, passage in sorted(near, key=lambda pair: (pair[0], pair[1].start)))


@dataclass(frozen=True)
class Making:
    """Which holes are made of a Python file, and what is shown of it.

    `identifier`: a name that is no keyword, outside comments and texts. `line`: a line of code from
    its first character that is no space. At most `count` a file; which ones, the file's name decides.
    `prefix` characters before a hole are its context; `around` says which sides are its support, in
    pieces of at most `size` characters.
    """

    kind: Kind = "identifier"
    count: int = 10
    prefix: int = 1024
    around: Around = "both"
    size: int = 512

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.around not in get_args(Around):
            raise BadInput(
                f"kind {self.kind!r}, around {self.around!r}: use {' or '.join(get_args(Kind))}, "
                f"and {', '.join(get_args(Around))}"
            )
        if min(self.count, self.prefix) < 1:
            raise BadInput(f"count {self.count}, prefix {self.prefix}: use 1 or more of each")
        Chunking(self.size)

    def holes(self, document: Document) -> list[Hole]:
        """Return the holes of one file, in order; none where it is no Python."""
        places = list(_places(document, self.kind))
        if len(places) <= self.count:
            return places
        generator = np.random.default_rng(stable_hash("holes", self.kind, document.id))
        chosen = sorted(generator.choice(len(places), self.count, replace=False).tolist())
        return [places[number] for number in chosen]

    def context(self, hole: Hole) -> str:
        """Return what is shown with a hole: the characters right before it."""
        return hole.before[-self.prefix :]

    def support(self, hole: Hole) -> tuple[Passage, ...]:
        """Return what may be read for a hole, nearest first."""
        return hole.support(self.around, self.size)


def _places(document: Document, kind: Kind) -> Iterator[Hole]:
    """Yield every hole of this kind; a hole has something before it."""
    text = document.text
    lines = _starts(text)
    last = 0
    for token in _tokens(text):
        line, column = token.start
        start = lines[line - 1] + column
        blank = _end_of_line(text, start)
        if kind == "line":
            # The first token of a line that is code; one that goes on over lines is met once.
            fits = line > last and token.type in (tokenize.NAME, tokenize.OP) and _worded(text[start:blank])
            end = blank
        else:
            fits = token.type == tokenize.NAME and not keyword.iskeyword(token.string)
            end = start + len(token.string)
        if token.type not in (tokenize.INDENT, tokenize.DEDENT):
            last = max(last, token.end[0])
        # Tokenizers join a word and the space before it, so a hole takes that space along.
        start -= start > 0 and text[start - 1] == " "
        if fits and start > 0:
            yield Hole(document, start, end, blank)


def _worded(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _tokens(text: str) -> Iterator[tokenize.TokenInfo]:
    """Yield the tokens of a Python file; nothing where it is none, for prose would tokenize as well."""
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(text)
        yield from list(tokenize.generate_tokens(io.StringIO(text, newline="").readline))
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        return


def _starts(text: str) -> list[int]:
    """Return where each line begins, lines as the tokenizer counts them."""
    starts, at = [], 0
    for line in io.StringIO(text, newline=""):
        starts.append(at)
        at += len(line)
    return [*starts, at]


def _end_of_line(text: str, start: int) -> int:
    ends = [end for mark in "\r\n" if (end := text.find(mark, start)) >= 0]
    return min(ends, default=len(text))
