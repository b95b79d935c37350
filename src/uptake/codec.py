"""Dataclasses to JSON data and back, exactly, by their type hints.

What is read is refused unless it is what the hints say: no field more or less, no number where text is
meant. JSON has no infinity, so such a float becomes the text that `float` reads back.
"""

import dataclasses
import functools
import json
import math
import numbers
import re
import types
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from cattrs import BaseValidationError, Converter, ForbiddenExtraKeysError, transform_error
from cattrs.cols import (
    homogenous_tuple_structure_factory,
    is_mapping,
    list_structure_factory,
    mapping_structure_factory,
)

from uptake.errors import Mismatch, UptakeError

ReadT = TypeVar("ReadT")
Hook = Callable[[Any, Any], Any]  # (JSON data, type hint) -> value


DEPTH = 100  # of JSON from outside; what Uptake writes nests far less

# A string, to its end or to the end of the text, or a bracket; as JSON and as Python writes them.
_STRING = r"{0}[^{0}\\]*+(?:\\.?[^{0}\\]*+)*+(?:{0}|\Z)"
JSON_MARKS = re.compile(_STRING.format('"') + r"|[\[\]{}]", re.DOTALL)
PYTHON_MARKS = re.compile(f"{_STRING.format(chr(34))}|{_STRING.format(chr(39))}|[()\\[\\]{{}}]", re.DOTALL)


class Malformed(ValueError):
    """Data that is not what a type hint says; the message says on one line where and why."""


def plain(value: object, kind: Any = None) -> Any:
    """Return `value` as JSON data: dataclasses as dicts, odd floats and any other object as their text.

    With `kind`, a class it is derived from, the fields of that class alone.
    """
    return _usual().unstructure(value, unstructure_as=kind)


def dumps(value: object) -> str:
    """Return `value` as JSON text, as `plain` gives it."""
    return json.dumps(plain(value), allow_nan=False)


def load(kind: type[ReadT], data: object, by: Converter | None = None) -> ReadT:
    """Return JSON data as `kind`: a dataclass, or a tuple, list, mapping or union of such and of scalars.

    `object` stands for data of any shape, whose lists come back as tuples. Raises Malformed, and the
    Mismatch of a hook as it is. `by` is a converter with more hooks than the usual one.
    """
    try:
        return (by or _usual()).structure(data, kind)
    except (BaseValidationError, UptakeError, Malformed, RecursionError) as error:
        raise _mismatch(error) or Malformed(_line(error)) from None


def loads(kind: type[ReadT], text: str | bytes) -> ReadT:
    """Return JSON text as `kind`. Raises Malformed."""
    return load(kind, parse(text))


def parse(text: str | bytes, depth: int = DEPTH) -> Any:
    """Return the data that JSON text holds. Raises Malformed; brackets deeper than `depth` are never parsed.

    Everything that reads JSON from outside calls this: a parser that meets the end of the stack instead
    fails at another depth on each machine.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text), "surrogatepass")
        if deeper(text, depth):
            raise Malformed(f"it nests deeper than {depth} brackets")
        return json.loads(text)
    except Malformed:
        raise
    except ValueError as error:
        raise Malformed(f"it is no JSON: {error}") from None


def deeper(text: str, depth: int, marks: re.Pattern[str] = JSON_MARKS) -> bool:
    """Whether the brackets of a text nest deeper than `depth`, those in strings left aside."""
    if sum(map(text.count, "[{(")) <= depth:
        return False
    now = 0
    for match in marks.finditer(text):
        mark = match[0]
        now += (mark in "[{(") - (mark in "]})")
        if now > depth:
            return True
    return False


def converter(other: Callable[[Any], object]) -> Converter:
    """Return a converter between dataclasses and JSON data; `other` writes what has no place in JSON."""
    made = Converter(
        forbid_extra_keys=True,
        # What is declared as anything at all, or as an abstract class, is written by what it is.
        unstructure_fallback_factory=lambda kind: (
            lambda value: other(value) if type(value) is kind else made.unstructure(value)
        ),
        unstruct_collection_overrides={tuple: list},
    )

    def writes(fits: Callable[[Any], bool], hook: Callable[[Any], object]) -> None:
        made.register_unstructure_hook_func(fits, hook)

    # cattrs would turn "1" into 1 and "ab" into ("a", "b"): here a scalar is of its kind already, and
    # what holds others is of its shape, or both are refused.
    def reads(kind: type, hook: Callable[[Any], Any] | None = None) -> None:
        def read(value: Any, _: Any) -> Any:
            if type(value) is kind:
                return _sized(value)
            if hook is None:
                raise _not(value, _SCALARS[kind])
            return hook(value)

        made.register_structure_hook(kind, read)

    def holds(fits: Callable[[Any], bool], shape: type, what: str, factory: Callable[..., Hook]) -> None:
        def checked(kind: Any, by: Converter) -> Hook:
            inner = factory(kind, by)

            def read(value: Any, _: Any) -> Any:
                if not isinstance(value, shape):
                    raise _not(value, what)
                return inner(value, kind)

            return read

        made.register_structure_hook_factory(fits, checked)

    writes(lambda kind: kind in (type(None), bool), lambda value: value)
    writes(_whole, int)
    writes(_real, _finite)
    made.register_unstructure_hook_factory(
        is_mapping, lambda kind: made.gen_unstructure_mapping(kind, unstructure_to=dict, key_handler=_key)
    )

    reads(str)
    reads(bool)
    reads(int)
    reads(float, _float)
    made.register_structure_hook_func(lambda kind: kind in (object,), lambda value, _: _frozen(value))
    made.register_structure_hook_func(_made_of(Literal), _literal)
    made.register_structure_hook_func(_scalars, _one_of)
    holds(dataclasses.is_dataclass, dict, "an object", lambda kind, by: by.gen_structure_attrs_fromdict(kind))
    holds(is_mapping, dict, "an object", mapping_structure_factory)
    holds(_made_of(list), list, "a list", list_structure_factory)
    holds(_made_of(tuple), list, "a list", _tuple)
    return made


_SCALARS: dict[type, str] = {
    str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null",
}  # fmt: skip


_ODD = ("nan", "inf", "-inf")  # where text is meant as well, they stay text


@functools.cache
def _usual() -> Converter:
    return converter(str)


def _whole(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, numbers.Integral) and kind is not bool


def _real(kind: Any) -> bool:
    return (
        isinstance(kind, type) and issubclass(kind, numbers.Real) and not issubclass(kind, numbers.Integral)
    )


def _made_of(origin: Any) -> Callable[[Any], bool]:
    return lambda kind: get_origin(kind) is origin


def _key(key: Any, _: object = None) -> str:
    return str(key)


def _finite(value: Any) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _float(value: Any) -> float:
    if type(value) is not int and value not in _ODD:
        raise _not(value, _SCALARS[float])
    try:
        return float(value)
    except OverflowError:
        raise Malformed("is too large a number") from None


def _sized(value: Any) -> Any:
    """Return a scalar. Raises Malformed for a whole number that no float holds: figures are made of it."""
    if type(value) is int:
        _float(value)
    return value


def _literal(value: Any, kind: Any) -> Any:
    for each in get_args(kind):
        if type(each) is type(value) and each == value:
            return each
    raise _not(value, f"one of {', '.join(map(str, get_args(kind)))}")


def _scalars(kind: Any) -> bool:
    """Whether a hint is a union of several scalars, with None or without."""
    union, members = get_origin(kind) in (Union, types.UnionType), set(get_args(kind))
    return union and len(members - {type(None)}) > 1 and members <= _SCALARS.keys()


def _one_of(value: Any, kind: Any) -> Any:
    members = get_args(kind)
    if type(value) in members:
        return _sized(value)
    if float in members and (type(value) is int or (str not in members and value in _ODD)):
        return _float(value)
    raise _not(value, " or ".join(_SCALARS[each] for each in members))


def _tuple(kind: Any, by: Converter) -> Hook:
    if get_args(kind)[-1] is Ellipsis:
        return homogenous_tuple_structure_factory(kind, by)
    return by.gen_structure_hetero_tuple(kind)


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return {key: _frozen(item) for key, item in value.items()} if isinstance(value, dict) else value


def _not(value: Any, what: str) -> Malformed:
    return Malformed(f"is {value!r:.60}, not {what}")


def _mismatch(error: BaseException) -> Mismatch | None:
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_mismatch, error.exceptions)), None)
    return error if isinstance(error, Mismatch) else None


def _line(error: BaseException) -> str:
    """Return what is wrong first, and how much else is."""
    first, *more = transform_error(error, "$", _why)
    why, _, place = first.rpartition(" @ $")
    return f"{place.removeprefix('.') or 'it'} {why}" + (f" (and {len(more)} more)" if more else "")


def _why(error: BaseException, kind: object) -> str:
    if isinstance(error, KeyError):
        return "is missing"
    if isinstance(error, ForbiddenExtraKeysError):
        return f"has fields that nobody knows: {', '.join(map(repr, sorted(error.extra_fields)))}"
    return str(error) if isinstance(error, Malformed) else f"cannot be: {' '.join(str(error).split())}"
