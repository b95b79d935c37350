"""The private cache of this user on this machine: folders of derived files, and which files were checked.

It holds nothing that cannot be made again. A folder in it never changes once it is in place, and lies beside
the sealed SHA-256 of its files, which also says whose it is.
"""

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from uptake.cache import cache_root, private
from uptake.codec import Malformed, load, plain
from uptake.errors import Damaged, UptakeError
from uptake.sealed import from_json, from_lines, replace_file, to_json, to_lines
from uptake.store.files import format_sums, parse_sums, sha256

SUMS = "sums"
_SMALL = 1 << 20  # bytes; what is smaller is hashed at each reading
_SETTLED = 2_000_000_000  # nanoseconds: what changed later than that may change again under the same time
_CURE = "it is made again"


def cache_folder(uid: str) -> Path:
    """Return the cache folder of the store `uid`. Raises Damaged where that is no valid uid."""
    if not re.fullmatch(r"[0-9a-f]{32}", uid):
        raise Damaged(f"store uid {uid!r} is not 32 hexadecimal digits; put store.json back from a copy")
    return cache_root() / "indexes" / uid


def seal(draft: Path, home: Path) -> None:
    """Write the sums of all files of `draft`, which is to lie at `home`, into it."""
    sums = {path.name: sha256(path) for path in sorted(draft.iterdir())}
    replace_file(draft / SUMS, to_lines(_whose(home) + format_sums(sums)))


def damaged(folder: Path, everything: bool = False) -> list[str]:
    """Return the names of files in a folder that are not what was written, by the sums beside them.

    Large files that have not changed since this machine last hashed them are hashed with `everything` alone.
    """
    try:
        first, *lines = from_lines((folder / SUMS).read_bytes(), folder / SUMS, "list of sums", _CURE)
        if f"{first}\n" != _whose(folder):
            return [SUMS]
        sums = parse_sums(lines)
        names = {path.name for path in folder.iterdir()} - {SUMS}
        with Stamps(folder, everything) as stamps:
            return sorted(names ^ sums.keys()) + [
                name for name in sorted(names & sums.keys()) if not stamps.file(folder / name, sums[name])
            ]
    except OSError as error:
        return [f"{error.filename}: {error.strerror}"]
    except UptakeError as error:
        return [str(error)]


class Stamps:
    """Which large files were found to be what was written, and have not changed since. A context manager.

    A file counts as unchanged while device, inode, size and both of its times are as they were: no program
    can write to a file and leave them all. What rots on the disk by itself they do not show: `everything`
    reads it all again.
    """

    def __init__(self, place: Path, everything: bool = False) -> None:
        name = hashlib.sha256(os.fsencode(place.absolute())).hexdigest()[:32]
        self._path = cache_root() / "checked" / f"{name}.json"
        self._everything = everything
        self._known: dict[str, str] = {}
        self._fresh: dict[str, str] = {}

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError, UptakeError, Malformed):
            if private(self._path.parent):
                data = from_json(self._path.read_bytes(), self._path, "list of checked files", _CURE)
                self._known = load(dict[str, str], data)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._fresh.items() - self._known.items():
            with contextlib.suppress(OSError):  # without a cache they are hashed again next time
                if private(self._path.parent, make=True):
                    kept = {key: state for key, state in self._known.items() if Path(key).exists()}
                    replace_file(self._path, to_json(plain(kept | self._fresh)))

    def file(self, path: Path, expected: str) -> bool:
        """Return whether a file's SHA-256 is the one expected. Raises OSError."""
        return self.holds(path, expected, lambda: sha256(path) == expected)

    def holds(self, path: Path, expected: str, test: Callable[[], bool]) -> bool:
        """Return what `test` says of a file, or said when it and `expected` were last the same."""
        about = path.stat()
        if about.st_size < _SMALL:
            return test()
        times = f"{about.st_mtime_ns} {about.st_ctime_ns}"
        state = f"{about.st_dev} {about.st_ino} {about.st_size} {times} {expected}"
        key, settled = str(path.absolute()), time.time_ns() - about.st_ctime_ns > _SETTLED
        if self._everything or self._known.get(key) != state:
            if not test():
                return False
            if not settled:
                return True
        self._fresh[key] = state
        return True


def _whose(folder: Path) -> str:
    root = cache_root()
    return f"# {folder.relative_to(root) if folder.is_relative_to(root) else folder.name}\n"
