"""One file per protocol, each with one class derived from `Protocol`. Dropping one in here is all it takes.

Packages outside register theirs under the entry point group `uptake.protocols`, each entry naming
the class.
"""

import difflib
import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Any

from uptake.errors import BadInput
from uptake.evaluation.protocol import Protocol


def names() -> list[str]:
    """Return the name of every protocol there is: file names here, entry points elsewhere."""
    inside = [module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)]
    return sorted({*inside, *(point.name for point in entry_points(group="uptake.protocols"))})


def find(name: str) -> type[Protocol]:
    """Return the class of the protocol called `name`; BadInput with the nearest name if there is none."""
    for point in entry_points(group="uptake.protocols"):
        if point.name == name:
            return _checked(name, point.load())
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names())}"
        raise BadInput(f"no protocol {name!r}: {hint}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    own = [
        each
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, Protocol) and each.__module__ == module.__name__
    ]
    return _checked(name, own[0] if len(own) == 1 else None)


def _checked(name: str, found: Any) -> type[Protocol]:
    if isinstance(found, type) and issubclass(found, Protocol) and getattr(found, "name", None) == name:
        return found
    raise BadInput(f"the file of protocol {name!r} defines no class of that name: derive one from Protocol")
