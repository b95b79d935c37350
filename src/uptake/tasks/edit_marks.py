"""What is asked once edits are made, and how what a model says is marked.

Marks are of text that the model wrote by itself, up to its own stop: no length comes from a target. An
answer is right if it begins with the target. Nothing here knows a model.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from uptake.tasks.edits import Edit, first_place

Kind = Literal["edit", "rephrase", "loose", "neighbour", "ripple", "denied", "distracted"]
_LEADING = re.compile(r"^[\s\"'“”‘’`*_(\[]+")
_SMALL = re.compile(r"(?:The|An?|In|On|At|For|If|It|There)\b")
_ARTICLE = re.compile(r"^(?:the|a|an)\s+(?=\S)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Asking:
    """One prompt of one edit: `target` is what is right after it, `old` what the edit replaces.

    After a `leaks` prompt the edit's own target is wrong: it is another fact's, or denied.
    """

    edit: str
    place: int  # of the edit in the order made, from 1
    kind: Kind
    number: int  # among the prompts of its kind
    prompt: str
    target: str
    old: str = ""

    @property
    def leaks(self) -> bool:
        return self.kind in ("neighbour", "denied", "distracted")


def askings(edit: Edit, place: int, most: int) -> Iterator[Asking]:
    """Yield what is asked of an edit, at most so many prompts of each kind beside its own.

    `denied` is its prompt behind "It is false that", `distracted` the edit, stated, before a neighbour.
    """
    yield Asking(edit.id, place, "edit", 0, edit.prompt, edit.target, edit.old)
    for number, prompt in enumerate(edit.rephrases[:most]):
        yield Asking(edit.id, place, "rephrase", number, prompt, edit.target, edit.old)
    for number, prompt in enumerate(edit.loose[:most]):
        yield Asking(edit.id, place, "loose", number, prompt, edit.target, edit.old)
    for number, probe in enumerate(edit.ripples[:most]):
        yield Asking(edit.id, place, "ripple", number, probe.prompt, probe.target)
    for number, probe in enumerate(edit.neighbours[:most]):
        yield Asking(edit.id, place, "neighbour", number, probe.prompt, edit.target)
    if most and _is_statement(edit.prompt):
        yield Asking(edit.id, place, "denied", 0, f"It is false that {_within(edit.prompt)}", edit.target)
        if edit.neighbours:
            stated = f"{edit.prompt}{edit.text}. {edit.neighbours[0].prompt}"
            yield Asking(edit.id, place, "distracted", 0, stated, edit.target)


def starts_with(said: str, target: str, old: str = "") -> bool:
    """Whether an answer begins with the target, next to which no letter stands, and not with the old one.

    Letters of any size are the same; quotes, brackets, marks of emphasis and an article may stand before it.
    An `old` one that begins where the target does counts if it is longer: "New York City" is not "New York".
    """
    told, wanted = _bare(said), _bare(target)
    if not wanted or not told.startswith(wanted):
        return False
    behind = told[len(wanted) : len(wanted) + 1]
    if behind.isalnum() and wanted[-1].isalnum():
        return False
    before = _bare(old)
    return not (len(before) > len(wanted) and before.startswith(wanted) and told.startswith(before))


def leaks(said: str, target: str) -> bool:
    """Whether an answer to another question says an edit's target."""
    return first_place(said, target) >= 0


def same_words(said: str, other: str) -> bool:
    """Whether two answers are the same text, white space aside."""
    return said.split() == other.split()


def _bare(text: str) -> str:
    """Return a text in small letters, single spaces, without what may stand before an answer."""
    flat = " ".join(_LEADING.sub("", text).split())
    return _LEADING.sub("", _ARTICLE.sub("", flat)).casefold()


def _within(prompt: str) -> str:
    """Return a sentence as it goes on after others: a name keeps its capital, a small word does not."""
    return f"{prompt[0].lower()}{prompt[1:]}" if _SMALL.match(prompt) else prompt


def _is_statement(prompt: str) -> bool:
    """Whether a prompt is the beginning of one sentence, which can be denied."""
    return not re.search(r"[?:\n]|\.\s", prompt.strip())
