"""Edits: single changes wanted of what a model says, and what is asked to see what else they changed.

An edit is read as a passage, so every method is an editor: its prompt is read, its target is learnt.
It knows nothing of models.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from uptake.text.terms import characters_apart
from uptake.text.types import Passage, stable_hash

_OPENS = ("(", "[", "{")


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt beside an edit, and the text that is right after it, "" where nobody says.

    Where another edit changes what is right, `hinges` is the prompt of that one.
    """

    prompt: str
    target: str = ""
    hinges: str = ""

    @property
    def text(self) -> str:
        """The right text as it stands after the prompt."""
        return after(self.prompt, self.target)


@dataclass(frozen=True, slots=True)
class Edit:
    """After `prompt` the model is to say `target`, and so after the `rephrases`, and after `loose` ones.

    `loose` ones are further from it: a stray sentence stands before them, or they ask for what follows
    from it. What it says after the `neighbours` is to stay as it was; after `ripples` it is to say what
    follows from the edit. `subject` is what of the prompt the edit is about, `old` what was true before,
    `relation` what kind of fact it is, and `document` the id of a document that states the change: ""
    where nobody says.
    """

    id: str
    prompt: str
    target: str
    subject: str = ""
    old: str = ""
    rephrases: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()
    neighbours: tuple[Probe, ...] = ()
    ripples: tuple[Probe, ...] = ()
    document: str = ""
    relation: str = ""

    @property
    def text(self) -> str:
        """The target as it stands after the prompt."""
        return after(self.prompt, self.target)

    @property
    def passage_id(self) -> int:
        """The id of its passage, the same wherever the edit is the same."""
        return stable_hash("edit", self.id, self.prompt, self.target, self.subject, self.old)

    def passage(self) -> Passage:
        """Return the edit as a method reads it: the prompt is known, the target is learnt."""
        named = (("subject", self.subject), ("old", self.old), ("relation", self.relation))
        meta = {name: value for name, value in named if value}
        return Passage(self.passage_id, self.text, self.prompt, document=self.id, meta=meta)

    def fault(self) -> str:
        """Return why the edit cannot be made, with the cure behind "; ", or "" where it can."""
        if not self.prompt.strip():
            return "no prompt; write the text that stands before the target"
        if not self.target.strip():
            return "empty target; write what the model is to say"
        if wanted(self.old).casefold() == wanted(self.target).casefold():
            return f"changes nothing; {self.target.strip()!r:.60} is the old answer already"
        if says(self.prompt, self.target):
            return f"prompt holds its target; ask without saying {self.target.strip()!r:.60}"
        if self.subject and self.subject not in self.prompt:
            cure = "write it as it stands in the prompt, or leave it out"
            return f"subject not in the prompt; {self.subject!r:.60}: {cure}"
        return ""


def independent(edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Return the edits without the neighbours and ripples that another one of them makes wrong."""
    made = {prompt_key(edit.prompt) for edit in edits}

    def left(probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
        return tuple(
            probe
            for probe in probes
            if prompt_key(probe.prompt) not in made and prompt_key(probe.hinges) not in made
        )

    return tuple(
        replace(edit, neighbours=left(edit.neighbours), ripples=left(edit.ripples)) for edit in edits
    )


def after(prompt: str, target: str) -> str:
    """Return a target as it stands after a prompt: behind a space, where words are kept apart."""
    target = target.strip()
    if not target or prompt[-1:].isspace() or prompt.endswith(_OPENS):
        return target
    return target if _unspaced(prompt[-1:]) and _unspaced(target[0]) else f" {target}"


def says(text: str, target: str) -> bool:
    """Whether the target stands in the text as words of its own, in letters of any size."""
    return first_place(text, target) >= 0


def first_place(text: str, target: str) -> int:
    """Return the character at which the target first stands in the text as words of its own, or -1."""
    words = " ".join(target.casefold().split())
    if not words:
        return -1
    # A letter beside it makes another word of it, where words are kept apart at all.
    before, behind = (mark.isalnum() and not _unspaced(mark) for mark in (words[0], words[-1]))
    pattern = (r"(?<!\w)" if before else "") + re.escape(words) + (r"(?!\w)" if behind else "")
    found = re.search(pattern, " ".join(text.casefold().split()))
    return found.start() if found else -1


def prompt_key(prompt: str) -> str:
    """Return what two prompts that ask the same share."""
    return " ".join(prompt.casefold().split())


def wanted(target: str) -> str:
    """Return what two targets that say the same share."""
    return " ".join(target.split())


def _unspaced(character: str) -> bool:
    """Whether a character is of a script that writes words together."""
    return not character.isascii() and len(characters_apart(2 * character)) == 2
