"""The words in which a body is refused: the place, what stands there, and what may.

pydantic tells of each alternative what it lacks, in words of Python. A client wrote JSON, and wants one line.
"""

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from uptake.server.errors import ApiError, bad

Inputs = str | list[str] | list[int] | list[list[int]]

# By the end of pydantic's name for what is wrong: what the value has to be.
_KINDS = {
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "dict_type": "an object",
}
_TOKENS = "a token is a whole number from 0, as /tokenize gives it"
_INPUTS = "give a text, a list of texts, tokens as whole numbers, or a list of lists of them"


def refusal(
    error: ValidationError, body: Any, inputs: Mapping[str, int], shapes: Mapping[Any, Iterable[str]]
) -> ApiError:
    """Return the first thing that is wrong with a body, by its place, what was given, and what may be.

    `inputs` are the fields that take texts or tokens, with the most of them; `shapes` are the fields of each
    object within, by its name, or by None for any other.
    """
    errors = error.errors(include_url=False)
    # That something is of another kind says least.
    first = next((each for each in errors if not each["type"].endswith("_type")), errors[0])
    name = first["loc"][0]
    if name in inputs and first["type"] != "missing":
        return _of_inputs(str(name), body[name], inputs[str(name)])
    if first["type"] == "extra_forbidden":
        param = _place(first["loc"], shapes)
        return bad(
            f"{param}: there is no such field{_meant(first['loc'], shapes)}", param or None, "unknown_field"
        )
    if first["type"] == "missing":
        param = _place(first["loc"], shapes)
        return bad(f"{param} is missing: give it", param or None, "missing_field")
    if first["type"] in _KINDS:
        # Of alternatives the one that fits furthest: in a list, the entry that does not belong there.
        first = max(errors, key=lambda each: len(_place(each["loc"], shapes).split(".")))
        same = [each for each in errors if _place(each["loc"], shapes) == _place(first["loc"], shapes)]
        kinds = dict.fromkeys(_KINDS.get(each["type"], "") for each in same)
        if {"a number", "a whole number"} <= set(kinds):
            del kinds["a whole number"]
        rule = "give " + " or ".join(kind for kind in kinds if kind)
    else:
        rule = _rule(first["type"], first.get("ctx", {}), first["msg"])
    param = _place(first["loc"], shapes)
    return bad(f"{param or 'the body'} {shown(first['input'])}: {rule}", param or None)


def known_tokens(name: str, given: Inputs, most: int, whose: str) -> None:
    """Raise ApiError for a token that is none of a vocabulary; `given` is what stands in the field."""
    if isinstance(given, str) or not given:
        return
    lists: Sequence[Any] = given if isinstance(given[0], list) else [given]
    for number, ids in enumerate(lists):
        if isinstance(ids[0], int) and max(ids) >= most:
            place = next(i for i, token in enumerate(ids) if token >= most)
            param = f"{name}.{number}.{place}" if lists is given else f"{name}.{place}"
            raise bad(f"{param} {shown(ids[place])} is none of the {most:,} tokens of {whose}", param)


def shown(value: Any) -> str:
    """Return a value as a client wrote it, the start of a long one."""
    text = json.dumps(value, ensure_ascii=False)
    text = text if text.isprintable() else json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _of_inputs(name: str, given: Any, most: int) -> ApiError:
    """Return what is wrong with a text, texts, tokens or lists of tokens."""
    if not isinstance(given, list):
        return bad(f"{name} {shown(given)}: {_INPUTS}", name)
    if not given:
        return bad(f"{name} is an empty list: give a text or tokens", name)
    if type(given[0]) in (int, float, bool):
        return _of_tokens(name, given) or bad(f"{name}: {_INPUTS}", name)
    if not isinstance(given[0], str | list):
        return bad(f"{name}.0 {shown(given[0])}: {_INPUTS}", f"{name}.0")
    what = "texts" if isinstance(given[0], str) else "lists of tokens"
    if len(given) > most:
        return bad(f"{name} has {len(given):,} {what}: give at most {most:,} at once", name)
    for place, each in enumerate(given):
        if type(each) is not type(given[0]):
            told = f"{name}.{place} {shown(each)} stands among {what}: give {what} alone"
            return bad(told, f"{name}.{place}")
        if each == []:
            return bad(f"{name}.{place} is an empty list: give tokens, or leave it out", f"{name}.{place}")
        if isinstance(each, list) and (wrong := _of_tokens(f"{name}.{place}", each)):
            return wrong
    return bad(f"{name}: {_INPUTS}", name)


def _of_tokens(name: str, given: list[Any]) -> ApiError | None:
    for place, token in enumerate(given):
        if type(token) is not int or token < 0:
            return bad(f"{name}.{place} {shown(token)}: {_TOKENS}", f"{name}.{place}")
    return None


def _rule(kind: str, about: Mapping[str, Any], told: str) -> str:
    """Return what a value of the right kind has to be besides."""
    match kind:
        case "too_long":
            return f"give at most {about['max_length']:,} at once"
        case "too_short":
            return "give one at least" if about["min_length"] == 1 else f"give {about['min_length']} at least"
        case "literal_error":
            return f"give {about['expected']}"
        case "greater_than_equal":
            return f"give {about['ge']:,} or more"
        case "greater_than":
            return f"give more than {about['gt']:,}"
        case "less_than_equal":
            return f"give {about['le']:,} or less"
        case "less_than":
            return f"give less than {about['lt']:,}"
    return f"it {told.removeprefix('Input ')}"


def _place(place: Sequence[int | str], shapes: Mapping[Any, Iterable[str]]) -> str:
    """Return where something stands in what a client wrote, who did not write the names of alternatives."""
    named = [part for part in place if isinstance(part, int) or part.isidentifier()]
    alternatives = {"str", "int", "float", "bool", *(name for name in shapes if name and name[0].isupper())}
    return ".".join(str(part) for part in named if part not in alternatives)


def _meant(place: Sequence[int | str], shapes: Mapping[Any, Iterable[str]]) -> str:
    fields = [*shapes.get(place[-2], shapes[None])]
    near = difflib.get_close_matches(str(place[-1]), fields, 1)
    return f": did you mean {near[0]!r}?" if near else f", there are {', '.join(fields)}"
