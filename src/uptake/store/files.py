"""Plain files, or objects, of a store: writes them whole and checks their sums.

Knows nothing of passages, tables or indexes.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uptake.codec import parse
from uptake.errors import BadInput, Damaged, UptakeError
from uptake.store.remote.objects import Location

_CHANGED = "not what was written"


@contextlib.contextmanager
def plain_errors(path: Location | str) -> Iterator[None]:
    """Turn the errors of the operating system into one line each that names `path` and the cure."""
    try:
        yield
    except OSError as error:
        # Libraries in other languages put the reason into the message and leave errno empty.
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise UptakeError(
                f"{path}: the disk is full; free some space and repeat: nothing stored is lost"
            ) from error
        if (
            isinstance(error, PermissionError)
            or error.errno == errno.EROFS
            or "Permission denied" in str(error)
        ):
            raise BadInput(f"{path}: permission denied; check who owns it and its mode") from error
        if isinstance(error, NotADirectoryError) or "Not a directory" in str(error):
            file = next((part for part in reversed(Path(str(path)).parents) if part.is_file()), path)
            raise BadInput(f"{path}: {file} is a file, nothing can lie in it; give another path") from error
        raise UptakeError(f"{path}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, cut to a readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + " ..."


def write_atomically(path: Location, data: bytes) -> None:
    """Replace `path` so that a crash at any moment leaves either the old content or the new."""
    with plain_errors(path):
        if not isinstance(path, Path):
            path.write_bytes(data)
            return
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


def write_json(path: Location, data: Mapping[str, object]) -> None:
    """Write one JSON object atomically."""
    write_atomically(path, (json.dumps(data, indent=2) + "\n").encode())


def read_json(path: Location) -> dict[str, Any]:
    """Read one JSON object; raises Damaged where it is none and lets FileNotFoundError through."""
    try:
        data = parse(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path}: not the JSON that was written; put it back from a copy") from error
    if not isinstance(data, dict):
        raise Damaged(f"{path}: not a JSON object; put it back from a copy")
    return data


def sha256(path: Location) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    if not isinstance(path, Path):
        return path.sha256()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sizes(folder: Location) -> Iterator[tuple[str, int]]:
    """Yield the name, from the folder on, and the bytes of each file below it."""
    if not isinstance(folder, Path):
        yield from folder.sizes()
        return
    for file in folder.rglob("*"):
        if file.is_file():
            yield file.relative_to(folder).as_posix(), file.stat().st_size


def delete_below(folder: Location) -> None:
    """Delete a folder and everything in it, if it is there and may be deleted."""
    with contextlib.suppress(OSError):
        shutil.rmtree(folder, ignore_errors=True) if isinstance(folder, Path) else folder.delete()


def format_sums(sums: Mapping[str, str]) -> bytes:
    """Write file name -> SHA-256 as `sha256sum -c` reads it."""
    return "".join(f"{total}  {name}\n" for name, total in sums.items()).encode()


def parse_sums(raw: bytes) -> dict[str, str]:
    """Read what `format_sums` wrote; lines that are torn are left out."""
    lines = (line.partition("  ") for line in raw.decode("utf8", "replace").splitlines())
    return {name: total for total, _, name in lines if len(total) == 64}


class Checksums:
    """The SHA-256 of every file of a store, one line each, as `sha256sum -c` reads it.

    Lance writes files once and never changes them but keeps no checksums, so each is summed after
    the commit that made it. A crash between the two leaves a file unsummed until the next commit.
    """

    def __init__(self, store: Location, covered: Sequence[str]) -> None:
        self._store = store
        self._covered = covered
        self._path = store / "checksums.sha256"

    def record(self) -> None:
        """Sum every file that is not summed yet."""
        with plain_errors(self._path):
            raw = self._raw()
            known = parse_sums(raw)
            names = [name for name in sorted(self._names()) if name not in known and _summed(name)]
            fresh = format_sums({name: sha256(self._store / name) for name in names})
            if isinstance(self._path, Path) and raw.endswith(b"\n"):
                with self._path.open("ab") as file:
                    file.write(fresh)
                    file.flush()
                    os.fsync(file.fileno())
            elif fresh or not raw.endswith(b"\n"):  # there is none yet, a crash tore it, or it is an object
                write_atomically(self._path, format_sums(known) + fresh)

    def clear(self) -> None:
        """Forget all sums: to be called before files are deleted, and `record` after it."""
        write_atomically(self._path, b"")

    @contextlib.contextmanager
    def deleting(self) -> Iterator[None]:
        """Around the deletion of files: their sums go with them, and a crash leaves none behind."""
        known = parse_sums(self._raw())
        missing = known.keys() - self._names()
        self.clear()
        try:
            yield
        finally:
            present = missing.union(self._names())
            write_atomically(self._path, format_sums({n: known[n] for n in known if n in present}))

    def faults(self) -> dict[str, str]:
        """Return file name -> "missing" or "not what was written", for each that is not as it was."""
        raw = self._raw()
        whole = raw[: raw.rfind(b"\n") + 1]
        sums = parse_sums(whole)
        faults = {name: fault for name, total in sums.items() if (fault := self._fault(name, total))}
        if len(sums) != whole.count(b"\n"):
            faults[self._path.name] = _CHANGED
        return faults

    def _fault(self, name: str, total: str) -> str:
        try:
            return "" if sha256(self._store / name) == total else _CHANGED
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return "missing"
        except OSError as error:
            return f"cannot be read ({one_line(error)})"

    def _raw(self) -> bytes:
        try:
            return self._path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return b""

    def _names(self) -> Iterator[str]:
        for covered in self._covered:
            if (self._store / covered).is_file():
                yield covered
            else:
                yield from (f"{covered}/{name}" for name, _ in sizes(self._store / covered))


def _summed(name: str) -> bool:
    """Tell whether a file never changes once it is there."""
    file = name.rpartition("/")[2]
    # The hint is the one file that Lance rewrites; it only saves a listing. What begins with a dot is
    # being written at this moment, or was when its writer died.
    return file != "latest_version_hint.json" and not file.startswith(".")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
