"""The forms that files of questions come in: each record becomes flat questions, whatever names it uses.

| data set | record |
|---|---|
| our own, NQ-open, zsRE | `question` or `src`; `answers` or `answer` |
| SQuAD, nested | `data`, of articles, of `paragraphs`, of `qas` |
| SQuAD, flat; TimeQA | `question`, `context`, and `answers` or `targets` |
| TimeQA, as people annotated it | `paras`, and `questions`: pairs of a question and its answers |
| TriviaQA | `Data`, of records with `Question` and `Answer` with `Value` and `Aliases` |
| HotpotQA | `question`, `answer`, and `context`: pairs of a title and its sentences |
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

_TEXT = ("question", "Question", "src")
_ANSWERS = ("answers", "targets", "answer", "Answer")
_ID = ("id", "idx", "_id", "QuestionId", "question_id")
_NESTED = ("data", "Data", "paragraphs", "qas", "questions", "paras", "context", "document", "until")
_OWN = frozenset((*_TEXT, *_ANSWERS, *_ID, "title", *_NESTED, "is_impossible"))


@dataclass(frozen=True, slots=True)
class Asked:
    """One question as a record asks it; `id`, `document` and `until` are as they stood there.

    `context` is the text that answers it, of the page called `page`; `keys` are those of its record.
    """

    text: str
    answers: tuple[str, ...] = ()
    id: Any = None
    document: Any = None
    until: Any = None
    context: str = ""
    page: str = ""
    impossible: bool = False
    meta: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()


# A question, or the reason why there is none; and where it stood.
Found = tuple[Asked | str, str]


def flat(record: Mapping[str, Any], where: str) -> Iterator[Found]:
    """Yield the questions of one record, of whichever form."""
    if isinstance(record.get("data"), list):
        yield from _squad(record["data"], where)
    elif isinstance(record.get("Data"), list):
        for number, one in enumerate(record["Data"], start=1):
            yield from _each(one, f"{where}: {number}")
    elif isinstance(record.get("questions"), list) and isinstance(record.get("paras"), list):
        yield from _annotated(record, where)
    else:
        yield _asked(record, _context(record.get("context")), _page(record)), where


def _each(record: Any, where: str) -> Iterator[Found]:
    if isinstance(record, dict):
        yield from flat(record, where)
    else:
        yield "not a JSON object", where


def _squad(articles: list[Any], where: str) -> Iterator[Found]:
    """Yield the questions of articles of paragraphs; a paragraph is a document, its article the group."""
    for article in articles:
        title = _text(_get(article, "title"))
        place = f"{where}: {title}" if title else where
        if not isinstance(_get(article, "paragraphs"), list):
            yield "article without paragraphs", place
        for paragraph in _list(_get(article, "paragraphs")):
            context = _text(_get(paragraph, "context"))
            if not context.strip():
                yield "paragraph without text", place
                continue
            if not isinstance(_get(paragraph, "qas"), list):
                yield "paragraph without questions", place
            for asked in _list(_get(paragraph, "qas")):
                if isinstance(asked, dict):
                    yield _asked(asked, context, title), f"{place}: {asked.get('id')}"
                else:
                    yield "not a JSON object", place


def _annotated(record: Mapping[str, Any], where: str) -> Iterator[Found]:
    """Yield the questions that people wrote for one page of TimeQA."""
    context = "\n".join(text for text in record["paras"] if isinstance(text, str))
    page, index = _text(record.get("link")), _text(record.get("index"))
    for number, pair in enumerate(record["questions"]):
        place = f"{where}: {number + 1}"
        if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str):
            key = f"{index}#{number}" if index else None
            yield Asked(pair[0], _answers(pair[1]), key, context=context, page=page), place
        else:
            yield "no question; a pair of a question and its answers is meant here", place


def _asked(record: Mapping[str, Any], context: str, page: str) -> Asked:
    meta = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in record.items()
        if name not in _OWN and isinstance(value, str | int | float | bool)
    }
    return Asked(
        _text(_first(record, _TEXT)),
        _answers(_first(record, _ANSWERS)),
        _first(record, _ID),
        record.get("document"),
        record.get("until"),
        context,
        page,
        record.get("is_impossible") is True,
        meta,
        tuple(record),
    )


def _page(record: Mapping[str, Any]) -> str:
    # TimeQA's idx is "page#relation#number".
    return _text(record.get("title")) or _text(record.get("idx")).partition("#")[0]


def _context(value: Any) -> str:
    """Return the text of a context: as it is, or of HotpotQA's titles and their sentences."""
    if isinstance(value, dict):
        value = list(zip(_list(value.get("title")), _list(value.get("sentences")), strict=False))
    if not isinstance(value, list):
        return _text(value)
    pages = [(_text(_at(page, 0)), _at(page, 1)) for page in value]
    texts = [f"{title}\n{''.join(map(_text, _list(sentences)))}" for title, sentences in pages]
    return "\n\n".join(text.strip() for text in texts if text.strip())


def _answers(found: Any) -> tuple[str, ...]:
    """Return the answers that are named, each once, in order; none where none is text."""
    if isinstance(found, dict) and "text" in found:  # flattened SQuAD: {"text": [...], "answer_start": [...]}
        found = found["text"]
    elif isinstance(found, dict) and "Value" in found:  # TriviaQA
        found = [found["Value"], *_list(found.get("Aliases"))]
    listed = found if isinstance(found, list) else [found]
    texts = [
        _text(_get(one, "text") or _get(one, "answer") if isinstance(one, dict) else one) for one in listed
    ]
    return tuple(dict.fromkeys(text.strip() for text in texts if text.strip()))


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    # An answer may be written as a number.
    return json.dumps(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _get(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _at(value: Any, place: int) -> Any:
    return value[place] if isinstance(value, list | tuple) and len(value) > place else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
