"""What changed between two versions of a package: edits of what a model that read the first may say.

An update is a prompt, its new end and its old one, other ways to begin the same statement, and neighbours:
statements of the same sort about the same definition, its class or its package that are as true after as
before. Both sides are read from the sources by `ast`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fresh_text.choose import File
from fresh_text.definitions import Definition, definitions
from fresh_text.wording import statements
from uptake.text.files import Skipped
from uptake.text.types import stable_hash

NEIGHBOURS = 5
MOST_ALIKE = 3  # of one and the same change in a package
LONGEST = 60  # characters of an answer, old or new
SMALLEST_BODY = 400  # letters of a syntax tree: below it two functions do the same by chance

_STATED = {"default": "default", "returns": "returns", "base": "base"}
_STAND_IN = re.compile(r"(?i)unset|sentinel|missing|no_default|^_[A-Z_]+$")
Key = tuple[str, str, str]  # kind, name, detail


@dataclass(frozen=True, slots=True)
class Update:
    """One change: a statement of `kind` on `name` and `detail` ended in `old` and now ends in `new`."""

    package: str
    file: str  # the later version's document
    kind: str
    name: str
    detail: str
    old: str
    new: str
    passage: str
    line: int
    neighbours: tuple[tuple[str, str], ...]  # prompt, and how it ends in both versions

    @property
    def id(self) -> str:
        """Names it, the same in every build."""
        return f"{self.file}#{self.line}:{self.name}:{self.kind}:{self.detail}".rstrip(":")

    @property
    def document(self) -> str:
        """The id of its passage as a document."""
        return f"{self.file}#{self.line}"

    @property
    def statements(self) -> list[str]:
        """Every way to begin the statement; the first is the prompt."""
        return statements(self.kind, package=self.package, name=self.name, detail=self.detail)


@dataclass(frozen=True, slots=True)
class _Version:
    """What each name of a version stands for, those that stand for several things left out."""

    named: dict[tuple[str, bool], tuple[str, File, Definition]]

    @classmethod
    def of(cls, files: Sequence[tuple[str, File]]) -> "_Version":
        each = [
            (key, file, found)
            for key, file in files
            if file.kind == "source"
            for found in definitions(file.text)
            if not any(part.startswith("_") for part in found.name.split("."))
        ]
        times = Counter((found.name, found.is_class) for _, _, found in each)
        return cls(
            {
                (found.name, found.is_class): (key, file, found)
                for key, file, found in each
                if times[found.name, found.is_class] == 1
            }
        )


def updates(
    package: str, before: Sequence[tuple[str, File]], after: Sequence[tuple[str, File]], skipped: Skipped
) -> list[Update]:
    """Return what changed from the files of one version to those of a later one, (document id, file)."""
    old, new = _Version.of(before), _Version.of(after)
    same: dict[Key, str] = {}
    changed: list[tuple[Key, str, str, tuple[str, bool]]] = []
    for sort in sorted(old.named.keys() & new.named.keys()):
        was, now = old.named[sort][2], new.named[sort][2]
        one, other = _statements(was), _statements(now)
        for key in one.keys() & other.keys():
            if one[key][1] == other[key][1]:
                same[key] = other[key][0]
            else:
                changed.append((key, one[key][0], other[key][0], sort))
        changed += [(key, a, b, sort) for key, a, b in _parameters(was, now)]
    changed += _renamed(old, new)
    neighbours = _Neighbours(package, same)
    found: list[Update] = []
    alike: Counter[tuple[str, str, str]] = Counter()
    for key, was_said, now_said, sort in sorted(changed, key=lambda each: stable_hash(*each[0])):
        where, file, definition = new.named[sort]
        reason = _unusable(key, was_said, now_said, definition)
        alike[key[0], was_said, now_said] += not reason
        if not reason and alike[key[0], was_said, now_said] > MOST_ALIKE:
            reason = f"one and the same change more than {MOST_ALIKE} times"
        if reason:
            skipped.add(reason, f"{where}: {key[1]}")
            continue
        passage = f"# {package}, {file.path}: {definition.name}\n{definition.source}"
        near = neighbours.of(key, now_said)
        found.append(Update(package, where, *key, was_said, now_said, passage, definition.line, near))
    return sorted(found, key=lambda update: update.id)


def _statements(definition: Definition) -> dict[Key, tuple[str, str]]:
    """Return what a definition states once, as it is said and as it is compared."""
    keys = Counter((stated.kind, stated.detail) for stated in definition.stated)
    owner = definition.name.rpartition(".")[0].rpartition(".")[2]
    return {
        # A method that returns its own class may say so by name or by Self.
        (stated.kind, definition.name, stated.detail): (
            stated.answer,
            re.sub(r"\bSelf\b", owner, stated.value),
        )
        for stated in definition.stated
        if stated.kind in _STATED and keys[stated.kind, stated.detail] == 1
    }


def _parameters(was: Definition, now: Definition) -> Iterator[tuple[Key, str, str]]:
    """Yield where another parameter now comes right after one: a name that changed in its place."""
    for place in range(min(len(was.parameters), len(now.parameters)) - 1):
        if was.parameters[: place + 1] != now.parameters[: place + 1]:
            return
        one, other = was.parameters[place + 1], now.parameters[place + 1]
        if one != other:
            yield ("parameter", now.name, now.parameters[place]), one, other


def _renamed(old: _Version, new: _Version) -> Iterator[tuple[Key, str, str, tuple[str, bool]]]:
    """Yield functions that do to the letter what one of another name did that is gone."""
    gone = _by_body(old, new)
    for body, names in _by_body(new, old).items():
        if len(names) == 1 and len(gone.get(body, ())) == 1:
            yield ("renamed", gone[body][0], ""), gone[body][0], names[0], (names[0], False)


def _by_body(version: _Version, other: _Version) -> Mapping[str, list[str]]:
    found = defaultdict(list)
    for (name, is_class), (_, _, definition) in version.named.items():
        if not is_class and (name, is_class) not in other.named and len(definition.body) >= SMALLEST_BODY:
            found[definition.body].append(name)
    return found


def _unusable(key: Key, was: str, now: str, definition: Definition) -> str:
    if was == now:
        return "the same in other words"
    if max(len(was), len(now)) > LONGEST:
        return f"longer than {LONGEST} characters"
    if key[0] == "default" and (_STAND_IN.search(was) or _STAND_IN.search(now)):
        return "a stand-in for no value"
    shown = re.search(rf"(?<!\w){re.escape(now)}(?!\w)", definition.source + definition.name)
    return "" if shown else "beyond what is shown of it"


class _Neighbours:
    """Statements that two versions share, the nearest to a changed one first."""

    def __init__(self, package: str, same: Mapping[Key, str]) -> None:
        self._package, self._same = package, same
        self._kinds: dict[str, list[Key]] = defaultdict(list)
        for key in sorted(same):
            if key[0] in _STATED and 0 < len(same[key]) <= LONGEST:
                self._kinds[key[0]].append(key)

    def of(self, key: Key, new: str) -> tuple[tuple[str, str], ...]:
        """Return neighbours whose end is not what the change is to."""
        kind, name, detail = key
        every = self._kinds[kind] or self._kinds["default"]
        owner = name.rpartition(".")[0]

        def distance(other: Key) -> tuple[int, int]:
            same = other[1] == name, owner and other[1].startswith(f"{owner}."), other[2] == detail != ""
            return next((place for place, one in enumerate(same) if one), 3), stable_hash(name, *other)

        near = sorted((other for other in every if self._same[other] != new), key=distance)[:NEIGHBOURS]
        return tuple(
            (
                statements(other[0], package=self._package, name=other[1], detail=other[2])[0],
                self._same[other],
            )
            for other in near
        )
