"""GGUF files as models: each is dequantised once, into a folder of the cache that its content names.

CACHE/models/<SHA-256>/ holds what transformers reads, beside the sums of its files; a missing or damaged one
is made again. The folders together keep under a size, the ones that were not used for longest going first.
A lock for each, held while it is made or read, lets several processes ask at once; what a killed one left is
cleared by the next.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from uptake.cache import cache_root, clear_drafts, discard, private, sync
from uptake.errors import BadInput, UptakeError
from uptake.gguf.convert import bytes_after, convert, quantisation
from uptake.gguf.header import Header, read_header

_FORMAT = 1  # of the folders: raised whenever the same file would give another one
_LIMIT = 20  # GB, where UPTAKE_CACHE_MODELS does not say


@dataclass(frozen=True, slots=True)
class Dequantised:
    """A GGUF file as a folder that transformers reads."""

    folder: Path
    quantisation: str  # as `convert.quantisation` names it


@contextlib.contextmanager
def dequantised(name: str) -> Iterator[Dequantised]:
    """Around the reading of a GGUF file's folder: it is made if need be, and stays while the block runs.

    Raises Missing or BadInput for a file that cannot be read or is no language model, UptakeError where
    the cache has no room.
    """
    path = Path(name).expanduser()
    header = read_header(path)
    limit = _limit()
    home = cache_root() / "models"
    with contextlib.ExitStack() as held:
        try:
            if not private(home, make=True):
                raise PermissionError(errno.EACCES, "others may write there")
            digest = _digest(path)
            key = hashlib.sha256(f"{_FORMAT} {digest}".encode()).hexdigest()
            lock = held.enter_context(_locked(home / f"{key}.lock"))
            if not _whole(home / key):
                _make(header, digest, home, key)
            os.utime(home / key)
            fcntl.flock(lock, fcntl.LOCK_SH)  # others may read it as well, and nobody removes it
            _make_room(home, key, limit)
        except OSError as error:
            raise UptakeError(
                f"{home}: {path.name} cannot be kept there ({error.strerror}); set UPTAKE_CACHE to a private "
                "folder with room"
            ) from error
        yield Dequantised(home / key, quantisation(header))


def _make(header: Header, digest: str, home: Path, key: str) -> None:
    """Convert into a draft and rename it; the caller holds the key's lock, so a draft is a dead one's."""
    clear_drafts(home)
    draft = home / f".draft-{key}"
    for left in (draft, home / key):
        if left.exists():
            discard(left)
    need, free = bytes_after(header), shutil.disk_usage(home).free
    if need > free:
        raise UptakeError(
            f"{home}: {header.path.name} takes {need / 1e9:.1f} GB there, and {free / 1e9:.1f} GB are free; "
            "set UPTAKE_CACHE to a folder with room"
        )
    draft.mkdir(mode=0o700)
    try:
        convert(header, draft)
        if _digest(header.path) != digest:
            raise BadInput(f"{header.path} changed while it was read: leave it alone, and repeat")
        sums = {file.name: _digest(file) for file in sorted(draft.iterdir())}
        (draft / "sums.json").write_text(json.dumps(sums) + "\n")
        for file in draft.iterdir():
            sync(file)
        draft.rename(home / key)
        sync(home)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _make_room(home: Path, key: str, limit: int) -> None:
    """Remove folders that were used longest ago until all take at most `limit` bytes; never `key`'s."""
    folders = [folder for folder in home.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}
    total = sum(sizes.values())
    for folder in sorted(folders, key=lambda one: one.stat().st_mtime):
        if total <= limit:
            return
        if folder.name == key:
            continue
        with contextlib.suppress(BlockingIOError), _locked(home / f"{folder.name}.lock", wait=False):
            discard(folder)
            total -= sizes[folder]


def _whole(folder: Path) -> bool:
    """Tell whether a folder is there with just the files that were written."""
    try:
        sums = json.loads((folder / "sums.json").read_bytes())
        names = {file.name for file in folder.iterdir()} - {"sums.json"}
        return (
            isinstance(sums, dict)
            and names == sums.keys()
            and all(_digest(folder / name) == sums[name] for name in names)
        )
    except (OSError, ValueError, RecursionError):
        return False


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield handle
    finally:
        os.close(handle)


def _limit() -> int:
    text = os.environ.get("UPTAKE_CACHE_MODELS") or str(_LIMIT)
    try:
        return int(float(text) * 1e9)
    except (ValueError, OverflowError):
        raise BadInput(
            f"UPTAKE_CACHE_MODELS {text!r}: write a number of gigabytes, such as {_LIMIT}"
        ) from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
