"""One file per way of taking text up; each defines `way`. Dropping a file in here is all it takes.

Packages outside register theirs under the entry point group `uptake.methods`, each entry naming
a module that defines `way`.
"""

import difflib
import importlib
import pkgutil
from importlib.metadata import entry_points

from uptake.errors import BadInput
from uptake.method import Way


def names() -> list[str]:
    """Return the name of every way there is: file names here, entry points elsewhere."""
    inside = [module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)]
    return sorted({*inside, *(point.name for point in entry_points(group="uptake.methods"))})


def find(name: str) -> Way:
    """Return the way called `name`; BadInput with the nearest name if there is none."""
    way = getattr(_module(name), "way", None)
    if not isinstance(way, Way):
        raise BadInput(f"the module of method {name!r} defines no `way`: add `way = Way(...)` to it")
    return way


def summary(name: str) -> str:
    """Return the first line of what the method's file says about itself."""
    return (_module(name).__doc__ or "").strip().split("\n")[0]


def _module(name: str) -> object:
    for point in entry_points(group="uptake.methods"):
        if point.name == name:
            return point.load()
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names())}"
        raise BadInput(f"no method {name!r}: {hint}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
