"""One file per method; each defines `spec`. Dropping a file in here is all it takes.

Packages outside register theirs under the entry point group `uptake.methods`, each entry naming
a module that defines `spec`. Several on one model are asked for as `A+B`, a mixture of several
as `A/B`: see `contract/composed.py`.
"""

import difflib
import importlib
import pkgutil
from importlib.metadata import entry_points

from uptake.errors import BadInput
from uptake.methods.contract.composed import combine, mix
from uptake.methods.contract.method import MethodSpec


def names() -> list[str]:
    """Return the name of every method there is: file names here, entry points elsewhere."""
    inside = [module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)]
    inside.remove("contract")  # what every method is, and no method
    return sorted({*inside, *(point.name for point in entry_points(group="uptake.methods"))})


def find(name: str) -> MethodSpec:
    """Return the method called `name`: for `A+B` those called A and B on one model, for `A/B` their mixture.

    A `+` binds more tightly than a `/`. Raises BadInput with the nearest name if there is none, with the
    reason where some cannot stand together.
    """
    for mark, join in (("/", mix), ("+", combine)):
        parts = [part.strip() for part in name.split(mark)]
        if len(parts) > 1:
            if "" in parts:
                raise BadInput(
                    f"method {name!r}: a name is missing beside a {mark}, "
                    f"write it as in ttt-nn{mark}in-context"
                )
            if len(set(parts)) < len(parts):
                raise BadInput(f"{name} names a method twice: name each once")
            return join({part: find(part) for part in parts})
    spec = getattr(_module(name), "spec", None)
    if not isinstance(spec, MethodSpec):
        raise BadInput(f"the module of method {name!r} defines no `spec`: add `spec = MethodSpec(...)` to it")
    return spec


def summary(name: str) -> str:
    """Return the first line of what the method's file says about itself."""
    if "/" in name:
        return f"The base, {' and '.join(name.split('/'))} mixed by how well each predicts the text so far."
    if "+" in name:
        return f"{' and '.join(name.split('+'))} on one model, each reading what it reads alone."
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
