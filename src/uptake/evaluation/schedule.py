"""The schedule of a stream: which documents come in which order, and which question is asked when."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from uptake.errors import BadInput
from uptake.evaluation.inputs import Inputs
from uptake.lm.base import LM
from uptake.report.formatting import many
from uptake.report.results import Row
from uptake.report.streamed.rows import Answered, DocumentFailed, Drifted, Spent
from uptake.tasks.asking import Asking, ask, divergence
from uptake.tasks.questions import Question
from uptake.text.types import Document

if TYPE_CHECKING:
    from uptake.evaluation.runner import Runner


@dataclass(frozen=True)
class Schedule:
    """The documents of the inputs in order, and their questions; `checkpoints` are numbers of documents."""

    checkpoints: tuple[int, ...]
    asking: Asking
    inputs: Inputs

    def check(self) -> None:
        """Raise BadInput where there is nothing to read or to ask, or a name is there twice."""
        documents, questions = self.inputs.documents, self.inputs.questions
        if not documents:
            raise BadInput("the stream is empty: give at least one document")
        if not questions:
            raise BadInput("no question to ask: give at least one whose document is in the stream")
        _once("document", [document.id for document in documents])
        _once("question", [question.id for question in questions])
        for question in questions:
            if question.document and question.document not in self.places:
                raise BadInput(
                    f"question {question.id!r}: its document {question.document!r} is not in the stream"
                )
        wrong = [count for count in self.checkpoints if not 1 <= count <= len(documents)]
        if wrong:
            count = len(documents)
            raise BadInput(f"checkpoint {wrong[0]}: the stream has {count} documents, use 1 to {count}")

    @property
    def stops(self) -> list[int]:
        """The numbers of documents after which is asked, the end included."""
        return sorted({*self.checkpoints, len(self.inputs.documents)})

    @cached_property
    def places(self) -> dict[str, int]:
        """The number of each document in the stream, from 1, by its id."""
        return {document.id: place for place, document in enumerate(self.inputs.documents, 1)}

    def place(self, question: Question) -> int:
        """Return the number of the question's document, 0 where it names none."""
        return self.places[question.document] if question.document else 0

    def group(self, question: Question) -> str:
        """Return the unit of the bootstrap: its document's group, or else document, or else itself."""
        place = self.place(question)
        return (self.inputs.documents[place - 1].group or question.document) if place else question.id

    def questions_after(self, taken: int) -> list[Question]:
        """Return the questions to ask once so many documents have been read."""
        last = taken == len(self.inputs.documents)
        return [
            question
            for question in self.inputs.questions
            if (0 < self.place(question) <= taken or (last and not question.document))
            # What no document of this stream changes stays right.
            and self.places.get(question.until, taken + 1) > taken
        ]

    def all_questions(self) -> list[Question]:
        """Return the questions that are asked at all."""
        ids = {question.id for taken in self.stops for question in self.questions_after(taken)}
        return [question for question in self.inputs.questions if question.id in ids]

    def shown(self, count: int) -> list[Question]:
        """Return a few of the questions asked at the end, evenly spread over them."""
        asked = self.questions_after(len(self.inputs.documents))
        step = max(1, len(asked) // max(1, count))
        return asked[::step][:count]

    def ask(self, runner: "Runner", adapted: LM, spent: Spent, questions: Sequence[Question]) -> list[Row]:
        """Ask, and measure the drift; return the rows of both, and what had been spent by then."""
        method, taken = spent.method, spent.taken
        seconds: list[float] = []
        with runner.meter.seconds(seconds):
            found = ask(adapted, questions, self.asking)
        answers = [
            Answered(method, taken, question.id, self.group(question), self.place(question), **asdict(answer))
            for question, answer in zip(questions, found, strict=True)
        ]
        drift: list[Row] = []
        # The base does not differ from itself.
        for text in self.inputs.unrelated if adapted is not runner.lm else ():
            nats, tokens = divergence(runner.lm, adapted, text.text)
            drift.append(
                Drifted(method, taken, text.id, nats, tokens)
                if math.isfinite(nats)
                else DocumentFailed(method, text.id, taken, f"its divergence from the base is {nats}")
            )
        return [*answers, *drift, replace(spent, ask_seconds=seconds[0])]

    def unanswered(
        self, method: str, taken: int, questions: Sequence[Question], reason: str
    ) -> list[Answered]:
        """Return the rows of questions that could not be asked."""
        return [
            Answered(method, taken, one.id, self.group(one), self.place(one), 0.0, 0, "", 0.0, 0.0, reason)
            for one in questions
        ]


def _once(what: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadInput(f"{what} id {name!r} is there twice: give each an id of its own")
        seen.add(name)


def in_stream(
    documents: Sequence[Document], questions: Sequence[Question]
) -> tuple[tuple[Question, ...], list[str]]:
    """Return the questions whose documents are in the stream, and a line on those left out, if any."""
    there = {document.id for document in documents}
    kept = tuple(question for question in questions if not question.document or question.document in there)
    left = [question for question in questions if question.document and question.document not in there]
    if not left:
        return kept, []
    named = ", ".join(f"{question.id} (document {question.document})" for question in left[:3])
    count = many(len(left), "question", "questions")
    return kept, [f"left out, their documents are not in the stream: {count}, {named}"]
