"""Bytes and lines out of files nobody vouches for: bounded, decompressed, and found in folders.

It knows nothing of documents. Whatever ends the reading of a file early is raised as `SkipError`,
which readers.py counts.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})
SKIPPED_SUFFIXES = frozenset({".dist-info", ".egg-info"})


_SHOWN = 12  # reasons in one line


class SkipError(Exception):
    """A file, or the rest of it, that cannot be read; the message is the reason to count."""


@dataclass(slots=True)
class Skipped:
    """What a read left out: how many by reason, and some by name."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)  # "path:line: reason", the first 20
    firsts: dict[str, str] = field(default_factory=dict)  # the first example of each reason, of 100 reasons

    def add(self, reason: str, where: str) -> None:
        """Count one thing at `where` ("path" or "path:line") that was left out for `reason`.

        What follows "; " in a reason is its detail and its cure: the examples have it, the counts do not.
        """
        kind = reason.partition("; ")[0]
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if len(self.examples) < 20:
            self.examples.append(f"{where}: {reason}")
        if len(self.firsts) < 100:
            self.firsts.setdefault(kind, f"{where}: {reason}")

    @property
    def total(self) -> int:
        """How many were left out."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        if not self.counts:
            return "nothing skipped"
        reasons = ", ".join(f"{count} {reason}" for reason, count in [*self.counts.items()][:_SHOWN])
        if len(self.counts) > _SHOWN:
            reasons += f" and {len(self.counts) - _SHOWN} more reasons"
        return f"skipped {self.total}: {reasons} (first: {self.examples[0]})"


def shown(path: Path | str) -> str:
    """Return a path as printable text of one line, whatever bytes its name is made of."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file to read; yield it and its size. Raises SkipError, and OSError where it cannot be read.

    Nothing but a regular file is opened, so that no pipe and no device is waited for, and one that
    has changed by the end is not taken for what it was.
    """
    if not path.is_file():
        raise SkipError("not a regular file")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):  # exchanged since it was looked at
            raise SkipError("not a regular file")
        yield file, before.st_size
        after = os.fstat(descriptor)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise SkipError("changed while it was read; read it again when nothing writes to it")


def walk(root: Path, skipped: Skipped) -> Iterator[Path]:
    """Yield the files below `root`, in sorted order.

    Hidden files and folders, installed packages, virtual environments and caches are passed
    over; folders that cannot be opened, links to folders and links that lead out of `root` are counted.
    """
    inside = root.resolve()
    waiting = [root]  # a stack of our own, for folders may be nested deeper than calls may be
    while waiting:
        here = waiting.pop()
        try:
            with os.scandir(here) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            skipped.add("unreadable folder", shown(here))
            continue
        if here != root and any(entry.name == "pyvenv.cfg" for entry in entries):
            continue
        folders = []
        for entry in entries:
            path = here / entry.name
            try:
                is_folder = entry.is_dir()
            except OSError:
                is_folder = False
            if is_folder and not _passed_over(entry.name):
                if entry.is_symlink():
                    skipped.add("link to a folder", shown(path))
                else:
                    folders.append(path)
            elif not is_folder and not entry.name.startswith("."):
                if entry.is_symlink() and not _within(path, inside):
                    skipped.add("link out of the folder", shown(path))
                else:
                    yield path
        waiting += reversed(folders)


def _within(link: Path, folder: Path) -> bool:
    """Whether a link leads to something in `folder`, or nowhere."""
    try:
        return link.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):  # a link to itself
        return True


def read_lines(chunks: Iterator[bytes], max_bytes: int) -> Iterator[bytes | None]:
    r"""Yield lines without their "\n", None in the place of one longer than `max_bytes`."""
    held = bytearray()
    for chunk in chunks:
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            held += end
            yield bytes(held) if len(held) <= max_bytes else None
            held.clear()
        if len(held) <= max_bytes:  # past it the rest of the line is dropped, so memory stays bounded
            held += rest
    if held:
        yield bytes(held) if len(held) <= max_bytes else None


def _passed_over(folder: str) -> bool:
    name = Path(folder)
    return folder.startswith(".") or folder in SKIPPED_FOLDERS or name.suffix in SKIPPED_SUFFIXES
