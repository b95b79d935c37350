"""What a request or a session gives to read: texts and edits, each a passage under the id it is kept by."""

from collections.abc import Mapping, Sequence

from uptake.server.errors import bad
from uptake.tasks.edits import Edit
from uptake.text.types import Passage, stable_hash

Given = str | Mapping[str, str]  # an edit has a prompt and a target, and may have a subject and what was true
Named = tuple[str, Given]  # with the id it is kept under, "" where it is not


def passages(given: Sequence[Named], param: str, before: Sequence[Named] = ()) -> tuple[Passage, ...]:
    """Return what was given before and what is given now as passages.

    Raises ApiError, at its place in what is given now, for an edit that cannot be made, and for one that
    contradicts another.
    """
    found = [_passage(name, one) for name, one in before]
    told = {one["prompt"]: one["target"] for _, one in before if not isinstance(one, str)}
    for place, (name, one) in enumerate(given):
        if not isinstance(one, str):
            if fault := _edit(name, one).fault():
                raise bad(f"the edit is not made: {fault}", f"{param}.{place}")
            other = told.setdefault(one["prompt"], one["target"])
            if other != one["target"]:
                raise bad(
                    f"two edits of {one['prompt'][:60]!r} contradict each other: take back the one that says "
                    f"{other[:60]!r}",
                    f"{param}.{place}",
                )
        found.append(_passage(name, one))
    return tuple(found)


def _passage(name: str, given: Given) -> Passage:
    if isinstance(given, str):
        return Passage(stable_hash(given), given, document=name)
    return _edit(name, given).passage()


def _edit(name: str, given: Mapping[str, str]) -> Edit:
    return Edit(name, given["prompt"], given["target"], given.get("subject", ""), given.get("old", ""))


def size(given: Given) -> int:
    """Return the bytes of a text, or of an edit."""
    return len((given if isinstance(given, str) else "".join(given.values())).encode())
