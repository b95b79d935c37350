"""What people pass by mistake from Python, told in one line: a name for what it names, a text for a list.

It looks at what a value can do, never at its class, so that a model or a store of one's own passes.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from uptake.errors import BadInput


def model(value: Any) -> None:
    """Raise BadInput for what is no model."""
    if isinstance(value, str | Path):
        raise BadInput(f"model {str(value)!r} is a name: load it first, with uptake.load")
    if not (hasattr(value, "fingerprint") and hasattr(value, "predictions")):
        raise BadInput(f"model: {_kind(value)} is none; give what uptake.load returns")


def store(value: Any) -> None:
    """Raise BadInput for what is no store; None is no store at all."""
    if isinstance(value, str | Path):
        raise BadInput(f"store {str(value)!r} is a name: open it first, with uptake.Datastore.open")
    if value is not None and not (hasattr(value, "search") and hasattr(value, "source")):
        raise BadInput(f"store: {_kind(value)} is none; give what uptake.Datastore.open returns")


def several(name: str, value: Any) -> None:
    """Raise BadInput for one text where a list of them belongs, and for what is no list."""
    if isinstance(value, str | bytes):
        raise BadInput(f"{name} {value!r}: give a list, [{value!r}]")
    if not isinstance(value, Iterable):
        raise BadInput(f"{name} {value!r}: give a list")


def text(name: str, value: Any) -> None:
    """Raise BadInput for what is no text."""
    if not isinstance(value, str):
        raise BadInput(f"{name}: {_kind(value)} is no text; give a str")


def file(name: str, value: Any) -> None:
    """Raise BadInput for what is no path."""
    if not isinstance(value, str | os.PathLike):
        raise BadInput(f"{name}: {_kind(value)} is no file; give its path")


def budget(value: Any) -> None:
    """Raise BadInput for what is no budget; None is none."""
    if value is not None and not hasattr(value, "cpu_seconds"):
        raise BadInput(
            f"budget {value!r}: give uptake.Budget(cpu_seconds={value!r}), or another of its limits"
        )


def count(name: str, value: Any) -> None:
    """Raise BadInput for what is no whole number."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise BadInput(f"{name} = {value!r}: give a whole number")


def records(name: str, values: Any, field: str, cure: str) -> None:
    """Raise BadInput unless each of the values has the field that makes it a record of this kind."""
    if isinstance(values, str | bytes | Path) or not isinstance(values, Iterable):
        raise BadInput(f"{name}: {_kind(values)} holds none; give {cure}")
    for value in values:
        if not hasattr(value, field):
            raise BadInput(f"{name}: {_kind(value)} is none; give {cure}")


def _kind(value: Any) -> str:
    """Return what people would call a value: a short one itself, else its class."""
    shown = repr(value)
    if value is None or (isinstance(value, str | int | float | Path) and len(shown) <= 40):
        return shown
    return f"a {type(value).__name__}"
