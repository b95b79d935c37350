"""What the store does with plain files: write them whole, hold the writer's lease, check sums.

Knows nothing of passages, tables or indexes.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from uptake.errors import BadInput, Busy, Damaged, UptakeError

_CHANGED = "not what was written"
_ABANDONED = 86_400  # seconds after which a draft without a lock is what a crash left


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
        if isinstance(error, NotADirectoryError) or "Not a directory" in str(error):
            file = next((part for part in reversed(Path(path).parents) if part.is_file()), path)
            raise BadInput(f"{path}: {file} is a file, nothing can lie in it; give another path") from error
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


@contextlib.contextmanager
def new_folder(path: Path, lock: str) -> Iterator[Path]:
    """Fill a folder beside `path` that is moved there in one step: a crash leaves no half of it.

    The lease `lock` inside tells others that somebody is at work on it.
    """
    clear_drafts(path, lock)
    draft = path.with_name(f".{path.name}-{secrets.token_hex(16)}")
    try:
        with plain_errors(path):
            draft.mkdir(parents=True)
        with Lease(draft / lock):
            yield draft
            with plain_errors(path):
                draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def clear_drafts(path: Path, lock: str) -> None:
    """Delete what `new_folder` left beside `path` when it was killed."""
    draft = re.compile(re.escape(f".{path.name}-") + "[0-9a-f]{32}")
    with contextlib.suppress(OSError):
        for left in [folder for folder in path.parent.iterdir() if draft.fullmatch(folder.name)]:
            if _abandoned(left, lock):
                shutil.rmtree(left, ignore_errors=True)


def _abandoned(folder: Path, lock: str) -> bool:
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
        return False
    old = about.st_mtime < time.time() - _ABANDONED
    try:
        handle = os.open(folder / lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return old  # no lock yet: it may have been made this moment
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return old or os.fstat(handle).st_size > 0  # its maker wrote a name there, held the lock, and is gone
    except OSError:
        return False
    finally:
        os.close(handle)


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
    """The SHA-256 of every file of a store, one line each, as `sha256sum -c` reads it.

    Lance writes files once and never changes them but keeps no checksums, so each is summed after
    the commit that made it. A crash between the two leaves a file unsummed until the next commit.
    """

    def __init__(self, store: Path, watched: Sequence[str]) -> None:
        self._store = store
        self._watched = watched
        self._path = store / "checksums.sha256"

    def record(self) -> None:
        """Sum every file that is not summed yet."""
        with plain_errors(self._path):
            raw = self._raw()
            known = parse_sums(raw)
            fresh = format_sums(
                {name: sha256(self._store / name) for name in sorted(self._files()) if name not in known}
            )
            if raw.endswith(b"\n"):
                with self._path.open("ab") as file:
                    file.write(fresh)
                    file.flush()
                    os.fsync(file.fileno())
            else:  # there is none yet, or a crash tore its last line
                write_atomically(self._path, format_sums(known) + fresh)

    def clear(self) -> None:
        """Forget all sums: to be called before files are deleted, and `record` after it."""
        write_atomically(self._path, b"")

    @contextlib.contextmanager
    def deleting(self) -> Iterator[None]:
        """Around the deletion of files: their sums go with them, and a crash leaves none behind."""
        known = parse_sums(self._raw())
        missing = {name for name in known if not (self._store / name).exists()}
        self.clear()
        try:
            yield
        finally:
            kept = {n: total for n, total in known.items() if n in missing or (self._store / n).exists()}
            write_atomically(self._path, format_sums(kept))

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
        return self._path.read_bytes() if self._path.exists() else b""

    def _files(self) -> Iterator[str]:
        for watched in self._watched:
            path = self._store / watched
            for file in path.rglob("*") if path.is_dir() else [path]:
                # The hint is the one file that Lance rewrites; it only saves a listing.
                if file.is_file() and file.name != "latest_version_hint.json":
                    yield file.relative_to(self._store).as_posix()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
