"""What the store does with plain files: write them whole, hold the writer's lease, check sums.

Knows nothing of passages, tables or indexes.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from uptake.errors import BadInput, Busy, Damaged, UptakeError


@contextlib.contextmanager
def plain_errors(path: Path | str) -> Iterator[None]:
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
        raise UptakeError(f"{path}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return an error's message on one line, cut to a readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + " ..."


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` so that a crash at any moment leaves either the old content or the new."""
    with plain_errors(path):
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


def write_json(path: Path, data: Mapping[str, object]) -> None:
    """Write one JSON object atomically."""
    write_atomically(path, (json.dumps(data, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object; raises Damaged where it is none and lets FileNotFoundError through."""
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise Damaged(f"{path}: not the JSON that was written; put it back from a copy") from error
    if not isinstance(data, dict):
        raise Damaged(f"{path}: not a JSON object; put it back from a copy")
    return data


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def format_sums(sums: Mapping[str, str]) -> bytes:
    """Write file name -> SHA-256 as `sha256sum -c` reads it."""
    return "".join(f"{total}  {name}\n" for name, total in sums.items()).encode()


def parse_sums(raw: bytes) -> dict[str, str]:
    """Read what `format_sums` wrote; lines that are torn are left out."""
    lines = (line.partition("  ") for line in raw.decode("utf8", "replace").splitlines())
    return {name: total for total, _, name in lines if len(total) == 64}


class Lease:
    """The right to write to a store, held by one process at a time and freed even by its death.

    Raises Busy, naming the holder, where somebody else has it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle = -1

    def __enter__(self) -> Self:
        with plain_errors(self._path):
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 200).decode("utf8", "replace").strip() or "another process"
            os.close(handle)
            raise Busy(
                f"{self._path.parent}: {holder} is writing to this store; wait for it or end it"
            ) from None
        with contextlib.suppress(OSError):  # the name is a courtesy: a full disk must not stop a removal
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)


class Checksums:
    """A list of SHA-256 sums, one line a file, as `sha256sum -c` reads it.

    Lance writes files once and never changes them but keeps no checksums, so each is summed after
    the commit that made it. A crash between the two leaves a file unsummed until the next commit.
    """

    def __init__(self, store: Path, folder: str) -> None:
        self._store = store
        self._folder = folder
        self._path = store / "checksums.sha256"

    def record(self) -> None:
        """Sum every file not summed yet; forget those that are gone."""
        with plain_errors(self._path):
            known = self.read()
            here = set(self._files())
            fresh = {name: sha256(self._store / name) for name in sorted(here - known.keys())}
            if known.keys() <= here and self._ends_well():
                lines = format_sums(fresh)
                with self._path.open("ab") as file:
                    file.write(lines)
                    file.flush()
                    os.fsync(file.fileno())
            else:
                write_atomically(
                    self._path, format_sums({name: s for name, s in known.items() if name in here} | fresh)
                )

    def read(self) -> dict[str, str]:
        """Return file name -> sum; a line torn by a crash is left out."""
        sums = parse_sums(self._path.read_bytes() if self._path.exists() else b"")
        return {name: total for name, total in sums.items() if name.startswith(self._folder + "/")}

    def damaged(self) -> list[str]:
        """Return the files that are here but no longer hold what was written."""
        here = set(self._files())
        return [name for name, total in self.read().items() if name in here and self._sum(name) != total]

    def _files(self) -> Iterator[str]:
        for path in (self._store / self._folder).rglob("*"):
            # The hint is the one file that Lance rewrites; it only saves a listing.
            if path.is_file() and path.name != "latest_version_hint.json":
                yield path.relative_to(self._store).as_posix()

    def _sum(self, name: str) -> str | None:
        try:
            return sha256(self._store / name)
        except OSError:
            return None

    def _ends_well(self) -> bool:
        return not self._path.exists() or self._path.read_bytes()[-1:] in (b"\n", b"")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
