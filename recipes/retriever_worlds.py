"""The worlds that retrievers are measured in: a store of passages, questions in three parts, a prompt."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uptake
from uptake.retrievers.reader import Prompt
from uptake.store import Datastore
from uptake.tasks.questions import Question, read_questions
from uptake.text.encoders import make_encoder
from uptake.text.types import Chunking, Document, stable_hash

WHOLE = Chunking(1_000_000)  # a paragraph or a definition is one passage
EXAMPLES = 3


@dataclass
class World:
    """Passages in a hybrid store, and questions whose `document` is the one that answers them."""

    store: Datastore
    documents: list[str]  # ids of all passages
    train: list[Question]
    valid: list[Question]
    test: list[Question]
    prompt: Prompt
    closed: Prompt  # the same examples without passages
    tokens: int  # of an answer, at most


def squad_world(given: argparse.Namespace) -> World:
    """All paragraphs of the file; questions on 30 articles to train on, on 8 to validate, on 10 to test."""
    documents, parts = squad_parts(given.squad, given.passages)
    train, valid, test = parts
    return made(given, documents, train[: given.pool], valid[: given.valid], test[: given.test], 16)


def squad_parts(path: Path, passages: int = 1 << 40) -> tuple[list[Document], list[list[Question]]]:
    """Return SQuAD's paragraphs and its questions, by article: to train, validate and test with."""
    read = read_questions(path)
    titles = sorted({d.group for d in read.documents}, key=lambda title: stable_hash("split", title))
    documents = drawn(read.documents, passages)
    title_of = {d.id: d.group for d in documents}

    def part(first: int, last: int) -> list[Question]:
        some = set(titles[first:last])
        asked = [q for q in read.questions if title_of.get(q.document) in some]
        return sorted(asked, key=lambda q: stable_hash("asked", q.id))

    return documents, [part(0, 30), part(30, 38), part(38, 48)]


def fresh_world(given: argparse.Namespace) -> World:
    """The definitions of all three parts; questions on the facts of each, as the data split them."""
    files = {part: given.fresh / "facts" / part for part in ("train", "valid", "test")}
    documents = [d for at in files.values() for d in uptake.read(at / "passages.jsonl")]
    documents = drawn(documents, given.passages)
    here = {d.id for d in documents}

    def part(name: str, count: int) -> list[Question]:
        asked = [q for q in read_questions(files[name] / "questions.jsonl").questions if q.document in here]
        return sorted(asked, key=lambda q: stable_hash("asked", q.id))[:count]

    parts = part("train", given.pool), part("valid", given.valid), part("test", given.test)
    return made(given, documents, *parts, 24)


def drawn(documents: Sequence[Document], count: int) -> list[Document]:
    """Return so many documents, in the order of a hash."""
    return sorted(documents, key=lambda d: stable_hash("drawn", d.id))[:count]


def made(
    given: argparse.Namespace,
    documents: Sequence[Document],
    train: list[Question],
    valid: list[Question],
    test: list[Question],
    tokens: int,
) -> World:
    """Build the store, unless it is there, and the prompt from the shortest training passages."""
    path: Path = given.work / f"{given.part}.store"
    encoder = make_encoder(given.encoder, given.device, "float32")
    if (path / "store.json").exists():
        store = Datastore.open(path, encoder=encoder)
    else:
        store = Datastore.create(path, retriever="hybrid", encoder=encoder, chunking=WHOLE)
    store.add(documents)
    texts = {d.id: d.text for d in documents}
    examples: list[tuple[str, str, str]] = []
    used: set[str] = set()
    for question in sorted(train, key=lambda q: (len(texts[q.document]), q.id)):
        kind = question.meta.get("kind", question.document)
        if kind not in used and len(examples) < EXAMPLES:
            used.add(kind)
            examples.append((texts[question.document][:800], question.text, question.answers[0]))
    shown = {question for _, question, _ in examples}
    train = [q for q in train if q.text not in shown]
    if given.template:
        asked = Prompt(template=given.template.replace("\\n", "\n"))
        bare = Prompt(template=asked.template, characters=1)
        return World(store, [d.id for d in documents], train, valid, test, asked, bare, tokens)
    closed = Prompt(tuple(("", question, answer) for _, question, answer in examples), characters=1)
    return World(
        store, [d.id for d in documents], train, valid, test, Prompt(tuple(examples)), closed, tokens
    )
