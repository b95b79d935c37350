"""Questions with their answers, read from files of many forms.

What cannot be used is left out, counted by reason and named; only a file that is not there or
holds no question at all is an error. It knows nothing of models.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from uptake import arguments
from uptake.errors import BadInput
from uptake.tasks import question_forms
from uptake.tasks.json_records import encodes, records
from uptake.tasks.question_forms import Asked
from uptake.text.files import SkipError, Skipped, shown
from uptake.text.records import Unusable, name_of
from uptake.text.types import Document, stable_hash


@dataclass(frozen=True, slots=True)
class Question:
    """One question; `document` is the id of the one that answers it, "" where nobody says.

    `until` is the id of a later document that makes the answers wrong, for facts that change.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    document: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)
    until: str = ""


@dataclass(frozen=True)
class Questions:
    """What a file of questions holds: the questions, and the documents where it brings them."""

    questions: tuple[Question, ...]
    documents: tuple[Document, ...] = ()


def read_questions(path: str | Path, skipped: Skipped | None = None) -> Questions:
    """Return the questions of one file, and its documents if they are in it; packed files are unpacked.

    - our own: records with `question` and `answers` and, if they like, `id`, `document`, `until` and
      more, whose scalar values become `meta`;
    - the files of SQuAD 1.1 and 2.0, TimeQA (also as people annotated it), TriviaQA, HotpotQA, Natural
      Questions open and zsRE as they are: see question_forms.py.

    Records are objects, one a line or in a list. Left out and counted in `skipped`: what is broken,
    has no question or no answer (SQuAD 2.0's unanswerable questions among them), or an id read before.
    Raises BadInput where the file cannot be read or no question is left.
    """
    arguments.file("questions", path)
    path, skipped = Path(path), Skipped() if skipped is None else skipped
    before = len(skipped.examples)
    collected = _Collected(skipped)
    try:
        for record, where in records(path):
            if isinstance(record, str):
                skipped.add(record, where)
                continue
            for found, place in question_forms.flat(record, where):
                if isinstance(found, str):
                    skipped.add(found, place)
                else:
                    collected.add(found, place)
    except OSError as error:
        raise BadInput(f"cannot read questions {shown(path)}: {error.strerror}; give a file") from error
    except SkipError as error:
        raise BadInput(f"cannot read questions {shown(path)}: {error}; give the file whole") from error
    if not collected.questions:
        first = [*skipped.examples[before:], "it is empty"][0]
        raise BadInput(f"no question to ask in {shown(path)}: {first}; {_EXPECTED}")
    return Questions(tuple(collected.questions.values()), tuple(collected.documents.values()))


_EXPECTED = 'write {"question": "...", "answers": ["..."]} a line'


class _Collected:
    """Questions and documents by id, in the order read, and what was left out."""

    def __init__(self, skipped: Skipped) -> None:
        self.questions: dict[str, Question] = {}
        self.documents: dict[str, Document] = {}
        self.skipped = skipped

    def add(self, asked: Asked, where: str) -> None:
        """Take one question up, and the text that answers it."""
        named, reason = self._names(asked)
        if not asked.text.strip():
            reason = f"no question; its keys are {', '.join(map(shown, asked.keys))[:200]}"
        elif asked.impossible or not asked.answers:
            reason = "no answer"
        elif not reason and (named.id or where) in self.questions:
            reason = "duplicate id"
        document = named.document
        if asked.context.strip() and encodes(asked.context, asked.page):
            document = self._document(document or asked.page, asked.context)
        if reason:
            self.skipped.add(reason, where)
            return
        key = named.id or where
        self.questions[key] = Question(
            key, asked.text.strip(), asked.answers, document, asked.meta, named.until
        )

    def _names(self, asked: Asked) -> tuple["_Names", str]:
        """Return what a question is called by and calls by name, and the reason where one names nothing."""
        found = {}
        for field_, value in (("id", asked.id), ("document", asked.document), ("until", asked.until)):
            try:
                found[field_] = name_of(value) or ""
            except Unusable as error:
                return _Names(**found), f"{field_} {error}"
            except UnicodeEncodeError:
                return _Names(**found), "lone surrogate"
        whole = encodes(asked.text, asked.context, asked.page, *asked.answers)
        return _Names(**found), "" if whole else "lone surrogate"

    def _document(self, name: str, text: str) -> str:
        """Return the id of the document of this text; paragraphs of one name are one group."""
        key = f"{name}#{stable_hash(text):016x}" if name else f"{stable_hash(text):016x}"
        self.documents.setdefault(key, Document(key, text, name))
        return key


@dataclass(frozen=True)
class _Names:
    """What a question is called by and calls by name, as text; "" for none."""

    id: str = ""
    document: str = ""
    until: str = ""
