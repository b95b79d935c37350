"""Made-up worlds: documents that state facts among sentences that do not matter, and questions on them.

Nothing in them is true, so no model can have known it before. Names of one split never occur in
another; words and the forms of sentences are the same everywhere, and there to be learnt.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from uptake.errors import BadInput
from uptake.sealed import write_whole
from uptake.tasks._words import ATTRIBUTES, DISTRACTORS, OTHERS, SYLLABLES, WORDS, Attribute
from uptake.tasks.questions import Question
from uptake.text.types import Document

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class World:
    """A stream of documents, the questions they answer, and texts that have nothing to do with them."""

    documents: tuple[Document, ...]
    questions: tuple[Question, ...]
    unrelated: tuple[Document, ...]

    def write(self, folder: str | Path) -> None:
        """Write documents.jsonl, questions.jsonl and unrelated.jsonl, which `uptake stream` and `train` read.

        The folder is made where it is not there. Raises BadInput where it cannot be written to.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"cannot make {folder}: {error.strerror}; name another folder") from None
        for name, texts in (("documents", self.documents), ("unrelated", self.unrelated)):
            _write_lines(folder / f"{name}.jsonl", [{"id": text.id, "text": text.text} for text in texts])
        asked = [
            {
                **question.meta,
                "id": question.id,
                "question": question.text,
                "answers": question.answers,
                "document": question.document,
                "until": question.until,
            }
            for question in self.questions
        ]
        _write_lines(folder / "questions.jsonl", asked)


def make_world(
    documents: int = 1000,
    facts: int = 2,
    distractors: int = 6,
    updates: float = 0.1,
    unrelated: int = 20,
    split: Split = "test",
    seed: int = 0,
) -> World:
    """Return a world that these numbers and the seed fix.

    A document states `facts` facts of one person among `distractors` other sentences, some of which
    mention things that could have been answers. A share of `updates` documents states instead that a
    fact stated earlier has changed. Each fact gives one question, in other words than its document's;
    that of a fact that changes carries `until`, and its successor the earlier answer as
    `meta["before"]`. `meta["attribute"]` says what is asked for.
    """
    if documents < 1 or not 1 <= facts <= len(ATTRIBUTES) or min(distractors, unrelated) < 0:
        raise BadInput(
            f"documents {documents}, facts {facts}, distractors {distractors}: use 1 or more, "
            f"1 to {len(ATTRIBUTES)}, and 0 or more"
        )
    if not 0 <= updates < 1:
        raise BadInput(f"updates {updates}: use a share of 0 or more, below 1")
    if split not in SPLITS:
        raise BadInput(f"split {split!r}: use one of {', '.join(SPLITS)}")
    if documents > NAMES:
        raise BadInput(f"{documents} documents: there are {NAMES} names, use fewer")
    random = Random(f"{split} {seed}")
    names = iter(random.sample(range(NAMES), documents))
    stated: list[_Fact] = []
    valid: list[_Fact] = []  # the last that was said of each thing
    made = []
    for number in range(documents):
        key = f"{split}-{seed}/{number:05d}"
        if random.random() < updates and valid:
            place = random.randrange(len(valid))
            valid[place] = _changed(random, valid[place], key)
            new, forms = [valid[place]], [valid[place].attribute.updates]
        else:
            person = name(next(names), split)
            some = random.sample(ATTRIBUTES, facts)
            new = [_Fact(person, one, random.choice(one.values), key) for one in some]
            valid += new
            forms = [fact.attribute.statements for fact in new]
        stated += new
        sentences = [_fill(random.choice(form), fact) for form, fact in zip(forms, new, strict=True)]
        made.append(Document(key, _among(random, sentences, distractors)))
    texts = (" ".join(_sentences(random, OTHERS, 12)) for _ in range(unrelated))
    other = tuple(
        Document(f"{split}-{seed}/unrelated/{number:03d}", text) for number, text in enumerate(texts)
    )
    return World(tuple(made), tuple(_question(random, fact) for fact in stated), other)


def _write_lines(path: Path, records: Sequence[Mapping[str, object]]) -> None:
    write_whole(path, "".join(json.dumps(record) + "\n" for record in records).encode())


@dataclass(eq=False)
class _Fact:
    person: str
    attribute: Attribute
    value: str
    document: str
    before: str = ""
    until: str = ""


def _changed(random: Random, fact: _Fact, document: str) -> _Fact:
    """Let a fact end with this document; return the one that follows it."""
    fact.until = document
    value = random.choice([value for value in fact.attribute.values if value != fact.value])
    return _Fact(fact.person, fact.attribute, value, document, before=fact.value)


def _question(random: Random, fact: _Fact) -> Question:
    text = random.choice(fact.attribute.questions).replace("PERSON", fact.person)
    meta = {"attribute": fact.attribute.name} | ({"before": fact.before} if fact.before else {})
    key = f"{fact.document}/{fact.attribute.name}"
    return Question(key, text, (fact.value,), fact.document, meta, fact.until)


def _fill(form: str, fact: _Fact) -> str:
    return form.replace("PERSON", fact.person).replace("VALUE", fact.value)


def _among(random: Random, sentences: list[str], distractors: int) -> str:
    """Return the sentences in order, at random places among others."""
    whole = list(_sentences(random, DISTRACTORS, distractors))
    places = sorted(random.randint(0, distractors) for _ in sentences)
    for later, (place, sentence) in enumerate(zip(places, sentences, strict=True)):
        whole.insert(place + later, sentence)
    return " ".join(whole)


def _sentences(random: Random, forms: tuple[str, ...], count: int) -> Iterator[str]:
    for _ in range(count):
        sentence = random.choice(forms)
        for kind, words in WORDS.items():
            while kind in sentence:
                sentence = sentence.replace(kind, random.choice(words), 1)
        while "VALUE" in sentence:
            sentence = sentence.replace("VALUE", random.choice(random.choice(ATTRIBUTES).values), 1)
        yield sentence[0].upper() + sentence[1:]


# Each split has family names of its own: two syllables, the first of which belongs to the split alone.
_FIRST = tuple(SYLLABLES[start :: len(SPLITS)] for start in range(len(SPLITS)))
_GIVEN = len(SYLLABLES) ** 2
_FAMILIES = min(map(len, _FIRST)) * len(SYLLABLES)
NAMES = _GIVEN * _FAMILIES  # a split


def name(number: int, split: Split) -> str:
    """Return the number-th name of a split, 0 to NAMES - 1; no two are alike."""
    given, family = number % _GIVEN, number // _GIVEN
    first = _FIRST[SPLITS.index(split)]
    parts = (
        SYLLABLES[given // len(SYLLABLES)] + SYLLABLES[given % len(SYLLABLES)],
        first[family // len(SYLLABLES)] + SYLLABLES[family % len(SYLLABLES)],
    )
    return " ".join(part.capitalize() for part in parts)
