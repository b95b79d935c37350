"""What files say in words of names that are gone: renamed, or deprecated and replaced by another.

Read are prose, docstrings and the texts of warnings, whose pieces on several lines are put together. Only
a sentence that names both the old name and the new one counts.
"""

import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass

_QUOTE = r"[`'\"]{0,2}"
_NAME = rf"{_QUOTE}([A-Za-z_][\w.]*\w)(?:\(\))?{_QUOTE}"
_CODE = r"`{1,2}([A-Za-z_][\w.]*\w)(?:\(\))?`{1,2}"
_USE = rf"(?:[Pp]lease )?[Uu]se (?:the )?{_NAME} instead"
_SENTENCES = (
    ("renamed", re.compile(rf"{_CODE}(?: \w+)? (?:is|was|has been|were) (?:now )?renamed (?:to|as) {_CODE}")),
    (
        "renamed",
        re.compile(rf"\b[Rr]enam(?:e|ed|es|ing) (?:(?:the )?\w+ )?{_CODE} (?:to|as|into|->|→) {_CODE}"),
    ),
    ("replacement", re.compile(rf"{_NAME}(?: \w+)? (?:is|are|has been) (?:now )?deprecated[.,;:]? {_USE}")),
    ("replacement", re.compile(rf"{_NAME}(?: \([^()\n]*\))?: (?:\[?)(?i:deprecated)(?:\]?)[.,;:]? {_USE}")),
    (
        "replacement",
        re.compile(rf"{_CODE}(?: \w+)? (?:is|are|has been) (?:now )?deprecated in favou?r of {_CODE}"),
    ),
)
# Between two pieces of one text in a source file: the end of one line's, and the beginning of the next.
_SEAM = re.compile(r"(['\"])\s*\n\s*[rf]?\1")
_FILLERS = {
    "this",
    "it",
    "that",
    "which",
    "field",
    "class",
    "function",
    "parameter",
    "argument",
    "method",
    "the",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """`old` is gone or going, `new` stands for it; said at `line` in the words `said`."""

    kind: str  # renamed or replacement
    old: str
    new: str
    said: str
    line: int


def notices(text: str) -> list[Notice]:
    """Return each thing a text says was renamed or replaced, once; none that it gives two new names."""
    found: dict[str, Notice] = {}
    twice = set()
    for notice in _said(text):
        known = found.setdefault(notice.old, notice)
        if known.new != notice.new:
            twice.add(notice.old)
    return [notice for old, notice in found.items() if old not in twice]


def _said(text: str) -> Iterator[Notice]:
    plain = _SEAM.sub("", text)
    for kind, sentence in _SENTENCES:
        for match in sentence.finditer(plain):
            old, new = match[1], match[2]
            if old == new or {old.lower(), new.lower()} & _FILLERS or keyword.iskeyword(new):
                continue
            place = text.find(new, max(text.find(old), 0))
            yield Notice(kind, old, new, " ".join(match[0].split()), text.count("\n", 0, max(place, 0)) + 1)
