"""Results that take long and can be made again, each in a file of its own in a store or this user's cache.

A file is found under all that its result depends on, in words. Whatever is wrong with one - it is damaged,
the folder is another user's, the disk is full, nothing may be written - costs making the result again, and
never the run.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uptake.cache import cache_root, private
from uptake.errors import Damaged, UptakeError
from uptake.sealed import digest, from_json, to_json, write_whole


def cache_of(kind: str) -> Path | None:
    """Return the folder of one kind of results in the cache, made here; None where there can be none."""
    folder = cache_root() / kind
    try:
        return folder if private(folder, make=True) else None
    except OSError:
        return None


def read_kept(folder: Path | None, of: str) -> dict[str, Any] | None:
    """Return what was kept under `of`; None where nothing was, or what is there is damaged."""
    if folder is None:
        return None
    path = _path(folder, of)
    try:
        data = from_json(path.read_bytes(), path, "kept result", "it is made again")
    except (OSError, Damaged):
        return None
    return data if data.pop("of", None) == of else None


def keep(folder: Path | None, of: str, data: Mapping[str, Any]) -> bool:
    """Keep JSON data under `of`, whole or not at all; return whether it is there now."""
    if folder is not None:
        with contextlib.suppress(OSError, UptakeError):
            folder.mkdir(exist_ok=True)
            write_whole(_path(folder, of), to_json({"of": of, **data}))
            return True
    return False


def _path(folder: Path, of: str) -> Path:
    return folder / f"{digest(of.encode('utf8', 'surrogatepass'))[:32]}.json"
