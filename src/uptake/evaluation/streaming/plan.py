"""What a stream is to do: the ways, the documents in order, and which question is asked when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from uptake.errors import BadInput
from uptake.methods.contract.method import MethodSpec
from uptake.methods.contract.spending import Budget
from uptake.report.summary import many
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question
from uptake.text.types import Chunking, Document


@dataclass(frozen=True)
class StreamPlan:
    """Everything but the model: each way reads all the documents, in order, by itself.

    At each of `checkpoints`, numbers of documents taken, the questions are asked whose document has
    been taken and whose `until` has not; at the end all but those outdated. `chunking` cuts documents
    into passages; left out, a document is one. `budget` is a document's.
    """

    methods: Mapping[str, MethodSpec]
    documents: Sequence[Document]
    questions: Sequence[Question]
    unrelated: Sequence[Document] = ()
    checkpoints: tuple[int, ...] = ()
    asking: Asking = field(default_factory=Asking)
    rehearsal: Sequence[Question] = ()
    chunking: Chunking | None = None
    seed: int = 0
    budget: Budget = field(default_factory=Budget)
    save_every: int = 100  # documents

    def __post_init__(self) -> None:
        if not self.methods:
            raise BadInput("no method given: name at least one, such as online")
        if not self.documents:
            raise BadInput("the stream is empty: give at least one document")
        if not self.questions:
            raise BadInput("no question to ask: give at least one whose document is in the stream")
        _once("document", [document.id for document in self.documents])
        _once("question", [question.id for question in self.questions])
        for question in self.questions:
            if question.document and question.document not in self.places:
                raise BadInput(
                    f"question {question.id!r}: its document {question.document!r} is not in the stream"
                )
        wrong = [count for count in self.checkpoints if not 1 <= count <= len(self.documents)]
        if wrong:
            count = len(self.documents)
            raise BadInput(f"checkpoint {wrong[0]}: the stream has {count} documents, use 1 to {count}")
        if self.save_every < 1:
            raise BadInput(f"save every {self.save_every} documents: use 1 or more")
        stops = tuple(sorted({*self.checkpoints, len(self.documents)}))
        object.__setattr__(self, "checkpoints", stops)

    @cached_property
    def places(self) -> dict[str, int]:
        """The number of each document in the stream, from 1, by its id."""
        return {document.id: place for place, document in enumerate(self.documents, 1)}

    def place(self, question: Question) -> int:
        """Return the number of the question's document, 0 where it names none."""
        return self.places[question.document] if question.document else 0

    def group(self, question: Question) -> str:
        """Return the unit of the bootstrap: its document's group, or else document, or else itself."""
        place = self.place(question)
        return (self.documents[place - 1].group or question.document) if place else question.id

    def asked(self, taken: int) -> list[Question]:
        """Return the questions to ask once so many documents have been taken up."""
        last = taken == len(self.documents)
        return [
            question
            for question in self.questions
            if (0 < self.place(question) <= taken or (last and not question.document))
            # What no document of this stream changes stays right.
            and self.places.get(question.until, taken + 1) > taken
        ]

    def shown(self, count: int) -> list[Question]:
        """Return a few of the questions asked at the end, evenly spread over them."""
        asked = self.asked(len(self.documents))
        step = max(1, len(asked) // max(1, count))
        return asked[::step][:count]


def _once(what: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise BadInput(f"{what} id {name!r} is there twice: give each an id of its own")
        seen.add(name)


def in_stream(
    documents: Sequence[Document], questions: Sequence[Question]
) -> tuple[list[Question], list[str]]:
    """Return the questions whose documents are in the stream, and a line on those left out, if any."""
    there = {document.id for document in documents}
    kept = [question for question in questions if not question.document or question.document in there]
    left = [question for question in questions if question.document and question.document not in there]
    if not left:
        return kept, []
    named = ", ".join(f"{question.id} (document {question.document})" for question in left[:3])
    count = many(len(left), "question", "questions")
    return kept, [f"left out, their documents are not in the stream: {count}, {named}"]
