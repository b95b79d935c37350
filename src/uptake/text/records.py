"""Records, rows and lines become documents, or the reasons why they do not.

A record is a mapping with a text and, if it likes, `id`, `group` and more, from whatever format. An id is
text or a whole number. A cell that is empty, null or NaN is no id: the record is then named by where it
stood, so that rows without ids never become one.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from uptake.text.reading import Reading
from uptake.text.types import Document

_SCALARS = str | int | float | bool
_NAME_BYTES = 1024  # of an id or a group, which every passage carries along
_META_BYTES = 1 << 16  # of all the rest
_TOO_MUCH = f"more than {_META_BYTES} bytes beside its text, which every passage would carry"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_KEYS = 8  # that a message names
_EXACT = 1 << 53  # beyond it floats are no longer all the whole numbers


class Unusable(ValueError):
    """What makes no document; the message is the reason to count."""


def document(record: Mapping[str, Any], name: str, reading: Reading, place: str = "") -> Document | str:
    """Return the document a record makes, `name` its id if it has none, or the reason why it makes none."""
    try:
        text = _text(record, reading)
        own = {key: value for key in ("id", "group") if (value := _name(record, key, reading)) is not None}
        meta = {
            str(key): _string(value)
            for key, value in record.items()
            if key not in (reading.text_key, "id", "group")
            and isinstance(value, _SCALARS)
            and not _is_nan(value)
        }
        _check(text, {**own, **meta}, reading)
    except UnicodeDecodeError:
        return reading.not_text
    except UnicodeEncodeError:
        return "lone surrogate"
    except Unusable as error:
        return str(error)
    places = ((0, place),) if place else ()
    return Document(own.get("id", name), text, own.get("group", ""), meta, places)


def missing_text(keys: Mapping[str, Any], reading: Reading) -> str:
    """Return the reason for a record without a text, naming the keys that are there."""
    named = [_shown(str(key)) for key, _ in zip(keys, range(_KEYS), strict=False)]
    there = ", ".join(named) + (", ..." if len(keys) > _KEYS else "")
    detail = f"no {_shown(reading.text_key)} among its keys {there}: {reading.other_key}"
    return f"no text; {detail if keys else 'it is empty'}"


def detail(error: Exception) -> str:
    """Return what an error says as the detail of a reason: one short line."""
    text = " ".join(str(error).removeprefix("it is no JSON: ").split()) or type(error).__name__
    return _shown(text, 100)


def name_of(value: Any) -> str | None:
    """Return an id as text, None for one that is not there. Raises Unusable for what names nothing."""
    if value is None or _is_nan(value) or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Unusable("is neither text nor a number")
    if isinstance(value, float):
        if math.isinf(value):
            raise Unusable("is an infinite number")
        if value.is_integer():  # pandas turns whole numbers into such where one is missing
            if abs(value) > _EXACT:
                raise Unusable("is a number too large for its format to tell from the next")
            value = int(value)
    try:
        text = value if isinstance(value, str) else str(value)
    except ValueError:  # more digits than Python writes
        raise Unusable(f"is longer than {_NAME_BYTES} bytes") from None
    if _CONTROL.search(text):
        raise Unusable("has NUL or another control character")
    if len(text.encode("utf8")) > _NAME_BYTES:
        raise Unusable(f"is longer than {_NAME_BYTES} bytes")
    return text


def _text(record: Mapping[str, Any], reading: Reading) -> str:
    found = record.get(reading.text_key)
    if found is None or _is_nan(found):
        raise Unusable(missing_text(record, reading))
    if not isinstance(found, str | bytes):
        raise Unusable("text is not a string")
    return found if isinstance(found, str) else reading.decode(found)


def _name(record: Mapping[str, Any], key: str, reading: Reading) -> str | None:
    if key == reading.text_key:
        return None
    value = record.get(key)
    try:
        return name_of(reading.decode(value) if isinstance(value, bytes) else value)
    except Unusable as error:
        raise Unusable(f"{key} {error}") from None


def _check(text: str, others: Mapping[str, str], reading: Reading) -> None:
    size = len(text.encode("utf8"))
    rest = sum(len(key.encode("utf8")) + len(value.encode("utf8")) for key, value in others.items())
    if "\0" in text or any("\0" in part for part in (*others, *others.values())):
        raise Unusable("NUL character")
    if size > reading.max_document_bytes:
        raise Unusable(reading.too_long)
    if rest > _META_BYTES:
        raise Unusable(_TOO_MUCH)
    if not text.strip():
        raise Unusable("empty text")


def _string(value: str | float) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except ValueError:  # more digits than Python writes
        raise Unusable(_TOO_MUCH) from None


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _shown(text: str, most: int = 40) -> str:
    printable = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:most])
    return printable.encode("utf8", "backslashreplace").decode()
