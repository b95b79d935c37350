"""Settings as people write them: `learning_rate=1e-3`, `trainable=lora(rank=8)`, on any frozen dataclass.

A value is a number, true, false, none, a bare word or path, text in quotes, several in parentheses, or a
choice with its own settings, to any depth: `steps=finetune(optimizer=sgd(learning_rate=1e-3),clip=none)`.
Python's own parser takes it apart. A name is looked for in the object's own fields, then in the fields
of its settings; where two have it, a dot says which: `optimizer.learning_rate`. Names between may be
left out.
"""

import ast
import copy
import dataclasses
import difflib
import inspect
import numbers
import re
import types
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from uptake.codec import PYTHON_MARKS, deeper
from uptake.errors import BadInput

SettingsT = TypeVar("SettingsT")


class Miss(IntEnum):
    """How a name fails to be a setting, the nearest miss first."""

    AMBIGUOUS = 0  # several have it
    NEAR = 1  # one is spelt much like it
    UNKNOWN = 2


class NoSuchSetting(BadInput):
    """A name that is not one setting's; `names` are those that may have been meant."""

    def __init__(self, message: str, miss: Miss = Miss.UNKNOWN, names: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.miss, self.names = miss, tuple(names)


def apply(settings: SettingsT, *assignments: str) -> SettingsT:
    """Return the settings with `name=value` texts applied in order; BadInput names what does not fit.

    What the settings themselves refuse is checked once all are in place.
    """
    pairs = []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise BadInput(f"setting {_shown(assignment)!r}: write name=value")
        pairs.append((name.strip(), _Value.read(text.strip())))
    changed: SettingsT = _applied(settings, pairs)
    return changed


def find(settings: object, name: str) -> str:
    """Return the dotted path of the setting `name`; NoSuchSetting unless exactly one has it."""
    paths = _paths(settings)
    found = [path for path in paths if path == name] or [path for path in paths if _leads(name, path)]
    if len(found) > 1:
        raise NoSuchSetting(
            f"setting {name!r} could be {' or '.join(found)}: write one of them", Miss.AMBIGUOUS, found
        )
    if not found:
        near = difflib.get_close_matches(name, [*paths, *(path.split(".")[-1] for path in paths)], 1)
        if near:
            raise NoSuchSetting(f"no setting {name!r}: did you mean {near[0]!r}?", Miss.NEAR, near)
        raise NoSuchSetting(
            f"no setting {name!r}: there are {', '.join(paths) or 'none'}", Miss.UNKNOWN, paths
        )
    return found[0]


def _leads(name: str, path: str) -> bool:
    """Whether the words of `name` stand in `path` in their order, the last one last."""
    *words, last = name.split(".")
    *places, end = path.split(".")
    rest = iter(places)
    return last == end and all(word in rest for word in words)


def parse(hint: Any, text: str, name: str) -> Any:
    """Return the value of type `hint` that `text` writes; BadInput, calling it `name`, if it writes none."""
    return _parsed(hint, _Value.read(text.strip()), name)


def written(settings: Any) -> str:
    """Return the shortest text that `parse` reads back: `finetune(optimizer=sgd, passes=2)`."""
    return _written(settings, type(settings), everything=False)


def describe(settings: Any) -> dict[str, Any]:
    """Return all settings as plain data, each choice under the name of its class."""
    out: dict[str, Any] = {"kind": type(settings).__name__}
    for part in fields(settings):
        out[part.name] = _described(getattr(settings, part.name))
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
        several = arguments[-1] is Ellipsis
        inner = [_values(each) for each in (arguments[:1] if several else arguments)]
        return f"({', '.join(inner)}{', ...' if several else ''})"
    plain: dict[Any, str] = {bool: "true | false", int: "whole number", float: "number", str: "text"}
    if hint in plain:
        return plain[hint]
    choices = [each for each in _choices(hint).values() if each is not hint and _has_words(each())]
    return " | ".join(_written(each(), each, everything=True) for each in choices) or "as below"


def _paths(settings: Any, prefix: str = "") -> list[str]:
    out = []
    for part in fields(settings):
        out.append(prefix + part.name)
        value = getattr(settings, part.name)
        if dataclasses.is_dataclass(value):
            out += _paths(value, f"{prefix}{part.name}.")
    return out


# What a text says in Python. Text in quotes stays as it is; bare text that is no Python, such as
# /a/path or s3://bucket/key, is put in quotes; and since keywords have neither dashes nor dots,
# `chunk-tokens=` becomes `chunk_tokens=` and `optimizer.beta1=` becomes `optimizer__beta1=`.
_PARTS = re.compile(
    r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""
    r"""|(?P<name>(?<=[(,])\s*[\w.-]+\s*=)"""
    r"""|(?P<bare>[^\s'"(),\[\]=][^'"(),\[\]]*+)(?=[,)\]]|\Z)""",
    re.DOTALL,
)


_DEPTH = 50  # of brackets: checked before Python's parser, which has no end of stack of its own


def _shown(text: str) -> str:
    flat = " ".join(text[:400].split())
    return flat if len(flat) <= 80 else f"{flat[:79]}…"


@dataclass(frozen=True)
class _Value:
    """One value as it was written. `node` is where it stands in `source`, or None where that is no Python."""

    text: str
    source: str
    node: ast.expr | None

    @classmethod
    def read(cls, text: str) -> "_Value":
        if deeper(text, _DEPTH, PYTHON_MARKS):
            raise BadInput(f"setting {_shown(text)} nests deeper than {_DEPTH} brackets: write it flatter")
        source = _PARTS.sub(_python, text)
        return cls(text, source, _tree(source))

    @property
    def shown(self) -> str:
        """The text as a message repeats it."""
        return _shown(self.text)

    def at(self, node: ast.expr) -> "_Value":
        """Return the value that stands at a node within this one."""
        return _Value(ast.get_source_segment(self.source, node) or "", self.source, node)

    @property
    def quoted(self) -> str | None:
        """The text between quotes, None where it is not in quotes."""
        # Bare text within parentheses is put in quotes to be read as Python: then the text has none.
        if isinstance(self.node, ast.Constant) and isinstance(self.node.value, str) and self.text[0] != "(":
            return self.node.value
        return None

    @property
    def parts(self) -> "list[_Value]":
        """The values between parentheses or brackets, or the only one; none where it is no Python."""
        if self.node is None:
            return []
        nodes = self.node.elts if isinstance(self.node, ast.Tuple | ast.List) else [self.node]
        return [self.at(each) for each in nodes]


def _python(match: re.Match[str]) -> str:
    if match["name"]:
        return match["name"].replace("-", "_").replace(".", "__")
    if match["bare"] and _tree(f"_(_={match['bare']})") is None:
        return repr(match["bare"].rstrip())
    return match[0]


def _tree(source: str) -> ast.expr | None:
    with suppress(SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.parse(source, mode="eval").body
    return None


def _applied(settings: Any, pairs: Sequence[tuple[str, _Value]]) -> Any:
    for name, value in pairs:
        settings = _set(settings, find(settings, name.replace("-", "_")).split("."), value)
    return _checked(settings) if pairs else settings


def _set(settings: Any, path: list[str], value: _Value) -> Any:
    """Return the settings with one of them changed and nothing checked: what comes next may make it fit."""
    name, rest = path[0], path[1:]
    hint = get_type_hints(type(settings))[name]
    new = _set(getattr(settings, name), rest, value) if rest else _parsed(hint, value, name)
    changed = copy.copy(settings)
    object.__setattr__(changed, name, new)
    return changed


def _checked(settings: Any) -> Any:
    inner = {part.name: getattr(settings, part.name) for part in fields(settings)}
    nested = {name: _checked(value) for name, value in inner.items() if dataclasses.is_dataclass(value)}
    return dataclasses.replace(settings, **nested)


def _parsed(hint: Any, value: _Value, name: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, name)
    if origin is Literal:
        known = {each if isinstance(each, str) else str(each).lower(): each for each in arguments}
        said = _text(value)
        if said not in known:
            raise BadInput(f"{name}={value.shown}: use one of {', '.join(known)}")
        return known[said]
    if origin is tuple:
        return _tuple(hint, value, name)
    if hint is bool:
        if value.text.lower() not in ("true", "false"):
            raise BadInput(f"{name}={value.shown}: use true or false")
        return value.text.lower() == "true"
    if hint is str:
        return _text(value)
    if hint in (int, float):
        try:
            return hint(value.text)
        except ValueError:
            raise BadInput(f"{name}={value.shown}: use {_ARTICLES[hint]}") from None
    return _choice(hint, value, name)


_ARTICLES: dict[Any, str] = {int: "a whole number", float: "a number"}


def _text(value: _Value) -> str:
    return value.text if value.quoted is None else value.quoted


def _one_of(arguments: Sequence[Any], value: _Value, name: str) -> Any:
    members = [each for each in arguments if each is not type(None)]
    if len(members) < len(arguments) and value.text.lower() == "none":
        return None
    if len(members) == 1:
        return _parsed(members[0], value, name)
    for each in sorted(members, key=lambda each: each is str):  # any text is a str: it comes last
        with suppress(BadInput):
            return _parsed(each, value, name)
    wanted = " or ".join(_ARTICLES.get(each, _values(each)) for each in members)
    raise BadInput(f"{name}={value.shown}: use {wanted}")


def _tuple(hint: Any, value: _Value, name: str) -> tuple[Any, ...]:
    parts, hints = value.parts, get_args(hint)
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(parts)
    if value.node is None or len(parts) != len(hints):
        raise BadInput(f"{name}={value.shown}: write {_values(hint)}, text in quotes")
    return tuple(_parsed(each, part, name) for each, part in zip(hints, parts, strict=True))


def _choice(kind: Any, value: _Value, name: str) -> Any:
    """Return an instance of `kind` or a subclass, written as its class name and perhaps its settings.

    A kind whose subclasses stand in modules that are imported when they are named has `load_choices`.
    """
    choices, node = _choices(kind), value.node
    call = node if isinstance(node, ast.Call) else None
    wanted = (value.at(call.func) if call else value).text.lower()
    if wanted not in choices and (load := getattr(get_origin(kind) or kind, "load_choices", None)):
        load()
        choices = _choices(kind)
    if not choices:
        raise BadInput(f"{name}={value.shown}: it cannot be written as text; set it from Python")
    word = wanted.partition("(")[0].strip()
    if call is None and word != wanted and word in choices:
        raise BadInput(f"{name}={value.shown}: write {word}(setting=value), with a value after each =")
    if wanted not in choices:
        raise BadInput(
            f"{name}={value.shown}: use one of {', '.join(choices)}, with settings as in name(setting=value)"
        )
    pairs = []
    for each in [*call.args, *call.keywords] if call else []:
        if not isinstance(each, ast.keyword) or each.arg is None:
            raise BadInput(f"{name}={value.shown}: in parentheses write setting=value")
        pairs.append((each.arg.replace("__", "."), value.at(each.value)))
    names = [own for own, _ in pairs]
    if twice := [own for own in names if names.count(own) > 1]:
        raise BadInput(f"{name}={value.shown}: {twice[0]} is set twice, set it once")
    return _applied(choices[wanted](), pairs)


def _choices(kind: Any) -> dict[str, type[Any]]:
    """Return the classes that a setting may name: those with an underscore are private."""
    return {each.__name__.lower(): each for each in _classes(kind) if not each.__name__.startswith("_")}


def _classes(kind: Any) -> Iterator[Any]:
    kind = get_origin(kind) or kind  # Method[Any] is any Method
    if dataclasses.is_dataclass(kind) and not inspect.isabstract(kind):
        yield kind
    for each in kind.__subclasses__():
        yield from _classes(each)


def _has_words(value: Any) -> bool:
    """Whether a value can be written: one that holds a mapping, say, is made in Python alone."""
    if dataclasses.is_dataclass(value):
        return all(_has_words(getattr(value, part.name)) for part in fields(value))
    if isinstance(value, tuple):
        return all(map(_has_words, value))
    return value is None or isinstance(value, bool | str | numbers.Real)


def _written(value: Any, hint: Any, everything: bool) -> str:
    """Write a value for a field of type `hint`; of its settings those that are not usual, or everything."""
    if dataclasses.is_dataclass(value):
        kind: Any = type(value)
        usual, hints = kind(), get_type_hints(kind)
        inner = [
            f"{part.name}={_written(mine, hints[part.name], everything)}"
            for part in fields(value)
            if (mine := getattr(value, part.name)) != getattr(usual, part.name) or everything
        ]
        name: str = kind.__name__.lower()
        return f"{name}({', '.join(inner)})" if inner else name
    if isinstance(value, tuple):
        inner = [_written(each, Any, everything) for each in value]
        return f"({', '.join(inner)}{',' * (len(inner) == 1)})"
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # Where it can be nothing but text, a word needs no quotes.
        bare = hint is str or get_origin(hint) is Literal
        return value if bare and re.fullmatch(r"[A-Za-z_][\w./:-]*", value, re.ASCII) else repr(value)
    return repr(int(value) if isinstance(value, numbers.Integral) else float(value))
