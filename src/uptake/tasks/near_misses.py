"""Near misses of edits: the same words about a subject whose name differs by one word."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from uptake.errors import BadInput
from uptake.tasks.edits import Edit, Probe
from uptake.text.files import Skipped

_TRIES = 50


def near_misses(
    edits: Sequence[Edit], most: int = 2, seed: int = 0, skipped: Skipped | None = None
) -> tuple[Edit, ...]:
    """Return the edits with up to `most` near misses behind their neighbours; the seed fixes them.

    In an edit's prompt and its rephrases one word of the subject's name gives way to that of another edit's
    subject, of the same relation where there is one. The name that comes of it is no subject of these edits.
    An edit without a subject, or whose prompts do not name it, stays as it is and is counted in `skipped`.
    Raises BadInput for fewer than two edits.
    """
    if len(edits) < 2 or most < 1:
        raise BadInput(f"{len(edits)} edits, most {most}: use two edits or more, and 1 or more")
    skipped = Skipped() if skipped is None else skipped
    subjects = {edit.subject.casefold() for edit in edits if edit.subject}
    by_relation: dict[str, list[str]] = {}
    for edit in edits:
        if edit.subject:
            by_relation.setdefault(edit.relation, []).append(edit.subject)
    everyone = [edit.subject for edit in edits if edit.subject]
    made = []
    for edit in edits:
        random = Random(f"{seed} near miss {edit.id}")
        named = [text for text in (edit.prompt, *edit.rephrases) if edit.subject and edit.subject in text]
        if not named:
            skipped.add("no prompt names a subject", edit.id)
            made.append(edit)
            continue
        probes = []
        for text in named[:most]:
            for pool in (by_relation[edit.relation], everyone):
                name = _near(edit.subject, pool, subjects, random)
                if name:
                    probes.append(Probe(text.replace(edit.subject, name)))
                    break
        if not probes:
            skipped.add("no other name is near it", edit.id)
        made.append(replace(edit, neighbours=(*edit.neighbours, *probes)))
    return tuple(made)


def _near(subject: str, others: Sequence[str], taken: set[str], random: Random) -> str:
    """Return the subject with one word of another one, "" where none of many draws is a new name."""
    words = subject.split()
    for _ in range(_TRIES):
        place = random.randrange(len(words))
        theirs = random.choice(others).split()
        # A first name for a first name, a last for a last.
        word = theirs[-1] if place == len(words) - 1 else theirs[min(place, len(theirs) - 1)]
        found = " ".join([*words[:place], word, *words[place + 1 :]])
        if found.casefold() not in taken and found.casefold() != subject.casefold():
            return found
        if len(words) == 1 and (joined := f"{subject} {word}").casefold() not in taken and word != subject:
            return joined
    return ""
