"""One file per format; each defines `format`. Dropping a file in here is all it takes.

A file's suffix says which format it is of, so that what is read of a folder does not depend on what
other files hold; what packs a file is recognised by its content (packing.py).
"""

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import MappingProxyType

from uptake.text import packing
from uptake.text.reading import Format


@cache
def by_suffix() -> MappingProxyType[str, str]:
    """Return the name of the format, which is that of its file here, of each suffix."""
    found: dict[str, str] = {}
    for module in pkgutil.iter_modules(__path__):
        for suffix in named(module.name).suffixes:
            if suffix in found:
                raise RuntimeError(f"{suffix} is read by {found[suffix]} and {module.name}: let one read it")
            found[suffix] = module.name
    return MappingProxyType(found)


def named(name: str) -> Format:
    """Return the format that the file `name` here defines."""
    made: Format = importlib.import_module(f"{__name__}.{name}").format
    return made


def of(path: Path) -> str | None:
    """Return the name of the format of a file, None where no format has its suffix."""
    return by_suffix().get(suffix(path))


def suffix(path: Path) -> str:
    """Return the suffix that names the format, in lower case, without that of a compression."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in packing.SUFFIXES else name.suffix
