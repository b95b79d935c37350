"""Private cache folders: what can be made again, in a place that only this user writes to.

Whoever writes there makes a draft first and renames it, so that no process ever finds half of anything.
Knows nothing of what lies in them.
"""

import contextlib
import os
import secrets
import shutil
import time
from pathlib import Path

_DRAFT = ".draft-"
_ABANDONED = 86_400  # seconds after which a draft is what a crash left


def cache_root() -> Path:
    """Return the folder of all caches: UPTAKE_CACHE, or ~/.cache/uptake."""
    return Path(os.environ.get("UPTAKE_CACHE") or Path.home() / ".cache" / "uptake").expanduser()


def private(folder: Path, make: bool = False) -> bool:
    """Return whether a cache folder exists and is this user's; close it to others. `make` makes it first."""
    if make:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not folder.is_dir():
        return False
    about = folder.stat()
    if about.st_uid == os.geteuid() and about.st_mode & 0o077:
        folder.chmod(0o700)
    return about.st_uid == os.geteuid()


def clear_drafts(folder: Path) -> None:
    """Delete what a crash left half written in a cache folder."""
    for left in folder.glob(f"{_DRAFT}*"):
        if left.stat().st_mtime < time.time() - _ABANDONED:
            shutil.rmtree(left, ignore_errors=True)


def discard(folder: Path) -> None:
    """Delete a folder so that no process ever finds half of it, even if this one is killed meanwhile."""
    away = folder.with_name(f"{_DRAFT}{secrets.token_hex(8)}")
    with contextlib.suppress(OSError):  # another process was first, or it was never there
        folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the bytes of a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
