"""The inputs of an evaluation: documents, and questions or edits that go with them."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields

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

    def parts(self) -> dict[str, list[str]]:
        """Return by name a digest of each document, question and edit, which tell inputs apart."""
        return {
            part.name: [_digest(repr(each)) for each in getattr(self, part.name)] for part in fields(self)
        }


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf8", "surrogatepass"), digest_size=16).hexdigest()
