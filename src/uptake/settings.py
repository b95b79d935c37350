"""Settings as people write them: `learning_rate=1e-3`, `trainable=lora(rank=8)`, on any frozen dataclass.

A name is looked for in the object's own fields, then in the fields of its settings; where two
have it, a dot says which: `optimizer.learning_rate`. Names between may be left out.
"""

import dataclasses
import difflib
import re
import types
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from uptake.errors import BadInput

SettingsT = TypeVar("SettingsT")


def apply(settings: SettingsT, *assignments: str) -> SettingsT:
    """Return the settings with `name=value` texts applied in order; BadInput names what does not fit."""
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise BadInput(f"setting {assignment!r}: write name=value")
        settings = _set(settings, find(settings, name.strip().replace("-", "_")).split("."), text.strip())
    return settings


def find(settings: object, name: str) -> str:
    """Return the dotted path of the setting `name`; BadInput with the nearest name if there is none."""
    paths = _paths(settings)
    found = [path for path in paths if path == name] or [path for path in paths if _leads(name, path)]
    if len(found) > 1:
        raise BadInput(f"setting {name!r} could be {' or '.join(found)}: write one of them")
    if not found:
        near = difflib.get_close_matches(name, [*paths, *(path.split(".")[-1] for path in paths)], 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(paths) or 'none'}"
        raise BadInput(f"no setting {name!r}: {hint}")
    return found[0]


def _leads(name: str, path: str) -> bool:
    """Whether the words of `name` stand in `path` in their order, the last one last."""
    *words, last = name.split(".")
    *places, end = path.split(".")
    rest = iter(places)
    return last == end and all(word in rest for word in words)


def describe(settings: Any) -> dict[str, Any]:
    """Return all settings as plain data, each choice under the name of its class."""
    out: dict[str, Any] = {"kind": type(settings).__name__}
    for part in fields(settings):
        value = getattr(settings, part.name)
        out[part.name] = _described(value)
    return out


def _described(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_described, value))
    return describe(value) if dataclasses.is_dataclass(value) else value


def fields(settings: Any) -> list[dataclasses.Field[Any]]:
    """Return the fields that are settings: all but those whose metadata say `setting=False`."""
    return [part for part in dataclasses.fields(settings) if part.metadata.get("setting", True)]


def values(settings: Any, prefix: str = "") -> dict[str, str]:
    """Return for each setting, by its dotted path, what may be written for it."""
    hints = get_type_hints(type(settings))
    out = {}
    for part in fields(settings):
        out[prefix + part.name] = _values(hints[part.name])
        value = getattr(settings, part.name)
        if dataclasses.is_dataclass(value):
            out |= values(value, f"{prefix}{part.name}.")
    return out


def _values(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " | ".join("none" if each is type(None) else _values(each) for each in arguments)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin is tuple:
        return f"({_values(arguments[0])}, ...)"
    plain: dict[Any, str] = {bool: "true | false", int: "whole number", float: "number", str: "text"}
    return plain[hint] if hint in plain else " | ".join(map(_call, _choices(hint).values())) or "as below"


def _call(choice: Any) -> str:
    """Write a choice as it is asked for, with its settings if it has any."""
    inner = ", ".join(f"{part.name}={part.default}" for part in fields(choice))
    name: str = choice.__name__.lower()
    return f"{name}({inner})" if inner else name


def _paths(settings: Any, prefix: str = "") -> list[str]:
    out = []
    for part in fields(settings):
        out.append(prefix + part.name)
        value = getattr(settings, part.name)
        if dataclasses.is_dataclass(value):
            out += _paths(value, f"{prefix}{part.name}.")
    return out


def _set(settings: Any, path: list[str], text: str) -> Any:
    name, rest = path[0], path[1:]
    hint = get_type_hints(type(settings))[name]
    value = _set(getattr(settings, name), rest, text) if rest else parse(hint, text, name)
    return dataclasses.replace(settings, **{name: value})


def parse(hint: Any, text: str, name: str) -> Any:
    """Return the value of type `hint` that `text` writes; BadInput if it writes none."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if text.lower() == "none" and type(None) in arguments:
            return None
        return parse(next(each for each in arguments if each is not type(None)), text, name)
    if origin is Literal:
        if text not in arguments:
            raise BadInput(f"{name}={text}: use one of {', '.join(map(str, arguments))}")
        return text
    if origin is tuple:
        return (parse(arguments[0], text, name),)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise BadInput(f"{name}={text}: use true or false")
        return text.lower() == "true"
    if hint in (int, float, str):
        try:
            return hint(text)
        except ValueError:
            kind = "a whole number" if hint is int else "a number"
            raise BadInput(f"{name}={text}: use {kind}") from None
    return _choice(hint, text, name)


def _choice(kind: type[Any], text: str, name: str) -> Any:
    """Return an instance of a subclass of `kind`, written as its class name and perhaps its settings."""
    # A field of one final class has no choice but its settings.
    choices = _choices(kind) or {kind.__name__.lower(): kind}
    match = re.fullmatch(r"([\w-]+)(?:\((.*)\))?", text)
    if not match or match[1].lower() not in choices:
        raise BadInput(
            f"{name}={text}: use one of {', '.join(choices)}, with settings as in name(setting=value)"
        )
    inner = [part for part in (match[2] or "").split(",") if part.strip()]
    return apply(choices[match[1].lower()](), *inner)


def _choices(kind: type[Any]) -> dict[str, type[Any]]:
    """Return the subclasses that may be asked for by name: an underscore keeps one to ourselves."""
    return {
        each.__name__.lower(): each for each in kind.__subclasses__() if not each.__name__.startswith("_")
    }
