"""Plain files, or objects, of a store: writes them whole, and sums them.

Knows nothing of passages, tables or indexes.
"""

import contextlib
import errno
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uptake.errors import BadInput, UptakeError
from uptake.sealed import from_json, replace_file, to_json
from uptake.store.remote.objects import Location


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
        if isinstance(path, Path):
            replace_file(path, data)
        else:
            path.write_bytes(data)


def write_json(path: Location, data: Mapping[str, Any]) -> None:
    """Write one JSON object with its sum, whole or not at all."""
    write_atomically(path, to_json(data))


def read_json(path: Location, cure: str = "put it back from a copy") -> dict[str, Any]:
    """Read what `write_json` wrote; raises Damaged for anything else, and lets FileNotFoundError through."""
    return from_json(path.read_bytes(), path, "file", cure)


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


def format_sums(sums: Mapping[str, str]) -> str:
    """Return file name -> SHA-256 as `sha256sum -c` reads it."""
    return "".join(f"{total}  {name}\n" for name, total in sums.items())


def parse_sums(lines: Sequence[str]) -> dict[str, str]:
    """Read lines that `format_sums` wrote."""
    return {name: total for total, _, name in (line.partition("  ") for line in lines)}
