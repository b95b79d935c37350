"""What fresh_streams.py reads and asks: facts of fresh packages as documents and questions.

Nothing here knows a model. The order of everything is a hash's, so that the first few are as good as any.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import uptake
from uptake.errors import BadInput, Missing
from uptake.tasks.asking import SLOT, Asking
from uptake.tasks.questions import Question, read_questions
from uptake.tasks.worlds import World
from uptake.text.types import Document, stable_hash

WHOLE = Asking(SLOT)  # a question that brings all that is read before the answer
OLD = "after"  # the part of facts on older packages, in what a release changed


@dataclass(frozen=True)
class Facts:
    """Documents, a question on each fact in them, and the same facts asked in other words."""

    documents: tuple[Document, ...]
    questions: tuple[Question, ...]
    rephrased: tuple[Question, ...]

    def of(self, documents: Sequence[Document]) -> "Facts":
        """Return these documents and what is asked of them."""
        ids = {each.id for each in documents}
        asked = (tuple(q for q in some if q.document in ids) for some in (self.questions, self.rephrased))
        return Facts(tuple(documents), *asked)

    def first(self, count: int) -> "Facts":
        return self.of(self.documents[:count])

    @property
    def all_questions(self) -> tuple[Question, ...]:
        return (*self.questions, *self.rephrased)


def facts(data: Path, part: str, old: bool = False, longest: int = 0) -> Facts:
    """Return a part's facts of fresh packages, with `old` those of older ones too.

    With `longest` those alone whose document has at most so many characters.

    Raises Missing where the data set is not there.
    """
    folder = data / "facts" / part
    paths = [folder / f"{name}.jsonl" for name in ("questions", "rephrased", "passages")]
    for path in paths:
        if not path.exists():
            raise Missing(f"{path} is not there: make the data set with `python recipes/fresh.py build`")
    first, again = (
        tuple(q for q in read_questions(path).questions if old or q.meta["part"] != OLD) for path in paths[:2]
    )
    asked = {question.document for question in first}
    documents = [each for each in uptake.read(paths[2]) if each.id in asked]
    documents.sort(key=lambda each: stable_hash("stream", each.id))
    found = Facts(tuple(documents), first, again)
    return found.of([each for each in documents if len(each.text) <= longest]) if longest else found


def beginnings(data: Path, longest: int) -> tuple[Document, ...]:
    """Return the first `longest` characters of each document of test and train that has more."""
    parts = (
        [facts(data, part, old=part == "train").documents for part in ("test", "train")] if longest else []
    )
    long = [each for part in parts for each in part if len(each.text) > longest]
    return tuple(replace(each, text=each.text[:longest]) for each in long)


def teaching_and_meta(found: Facts) -> tuple[Facts, Facts]:
    """Return a third of the files, to learn the form of questions on, and the others."""
    apart = [stable_hash("teaching", each.group) % 3 == 0 for each in found.documents]
    return (
        found.of([*itertools.compress(found.documents, apart)]),
        found.of([*itertools.compress(found.documents, [not each for each in apart])]),
    )


def unrelated(minipile: Path, part: str, each: int, characters: int) -> tuple[Document, ...]:
    """Return the beginnings of so many texts of each domain of a mini-Pile."""
    paths = sorted(minipile.glob(f"*/{part}.jsonl.xz"))
    if not paths:
        raise Missing(f"no domain's {part}.jsonl.xz in {minipile}: name the folder of a mini-Pile")
    texts = []
    for path in paths:
        long = (text for text in uptake.read(path) if len(text.text) >= characters)
        texts += [replace(text, text=text.text[:characters]) for text in itertools.islice(long, each)]
    return tuple(texts)


def stream_of(
    test: Facts,
    rest: Sequence[Document],
    filler: Sequence[Document],
    length: int,
    other: Sequence[Document],
    cut: Sequence[Document] = (),
) -> World:
    """Return the test's documents and questions, behind them the rest, the filler and what is `cut`.

    In all they are at most `length`. Nobody asks for those behind. Drift is measured on the `other` texts.
    """
    shuffled = (sorted(some, key=lambda each: stable_hash("filler", each.id)) for some in (filler, cut))
    more = [*rest, *itertools.chain.from_iterable(shuffled)]
    documents = (*test.documents, *more[: max(0, length - len(test.documents))])
    return World(documents, test.questions, tuple(other))


def told_otherwise(made: World, elsewhere: Sequence[Document]) -> World:
    """Return the same questions on documents with other texts in them, which cannot answer them.

    Raises BadInput where there are fewer other texts than documents.
    """
    if len(elsewhere) < len(made.documents):
        raise BadInput(
            f"{len(elsewhere)} other documents for a stream of {len(made.documents)}: shorten the control"
        )
    texts = sorted(elsewhere, key=lambda each: stable_hash("other", each.id))
    pairs = zip(made.documents, texts, strict=False)
    return replace(made, documents=tuple(replace(mine, text=other.text) for mine, other in pairs))


def beginning(made: World, count: int) -> World:
    """Return a stream's first documents and their questions."""
    documents = made.documents[:count]
    ids = {each.id for each in documents}
    return replace(made, documents=documents, questions=tuple(q for q in made.questions if q.document in ids))


def told_as_questions(made: World, found: Facts) -> World:
    """Return a stream that states its facts as answered questions in other words, not as source code.

    A document of which no question has other words stays as it is.
    """
    asking, said = Asking(), dict[str, list[str]]()
    for question in found.rephrased:
        line = asking.prompt(question) + asking.learnt(question.answers[0])
        said.setdefault(question.document, []).append(line)
    documents = (
        replace(each, text="\n".join(said[each.id])) if each.id in said else each for each in made.documents
    )
    return replace(made, documents=tuple(documents))


def in_context(questions: Sequence[Question], texts: Sequence[str]) -> list[Question]:
    """Return each question behind a text to read first, as `WHOLE` asks it."""
    asking = Asking()
    return [
        replace(question, text=f"{text}\n\n{asking.prompt(question)}" if text else asking.prompt(question))
        for question, text in zip(questions, texts, strict=True)
    ]


def form(found: Facts, most: int = 1000) -> list[Question]:
    """Return what the form of answers is learnt from: each question closed book, and behind its document.

    Not behind one of more than `most` characters: a batch is as long as its longest text.
    """
    texts = {each.id: each.text for each in found.documents if len(each.text) <= most}
    closed = in_context(found.all_questions, [""] * len(found.all_questions))
    short = [question for question in found.questions if question.document in texts]
    opened = in_context(short, [texts[question.document] for question in short])
    return [*closed, *(replace(question, id=f"{question.id} read") for question in opened)]


def regrouped(documents: Sequence[Document], passes: int) -> Iterator[tuple[Document, ...]]:
    """Yield the documents in another order each time, so that other ones come together."""
    for number in range(passes):
        order = list(documents)
        Random(number).shuffle(order)
        yield tuple(order)
