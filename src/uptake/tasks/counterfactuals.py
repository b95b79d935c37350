"""Counterfactual facts made by rule: another value in the passage, and the same one in the answer.

Training on them is counterfactual augmentation as in CATfOOD (Sachdeva et al. 2023, arXiv 2309.07822), who
let a language model write them. A rule needs no model, and it can promise what a model cannot: what is
stated is true of nothing in the facts at hand, so that only a reader of the passage can know it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from uptake.errors import BadInput
from uptake.tasks.answers import normalised
from uptake.tasks.questions import Question
from uptake.text.files import Skipped
from uptake.text.types import Document, stable_hash

_TRIES = 200  # draws of another value before a fact is given up
_NUMBER = re.compile(r"-?\d[\d_]*(?:\.\d+)?(?:[eE]-?\d+)?")
_IDENTIFIER = re.compile(r"[^\W\d]\w*")
_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_QUOTED = re.compile(r"`([^`\n]+)`")
_TRUTH_VALUES = {"True": "False", "False": "True"}


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """A question with a passage in which its answer is another one; `true` is what it was made from."""

    question: Question
    document: Document
    true: Question
    old: str
    new: str


def counterfactuals(
    questions: Sequence[Question],
    documents: Sequence[Document],
    seed: int = 0,
    skipped: Skipped | None = None,
) -> tuple[Counterfactual, ...]:
    """Return for each question a counterfactual, where the rule finds a place to change; the seed fixes it.

    A question's `document` states its answer. A number becomes another one of as many digits, a truth value
    the other, a name of code one that occurs nowhere in the texts, made of their words, and anything else
    the answer of another question of its kind (`meta["kind"]` or `meta["attribute"]`). The same change is
    made wherever the passage states the fact. What is stated then is no true answer: not of this question,
    its other wordings (of one `meta["fact"]`) or its earlier and later states (`until`). Left out and counted
    in `skipped`: what names no document, says its answer in the question, or leaves no place or no value.
    Raises BadInput where no question is given.
    """
    if not questions:
        raise BadInput("no fact to change: give at least one question")
    skipped = Skipped() if skipped is None else skipped
    known = _Known(questions, documents)
    made = []
    for question in questions:
        found = known.changed(question, Random(f"{seed} counterfactual {question.id}"), seed)
        if isinstance(found, str):
            skipped.add(found, question.id)
        else:
            made.append(found)
    return tuple(made)


def other_subjects(
    questions: Sequence[Question],
    documents: Sequence[Document],
    seed: int = 0,
    skipped: Skipped | None = None,
) -> dict[str, Document]:
    """Return by a question's id its passage, told of something else: it looks right, and answers nothing.

    The name that the question quotes last (in backticks) becomes one that occurs nowhere. Left out and
    counted in `skipped`: questions that quote no name, and passages that do not hold it. Raises BadInput for
    no question.
    """
    if not questions:
        raise BadInput("no passage to change: give at least one question")
    skipped = Skipped() if skipped is None else skipped
    known = _Known(questions, documents)
    made = {}
    for question in questions:
        found = known.renamed(question, Random(f"{seed} other subject {question.id}"))
        if isinstance(found, str):
            skipped.add(found, question.id)
        else:
            made[question.id] = found
    return made


class _Known:
    """All facts at hand: what is true, what occurs, and what values each kind has."""

    def __init__(self, questions: Sequence[Question], documents: Sequence[Document]) -> None:
        self.texts = {document.id: document for document in documents}
        self.states = {document.text for document in documents}
        words = [text for q in questions for text in (q.text, *q.answers)]
        words += self.states
        self.names = {name.lower() for text in words for name in _IDENTIFIER.findall(text)}
        self.truths = _Truths(questions)
        self.values: dict[tuple[str, str], list[str]] = {}
        leaves = set()
        for question in questions:
            for answer in question.answers[:1]:
                self.values.setdefault((_kind(question), _form(answer)), []).append(answer)
                if _form(answer) == "name":
                    leaves.add(_leaf(answer))
        self.values = {key: sorted(set(some)) for key, some in self.values.items()}
        self.parts = sorted(
            {part.lower() for leaf in leaves for part in _WORD.findall(leaf) if part.isalpha()}
        )

    def changed(self, question: Question, random: Random, seed: int) -> Counterfactual | str:
        """Return the counterfactual of a fact, or the reason why there is none."""
        document = self.texts.get(question.document)
        if document is None:
            return "no passage is given for it"
        answer = question.answers[0]
        form = _form(answer)
        old = _leaf(answer) if form == "name" else answer
        if any(_places(question.text, one) for one in (*question.answers, old)):
            return "the question says its answer"
        if any(not _places(one, old) and _places(document.text, one) for one in question.answers):
            return "its answers name different things"
        spans = _stated(document.text, old, form, question.text)
        if isinstance(spans, str):
            return spans
        true = self.truths.of(question)
        for new in self._others(question, old, form, random):
            told = tuple(dict.fromkeys(_replaced(one, _places(one, old), new) for one in question.answers))
            text = _replaced(document.text, spans, new)
            if true & {normalised(one) for one in told} or text in self.states:
                continue
            if form != "name" and (_places(document.text, new) or _places(question.text, new)):
                continue
            name = f"{document.id}~{stable_hash(str(seed), question.id, new):016x}"
            changed = replace(question, id=f"{question.id}~{seed}", answers=told, document=name, until="")
            return Counterfactual(changed, replace(document, id=name, text=text), question, old, new)
        return "no other value is known that is not true"

    def renamed(self, question: Question, random: Random) -> Document | str:
        """Return a question's passage with another name for its subject, or why there is none."""
        document = self.texts.get(question.document)
        if document is None:
            return "no passage is given for it"
        names = [_leaf(name) for name in _QUOTED.findall(question.text) if _DOTTED.fullmatch(name)]
        if not names:
            return "the question quotes no name"
        places = _places(document.text, names[-1])
        if not places:
            return "the name does not stand in the passage"
        for new in self._others(question, names[-1], "name", random):
            name = f"{document.id}~{stable_hash(question.id, new):016x}"
            return replace(document, id=name, text=_replaced(document.text, places, new))
        return "no other name can be made"

    def _others(self, question: Question, old: str, form: str, random: Random) -> Iterator[str]:
        """Yield values to try in the place of an answer."""
        if form == "truth":
            yield _TRUTH_VALUES[old]
        elif form == "number":
            yield from (_other_number(old, random) for _ in range(_TRIES))
        elif form == "name":
            made = (self._made_up(old, random) for _ in range(_TRIES if self.parts else 0))
            yield from (new for new in made if new.lower() not in self.names)
        else:
            some = self.values[_kind(question), form]
            yield from random.sample(some, len(some))

    def _made_up(self, old: str, random: Random) -> str:
        """Return a name in the old one's style: its last word stays, which tells what kind of thing it is."""
        words = _WORD.findall(old)
        # One word alone has no other place to change: one is put before it.
        fresh = [random.choice(self.parts) for _ in range(max(1, len(words) - 1))]
        before = old[: len(old) - len(old.lstrip("_"))]
        last = words[-1] if words else "name"
        if "_" in old.strip("_") or old.islower():
            joined = "_".join([*fresh, last])
            return before + (joined.upper() if old.isupper() else joined)
        if old.isupper():
            return before + "_".join([*fresh, last]).upper()
        capital = [word.capitalize() for word in fresh]
        if old.lstrip("_")[:1].islower():
            capital[0] = capital[0].lower()
        return before + "".join(capital) + (last[:1].upper() + last[1:])


class _Truths:
    """What is true of each question: its answers and those of what asks the same, at any time."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._above: dict[tuple[str, ...], tuple[str, ...]] = {}
        for question in questions:
            first, *others = self._keys(question)
            for other in others:
                self._above[self._root(first)] = self._root(other)
        self._answers: dict[tuple[str, ...], set[str]] = {}
        for question in questions:
            root = self._root(self._keys(question)[0])
            told = (*question.answers, question.meta.get("before", ""))
            self._answers.setdefault(root, set()).update(normalised(one) for one in told if one)

    def of(self, question: Question) -> set[str]:
        """Return the true answers, normalised."""
        return self._answers[self._root(self._keys(question)[0])]

    def _keys(self, question: Question) -> list[tuple[str, ...]]:
        """Return what two questions share that ask for the same."""
        kind, keys = _kind(question), list[tuple[str, ...]]([("text", question.text)])
        if fact := question.meta.get("fact"):
            keys.append(("fact", fact))
        if "before" in question.meta:
            keys.append(("changed", kind, question.document))
        if question.until:
            keys.append(("changed", kind, question.until))
        return keys

    def _root(self, key: tuple[str, ...]) -> tuple[str, ...]:
        while (above := self._above.get(key, key)) != key:
            key = above
        return key


def _kind(question: Question) -> str:
    return question.meta.get("kind") or question.meta.get("attribute", "")


def _form(answer: str) -> str:
    """Return what an answer looks like: truth, number, name (of code), word or text."""
    if answer in _TRUTH_VALUES:
        return "truth"
    if _NUMBER.fullmatch(answer):
        return "number"
    leaf = _leaf(answer)
    if _DOTTED.fullmatch(answer) and leaf.isascii() and ("." in answer or "_" in leaf or _humped(leaf)):
        return "name"
    return "word" if answer.isalpha() else "text"


def _humped(leaf: str) -> bool:
    """Whether a capital stands after a small letter, as in names of classes, or all are capitals."""
    return bool(re.search(r"[a-z][A-Z]", leaf))


def _leaf(answer: str) -> str:
    return answer.rpartition(".")[2]


def _places(text: str, part: str) -> list[tuple[int, int]]:
    """Return where a part stands in a text by itself: no letter, digit or decimal goes on beside it."""
    before = r"(?<!\w)" if part[:1].isalnum() or part[:1] == "_" else ""
    after = r"(?!\w)" if part[-1:].isalnum() or part[-1:] == "_" else ""
    if _NUMBER.fullmatch(part):
        before, after = r"(?<![\w.])(?<!\d-)", r"(?!\w|\.\d)"
    return [found.span() for found in re.finditer(before + re.escape(part) + after, text)]


def _replaced(text: str, places: Sequence[tuple[int, int]], new: str) -> str:
    for start, end in reversed(places):
        text = text[:start] + new + text[end:]
    return text


def _stated(text: str, old: str, form: str, question: str) -> list[tuple[int, int]] | str:
    """Return where a passage states a fact, or why that cannot be told.

    A name means one thing wherever it stands. A value may stand in other places for other things: then the
    place is where one of the names that the question quotes is set to it.
    """
    places = _places(text, old)
    if not places:
        return "its answer does not stand in the passage"
    if form == "name" or len(places) == 1:
        return places
    names = [name.rpartition(".")[2] for name in _QUOTED.findall(question)]
    if not names:
        return places if form in ("word", "text") else "its answer stands in several places"
    set_to = "|".join(rf"(?<!\w){re.escape(name)}\s*(?::[^=\n]*?)?=\s*[\"']?" for name in names)
    here = [place for place in places if re.search(rf"(?:{set_to})$", text[: place[0]])]
    if len(here) != 1:
        return "its answer stands in several places"
    said = re.compile(r"default\w*\W+(?:\w+\W+){0,3}$", re.IGNORECASE)
    if any(said.search(text[max(0, start - 60) : start]) for start, _ in places if (start, _) not in here):
        return "its answer stands in several places"
    return here


def _other_number(old: str, random: Random) -> str:
    """Return a number of the same digits' places: zeros stay, others are drawn from 1 to 9."""
    if not any(digit in "123456789" for digit in old):
        place = max(at for at, digit in enumerate(old) if digit == "0")
        return f"{old[:place]}{random.randint(1, 9)}{old[place + 1 :]}"
    mantissa, mark, exponent = re.fullmatch(r"([^eE]*)([eE]?)(.*)", old).groups()  # type: ignore[union-attr]
    drawn = "".join(str(random.randint(1, 9)) if one in "123456789" else one for one in mantissa)
    return drawn + mark + exponent
