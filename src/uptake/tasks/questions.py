"""Questions with their answers, and the formats they are read from: SQuAD, TimeQA, and our own lines.

What cannot be used is left out, counted by reason and named; only a file that is not there or
holds no question at all is an error. It knows nothing of models.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uptake.codec import parse
from uptake.errors import BadInput
from uptake.text.files import RECORDS, SkipError, Skipped, read_chunks, read_lines, shown, suffix
from uptake.text.types import Document, stable_hash

MOST_BYTES = 4 << 30  # unpacked
_LINE = 64 << 20


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

    - SQuAD 1.1 and 2.0: an object with `data`; a paragraph is a document, its article the group.
    - TimeQA and flattened SQuAD: records with `question`, `context` and `targets` or `answers`.
    - our own: records with `question` and `answers` and, if they like, `id`, `document`, `until` and
      more, whose scalar values become `meta`.

    Records are objects, one a line or in a list. Left out and counted in `skipped`: what is broken,
    has no question or no answer (SQuAD 2.0's unanswerable questions among them), or an id read before.
    Raises BadInput where the file cannot be read or no question is left.
    """
    path, skipped = Path(path), Skipped() if skipped is None else skipped
    before = len(skipped.examples)
    collected = _Collected(skipped)
    try:
        for record, where in _records(path):
            if isinstance(record, str):
                skipped.add(record, where)
            elif isinstance(record.get("data"), list):
                collected.squad(record["data"], where)
            else:
                collected.record(record, where)
    except OSError as error:
        raise BadInput(f"cannot read questions {shown(path)}: {error.strerror}; give a file") from error
    except SkipError as error:
        raise BadInput(f"cannot read questions {shown(path)}: {error}; give the file whole") from error
    if not collected.questions:
        first = [*skipped.examples[before:], "it is empty"][0]
        raise BadInput(f"no question to ask in {shown(path)}: {first}")
    return Questions(tuple(collected.questions.values()), tuple(collected.documents.values()))


def _records(path: Path) -> Iterator[tuple[Any, str]]:
    """Yield (object or the reason why there is none, where it stood)."""
    if suffix(path) not in RECORDS:
        whole = b"".join(read_chunks(path, MOST_BYTES))
        try:
            data = parse(whole)
        except (ValueError, RecursionError):
            pass  # TimeQA's .json files hold an object a line
        else:
            for number, one in enumerate(data if isinstance(data, list) else [data], 1):
                yield _object(one), f"{shown(path)}:{number}"
            return
        lines = read_lines(iter([whole]), _LINE)
    else:
        lines = read_lines(read_chunks(path, MOST_BYTES), _LINE)
    for number, line in enumerate(lines, 1):
        where = f"{shown(path)}:{number}"
        if line is None:
            yield f"longer than {_LINE} bytes", where
        elif line.strip():
            yield _parsed(line), where


def _parsed(line: bytes) -> Any:
    try:
        return _object(parse(line.decode("utf-8-sig")))
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "broken JSON"


def _object(value: Any) -> Any:
    return value if isinstance(value, dict) else "not a JSON object"


class _Collected:
    """Questions and documents by id, in the order read, and what was left out."""

    def __init__(self, skipped: Skipped) -> None:
        self.questions: dict[str, Question] = {}
        self.documents: dict[str, Document] = {}
        self.skipped = skipped

    def squad(self, articles: list[Any], where: str) -> None:
        """Take SQuAD's nested form up: articles of paragraphs of questions."""
        for article in articles:
            title = _text(_get(article, "title"))
            for paragraph in _list(_get(article, "paragraphs")):
                context = _text(_get(paragraph, "context"))
                place = f"{where}: {title}" if title else where
                if not context.strip():
                    self.skipped.add("paragraph without text", place)
                    continue
                document = self._document(title, context)
                for asked in _list(_get(paragraph, "qas")):
                    if isinstance(asked, dict):
                        self._question(asked, document, f"{place}: {asked.get('id')}")
                    else:
                        self.skipped.add("not a JSON object", place)

    def record(self, record: dict[str, Any], where: str) -> None:
        """Take one flat record up."""
        context = _text(record.get("context"))
        document = _text(record.get("document"))
        if context.strip():
            # TimeQA's idx is "page#relation#number".
            page = document or _text(record.get("title")) or _text(record.get("idx")).partition("#")[0]
            document = self._document(page, context)
        self._question(record, document, where)

    def _document(self, name: str, text: str) -> str:
        """Return the id of the document of this text; paragraphs of one name are one group."""
        key = f"{name}#{stable_hash(text):016x}" if name else f"{stable_hash(text):016x}"
        self.documents.setdefault(key, Document(key, text, name))
        return key

    def _question(self, record: dict[str, Any], document: str, where: str) -> None:
        text = _text(record.get("question"))
        answers = _answers(record)
        key = _text(record.get("id")) or _text(record.get("idx")) or where
        reason = ""
        if not text.strip():
            reason = "no question"
        elif record.get("is_impossible") is True or not answers:
            reason = "no answer"
        elif key in self.questions:
            reason = "duplicate id"
        elif not _whole(text, key, *answers):
            reason = "lone surrogate"
        if reason:
            self.skipped.add(reason, where)
            return
        own = {*_OWN, "document", "until"}
        meta = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in record.items()
            if name not in own and isinstance(value, str | int | float | bool)
        }
        until = _text(record.get("until"))
        self.questions[key] = Question(key, text.strip(), answers, document, meta, until)


_OWN = ("id", "idx", "question", "answers", "targets", "context", "title", "is_impossible", "paragraphs")


def _answers(record: dict[str, Any]) -> tuple[str, ...]:
    """Return the answers a record names, each once, in order; none where it names none that is text."""
    found = record.get("answers", record.get("targets"))
    if isinstance(found, dict):  # flattened SQuAD: {"text": [...], "answer_start": [...]}
        found = found.get("text")
    listed = found if isinstance(found, list) else [found]
    texts = [_text(_get(one, "text") if isinstance(one, dict) else one).strip() for one in listed]
    return tuple(dict.fromkeys(text for text in texts if text))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    # An id or an answer may be written as a number.
    return json.dumps(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _whole(*texts: str) -> bool:
    try:
        "".join(texts).encode("utf8")
    except UnicodeEncodeError:
        return False
    return True
