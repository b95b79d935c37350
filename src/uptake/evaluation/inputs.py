"""The inputs of an evaluation: documents, and questions or edits that go with them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from uptake.tasks.edits import Edit
from uptake.tasks.questions import Question
from uptake.text.types import Document


@dataclass(frozen=True)
class Inputs:
    """Everything there is to read, to score and to ask; a protocol uses what it needs.

    Questions and edits name their document by its id. `unrelated` is text to measure drift on,
    `rehearsal` questions on other documents whose answers may be learnt before asking.
    """

    documents: tuple[Document, ...] = ()
    questions: tuple[Question, ...] = ()
    edits: tuple[Edit, ...] = ()
    unrelated: tuple[Document, ...] = ()
    rehearsal: tuple[Question, ...] = ()

    @classmethod
    def of(cls, given: "Iterable[Document] | Inputs") -> "Inputs":
        """Return inputs made of documents alone, or what is such already."""
        return given if isinstance(given, Inputs) else cls(tuple(given))

    def texts(self) -> Iterator[str]:
        """Yield all that tells these inputs from others, for the key of a journal."""
        for document in (*self.documents, *self.unrelated):
            yield from (document.id, document.group, document.text)
        if self.questions or self.edits or self.rehearsal:
            yield repr((self.questions, self.edits, self.rehearsal))
