"""Files of ours on the disk: written whole or not at all, under a SHA-256 over all their bytes.

Whoever reads one checks the sum before a parser sees any byte, and raises Damaged if it does not fit. Three
shapes carry it: a JSON object in its last field, lines of text in a last line, and safetensors in their
metadata (`adaptation/tensors.py`). The sum finds damage, cuts and files mixed up, and is no signature:
whoever may write a file may write its sum.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from uptake.cache import sync
from uptake.codec import parse
from uptake.errors import BadInput, Damaged

FIELD = "sha256"  # what the sum is called in JSON and in metadata

_DRAFT = ".uptake-"
_ABANDONED = 86_400  # seconds after which an empty draft is what a crash left
_NEW = 0o666  # the mode of a new file, less the umask: one rule for all that is written
_JSON_END = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n\}\n\Z')
_LINES_END = re.compile(rb"# sha256 ([0-9a-f]{64})\n\Z")


def digest(content: bytes) -> str:
    """Return the SHA-256 of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def to_json(data: Mapping[str, Any]) -> bytes:
    """Return a JSON object as the bytes of a file whose last field is the sum of all before it."""
    if not data or FIELD in data:
        raise ValueError(f"a file has fields, and none called {FIELD!r} of its own")
    text = json.dumps(dict(data), indent=1, allow_nan=False)
    body = text.removesuffix("\n}").encode()
    return body + f',\n "{FIELD}": "{digest(body)}"\n}}\n'.encode()


def from_json(raw: bytes, path: object, what: str, cure: str) -> dict[str, Any]:
    """Return the object that `to_json` made these bytes of; `what`, `path` and `cure` are for the message.

    Raises Damaged, for what is no such file as well.
    """
    body = _checked(raw, _JSON_END, path, what, cure)
    try:
        found = parse(body + b"}")
    except ValueError as error:
        raise Damaged(f"{path} is no {what} ({error}); {cure}") from None
    if not isinstance(found, dict):
        raise Damaged(f"{path} is no {what} (no JSON object); {cure}")
    return found


def to_lines(text: str) -> bytes:
    """Return lines of text, each with its end, as the bytes of a file that ends with their sum."""
    body = text.encode()
    return body + f"# sha256 {digest(body)}\n".encode()


def from_lines(raw: bytes, path: object, what: str, cure: str) -> list[str]:
    """Return the lines that `to_lines` made these bytes of; otherwise as `from_json`."""
    return _checked(raw, _LINES_END, path, what, cure).decode().split("\n")[:-1]


def _checked(raw: bytes, ending: re.Pattern[bytes], path: object, what: str, cure: str) -> bytes:
    end = ending.search(raw, max(0, len(raw) - 128))
    if end is None:
        raise Damaged(f"{path} is no {what} that Uptake wrote, or is cut short: no {FIELD} ends it; {cure}")
    body = raw[: end.start()]
    if digest(body) != end[1].decode():
        raise Damaged(f"{path} is not the {what} that was written: its {FIELD} is another; {cure}")
    return body


def write_whole(path: str | Path, *content: bytes | memoryview) -> None:
    """Write these parts to `path` so that nobody ever sees half of it. Raises BadInput where it cannot."""
    try:
        replace_file(Path(path), *content)
    except OSError as error:
        raise BadInput(
            f"cannot write {path}: {error.strerror}; give a folder with free space that you may write to"
        ) from None


def replace_file(path: Path, *content: bytes | memoryview) -> None:
    """Do as `write_whole` does; raises OSError.

    A new file gets the mode that the umask leaves, one that is replaced keeps its own. What a killed process
    left half written in the same folder is deleted.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(b"".join(content))  # a pipe or a device must be written to, not replaced
        return
    path = path.resolve()  # a link stays a link
    clear_drafts(path.parent)
    with draft_beside(path) as file:
        file.writelines(content)


@contextlib.contextmanager
def draft_beside(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write that takes the place of `path` at the end of the block, whole or not at all.

    It is locked for as long as its writer lives. Raises OSError.
    """
    draft = path.with_name(f"{_DRAFT}{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _NEW)
    try:
        with os.fdopen(handle, "wb") as file:
            with contextlib.suppress(OSError):  # some file systems have no locks: then age decides
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
            draft.replace(path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def clear_drafts(folder: Path) -> None:
    """Delete the drafts in a folder whose writer is dead: nobody holds their lock, or they are a day old."""
    with contextlib.suppress(OSError):
        for left in list(folder.glob(f"{_DRAFT}*")):
            if re.fullmatch(re.escape(_DRAFT) + "[0-9a-f]{16}", left.name) and _abandoned(left):
                left.unlink(missing_ok=True)


def _abandoned(draft: Path) -> bool:
    about = draft.lstat()
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
        return False
    old = about.st_mtime < time.time() - _ABANDONED
    handle = os.open(draft, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # An empty one may have been made this moment, before its writer has locked it.
        return old or os.fstat(handle).st_size > 0
    except OSError:
        return False
    finally:
        os.close(handle)
