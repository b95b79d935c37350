"""Facts that source files state, each with the passage it rests on, and checks that make its question fair.

Fair is a question that exactly one file answers and that nobody guesses: not by what most of its kind
say, not by what others of its name say, not by reading the question. What is not is counted by reason.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fresh_text.choose import File
from fresh_text.definitions import Definition, Stated, definitions, parses
from fresh_text.notices import notices
from uptake.text.files import Skipped
from uptake.text.types import stable_hash

MOST_SHARE = 0.1  # of a kind's facts that may have one answer
NEAR = 400  # characters around a name within which another file counts as stating its fact too
LONGEST = 60  # characters of an answer

_PLAIN = re.compile(
    r"None|True|False|\.\.\.|-?[01](\.0)?|[({\[][)}\]]|\w*(UNSET|MISSING|NOT_?GIVEN|EMPTY|SENTINEL|Omit|omit)\w*"
)
_PLAIN_TYPES = re.compile(
    r"(None|str|bool|int|float|bytes|object|Any|Self|dict|list|tuple|set|Path|NoReturn|Never|T|"
    r"(dict|list|tuple|set|Dict|List|Tuple|Iterator|Sequence)\[[^A-Z]*(Any)?\]|[\w.]*Any)( \| None)?"
)
_PLAIN_RAISES = {"NotImplementedError", "StopIteration", "StopAsyncIteration", "SystemExit"}
_PLAIN_BASES = {"object", "Exception", "ABC", "abc.ABC", "Protocol"}


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact of a package: what `name` states of `detail` is `answer`, as `passage` of the file shows."""

    package: str
    file: str  # the document's id
    kind: str
    name: str
    detail: str
    answer: str
    passage: str
    line: int
    guess: str = ""  # what one would guess who knows all other files' facts
    split: str = ""

    @property
    def id(self) -> str:
        """Names it, the same in every build."""
        return f"{self.file}#{self.line}:{self.name}:{self.kind}:{self.detail}".rstrip(":")

    @property
    def document(self) -> str:
        """The id of its passage as a document: the definition at a line, or the words of a notice there."""
        return f"{self.file}#{self.line}" + (":said" if self.kind in ("renamed", "replacement") else "")


def facts(
    package: str, files: Sequence[tuple[str, File]], skipped: Skipped, known: frozenset[str] = frozenset()
) -> list[Fact]:
    """Return the fair facts of one package's files, (document id, file), but for those of `known` names.

    What fails a check is counted in `skipped`. Guesses are not marked yet: see `guarded`.
    """
    defined = [(key, file, each) for key, file in files for each in _defined(key, file, skipped)]
    places: dict[str, set[tuple[str, bool]]] = defaultdict(set)
    times = Counter((each.name, each.is_class) for _, _, each in defined)
    for key, _, each in defined:
        places[each.name].add((key, True))
    elsewhere = _Elsewhere(files)
    found = []
    for key, file, each in defined:
        for stated in each.stated:
            where = f"{key}: {each.name}"
            twice = len(places[each.name]) > 1 or times[each.name, each.is_class] > 1
            reason = "of a known name" if each.name in known else _unfair(each, stated, twice)
            if not reason and elsewhere.states(key, each.leaf, stated):
                reason = "stands in another file too"
            if reason:
                skipped.add(reason, where)
                continue
            passage = f"# {package}, {file.path}: {each.name}\n{each.source}"
            found.append(
                Fact(package, key, stated.kind, each.name, stated.detail, stated.answer, passage, each.line)
            )
    told = [fact for key, file in files for fact in _noticed(package, key, file, skipped)]
    often = Counter((fact.kind, fact.name) for fact in told)
    for fact in told:
        if often[fact.kind, fact.name] == 1:
            found.append(fact)
        else:
            skipped.add("stands in another file too", fact.id)
    return found


def _defined(key: str, file: File, skipped: Skipped) -> list[Definition]:
    if file.kind != "source":
        return []
    if not parses(file.text):
        skipped.add("source that does not parse", key)
    return definitions(file.text)


def _unfair(definition: Definition, stated: Stated, twice: bool) -> str:
    """Return why a fact is not asked for, "" where nothing speaks against it within its own file."""
    answer, name = stated.answer, definition.name
    if any(part.startswith("_") for part in name.split(".")) or stated.detail.startswith("_"):
        return "private"
    if _plain(stated):
        return "what most would guess"
    if len(answer) > LONGEST:
        return f"longer than {LONGEST} characters"
    if twice:
        return "a name that stands for several things"
    if _words(answer) and _words(answer) <= _words(f"{name} {stated.detail}"):
        return "said by the question"
    shown = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", definition.source)
    return "" if shown and stated.detail in definition.source else "beyond what is shown of it"


def _plain(stated: Stated) -> bool:
    answer = stated.answer
    if stated.kind == "default":
        return _PLAIN.fullmatch(answer) is not None
    if stated.kind == "returns":
        return _PLAIN_TYPES.fullmatch(answer) is not None
    return answer in (_PLAIN_RAISES if stated.kind == "raises" else _PLAIN_BASES)


def _words(text: str) -> set[str]:
    """Return the words names are made of: "maxRetry_count" has max, retry and count."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", text)}


class _Elsewhere:
    """Whether a file other than a fact's own states it too: name, detail and answer near each other."""

    def __init__(self, files: Sequence[tuple[str, File]]) -> None:
        self._texts = {key: file.text for key, file in files}
        self._holders: dict[str, set[str]] = defaultdict(set)
        for key, text in self._texts.items():
            for word in set(re.findall(r"\w+", text)):
                self._holders[word].add(key)

    def states(self, own: str, leaf: str, stated: Stated) -> bool:
        wanted = {leaf, *re.findall(r"\w+", f"{stated.detail} {stated.answer}")}
        keys = set.intersection(*(self._holders[word] for word in wanted)) - {own}
        rest = [
            re.compile(rf"(?<!\w){re.escape(each)}(?!\w)") for each in (stated.detail, stated.answer) if each
        ]
        for key in keys:
            text = self._texts[key]
            for match in re.finditer(rf"\b{re.escape(leaf)}\b", text):
                near = text[max(match.start() - NEAR, 0) : match.end() + NEAR]
                if all(each.search(near) for each in rest):
                    return True
        return False


def _noticed(package: str, key: str, file: File, skipped: Skipped) -> Iterator[Fact]:
    """Yield what a file says was renamed or is deprecated."""
    for notice in notices(file.text):
        if _words(notice.new) <= _words(notice.old):
            skipped.add("said by the question", f"{key}: {notice.old}")
        else:
            passage = f"# {package}, {file.path}\n{notice.said}\n"
            yield Fact(package, key, notice.kind, notice.old, "", notice.new, passage, notice.line)


def guarded(found: Iterable[Fact], skipped: Skipped) -> list[Fact]:
    """Return the facts that are no good guess, each with the guess of one who knows all other files.

    The guess is what most facts of the same kind on the same name of a parameter say, else what most of
    its kind say. Left out and counted: those that the former gives away, and of an answer that makes up
    more than MOST_SHARE of its kind so many, by a hash, that it does no longer.
    """
    named = _Most(found := list(found), lambda fact: (fact.kind, fact.detail) if fact.detail else None)
    kept = []
    for fact in found:
        guess, times = named.but(fact)
        if guess == fact.answer and times >= 2:
            skipped.add("others of its name say the same", fact.id)
        else:
            kept.append(replace(fact, guess=guess))
    kept = [fact for kind in sorted({fact.kind for fact in kept}) for fact in _thinned(kept, kind, skipped)]
    every = _Most(kept, lambda fact: fact.kind)
    return [fact if fact.guess else replace(fact, guess=every.but(fact)[0]) for fact in kept]


class _Most:
    """The commonest answer among facts of a sort, those of one file set aside."""

    def __init__(self, found: Iterable[Fact], sort: Callable[[Fact], object]) -> None:
        self._sort = sort
        self._all: dict[object, Counter[str]] = defaultdict(Counter)
        self._own: dict[object, Counter[str]] = defaultdict(Counter)
        for fact in found:
            self._all[sort(fact)][fact.answer] += 1
            self._own[sort(fact), fact.file][fact.answer] += 1

    def but(self, fact: Fact) -> tuple[str, int]:
        """Return the commonest answer in other files and how often it stands there; ("", 0) if in none."""
        sort = self._sort(fact)
        if sort is None:
            return "", 0
        rest = self._all[sort] - (self._own[sort, fact.file] if fact.detail else Counter())
        return min(rest.items(), key=lambda pair: (-pair[1], pair[0])) if rest else ("", 0)


def _thinned(found: Sequence[Fact], kind: str, skipped: Skipped) -> list[Fact]:
    of_kind = [fact for fact in found if fact.kind == kind]
    times = Counter(fact.answer for fact in of_kind)
    # The most that each answer may have, so that none has more than its share of what is then left.
    most = max(times.values())
    while most > 1 and most > MOST_SHARE * sum(min(count, most) for count in times.values()):
        most -= 1
    taken: Counter[str] = Counter()
    kept = []
    for fact in sorted(of_kind, key=lambda fact: stable_hash("thin", fact.id)):
        taken[fact.answer] += 1
        if taken[fact.answer] <= most:
            kept.append(fact)
        else:
            skipped.add("more than its share of one answer", fact.id)
    return sorted(kept, key=lambda fact: fact.id)
