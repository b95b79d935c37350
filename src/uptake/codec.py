"""Dataclasses to JSON data and back, exactly, and files written whole or not at all.

JSON has no infinity, so such a float becomes the text that `float` reads back.
"""

import dataclasses
import functools
import json
import math
import numbers
import os
import secrets
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uptake.errors import BadInput, Missing

ReportT = typing.TypeVar("ReportT")


def write_whole(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` so that nobody ever sees half of it. Raises BadInput where it cannot."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)  # a pipe or a device must be written to, not replaced
            return
        path = path.resolve()  # a link stays a link
        draft = path.with_name(f".uptake-{secrets.token_hex(8)}")
        try:
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise BadInput(
            f"cannot write {path}: {error.strerror}; give a folder with room that you may write to"
        ) from None


def plain(value: object) -> Any:
    """Return `value` as JSON data: dataclasses as dicts, odd floats and any other object as their text."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value)


def read_report(kind: type[ReportT], path: str | Path, form: str, what: str) -> ReportT:
    """Return the report in a file, whose fields lie beside those of its header, as `kind`.

    `form` is the format it names, `what` how people call it. Raises Missing and BadInput.
    """
    try:
        data = json.loads(Path(path).read_bytes())
        if not isinstance(data, dict) or data.get("format") != form:
            raise ValueError(f'it has no "format": "{form}"')
        return typing.cast(ReportT, typed(kind, {**data, "header": data}, "report"))
    except OSError as error:
        raise Missing(f"cannot read {path}: {error.strerror}; give a file that --json wrote") from None
    except (ValueError, OverflowError, RecursionError) as error:
        raise BadInput(f"{path} is not {what}: {error}; give a file that --json wrote") from None


def typed(kind: Any, value: Any, place: str) -> Any:
    """Return JSON data `value` as `kind`: a dataclass, tuple, mapping or scalar as results.py uses them.

    `object` stands for data of any shape, whose lists come back as tuples. Keys nobody asked for are
    passed over, so that a newer file can be read. Raises ValueError that says what is wrong and where.
    """
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _record(kind, value, place)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(typed(inner[0], item, f"{place}[{n}]") for n, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: typed(inner[1], item, f"{place}.{key}") for key, item in value.items()}
    if kind is float and (type(value) in (int, float) or value in ("nan", "inf", "-inf")):
        return float(value)
    if kind is object:
        return _frozen(value)
    if type(value) is kind or (inner and (value is None or isinstance(value, str | int | float))):
        return value
    raise ValueError(f"{place} is {value!r:.60}")


def _record(kind: Any, value: dict[str, Any], place: str) -> Any:
    hints = _hints(kind)
    given = {name: typed(hints[name], value[name], f"{place}.{name}") for name in hints if name in value}
    try:
        return kind(**given)
    except TypeError:
        lacking = [name for name in hints if name not in given]
        raise ValueError(f"{place} lacks one of {', '.join(lacking)}") from None


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _frozen(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_frozen, value))
    return {key: _frozen(item) for key, item in value.items()} if isinstance(value, dict) else value
