"""Makes a new store in a hidden draft folder and moves it into place in one step."""

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from uptake.errors import BadInput
from uptake.store.files import delete_below, plain_errors
from uptake.store.inventory import NAME, TABLE
from uptake.store.remote.lease import FileLease, lease
from uptake.store.remote.objects import Location

_ABANDONED = 86_400  # seconds after which a draft without a lock is what a crash left


def check_free(path: Location, lock: str) -> None:
    """Raise BadInput where there is something at `path` that a new store may not replace."""
    if isinstance(path, Path):
        taken = path.exists() and (not path.is_dir() or any(path.iterdir()))
    else:
        with plain_errors(path):
            there = {name for name, _ in path.sizes()}
        # An empty table without store.json is what a crash left.
        left = {name for name in there if name.startswith(f"{TABLE}/") and "/data/" not in name}
        taken = bool(there - left - {lock, NAME})
    if taken:
        raise BadInput(
            f"{path}: already there; give a new folder, or add to the store with `uptake index add`"
        )


@contextlib.contextmanager
def new_store(path: Location, lock: str) -> Iterator[Location]:
    """Give a place to fill with what is to lie at `path`: a crash leaves no half of it in anybody's way.

    A folder is filled beside `path` and moved there in one step. Objects cannot be moved: there
    store.json must be written last. The lease `lock` tells others that somebody is at work on it.
    """
    if not isinstance(path, Path):
        with lease(path / lock):
            check_free(path, lock)
            delete_below(path / TABLE)
            yield path
        return
    clear_drafts(path, lock)
    draft = path.with_name(f".{path.name}-{secrets.token_hex(16)}")
    try:
        with plain_errors(path):
            draft.mkdir(parents=True)
        with FileLease(draft / lock):
            yield draft
            with plain_errors(path):
                draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def clear_drafts(path: Location, lock: str) -> None:
    """Delete what `new_store` left beside a folder when it was killed."""
    if not isinstance(path, Path):
        return
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
