"""The files of a source archive, read in memory: nothing is unpacked to the disk, and nothing is run.

An archive that is damaged, too large, or names a place outside itself is refused whole.
"""

import io
import re
import tarfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path, PurePosixPath

from uptake.errors import BadInput
from uptake.text.files import SkipError, Skipped
from uptake.text.reading import File, Reading

MOST_BYTES = 256 << 20  # of an archive, unpacked
MOST_MEMBERS = 20_000
MOST_MEMBER = 4 << 20  # bytes; a longer one is left out

# What classifiers of old call them.
_CLASSIFIED = {"MIT License": "MIT", "Apache Software License": "Apache-2.0", "BSD License": "BSD-3-Clause"}


@dataclass(frozen=True)
class Sources:
    """The regular files of an archive by their path below its one folder, and what it says of itself."""

    files: dict[str, bytes]
    licence: str  # an SPDX expression if the archive knows them, else its own words; "" where it says none


def read_archive(path: Path, skipped: Skipped | None = None) -> Sources:
    """Return what a .tar.gz holds; links and devices and what is too long are counted in `skipped`.

    Raises BadInput for an archive that is damaged or cut short, unpacks to too much, has too many members,
    or names an absolute path, "..", or a path outside its one folder.
    """
    skipped = Skipped() if skipped is None else skipped
    try:
        raw = b"".join(File(path, path.name, path.name, Reading(max_unpacked_bytes=MOST_BYTES)).chunks())
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as archive:
            files = _members(archive, path.name, skipped)
    except SkipError as error:
        raise BadInput(f"{path.name}: {error}; fetch it again") from error
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        raise BadInput(f"{path.name}: no archive that can be read ({error}); fetch it again") from error
    return Sources(files, _licence(files))


def _members(archive: tarfile.TarFile, name: str, skipped: Skipped) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    top, left = "", MOST_BYTES  # a sparse member may claim more than the archive unpacks to
    for count, member in enumerate(archive):
        if count >= MOST_MEMBERS:
            raise BadInput(f"{name}: more than {MOST_MEMBERS} members; it is no source archive")
        parts = PurePosixPath(member.name).parts
        outside = not parts or ".." in parts or parts[0] == "/" or "\\" in member.name or "\0" in member.name
        if outside or parts[0] != (top or parts[0]):
            raise BadInput(f"{name}: names {member.name!r}, outside its own folder; it is refused")
        top = parts[0]
        where = "/".join(parts[1:])
        if member.isdir() or not where:
            continue
        if not member.isreg():
            skipped.add("link or device", where)
        elif member.size > MOST_MEMBER:
            skipped.add(f"longer than {MOST_MEMBER} bytes", where)
        else:
            left -= member.size
            if left < 0:
                raise BadInput(f"{name}: unpacks to more than {MOST_BYTES} bytes; it is no source archive")
            content = archive.extractfile(member)
            files[where] = content.read() if content else b""
            if len(files[where]) != member.size:
                raise BadInput(f"{name}: cut short in {where}; fetch it again")
    if not files:
        raise BadInput(f"{name}: holds no file; fetch it again")
    return files


def _licence(files: dict[str, bytes]) -> str:
    told = HeaderParser().parsestr(files.get("PKG-INFO", b"").decode("utf8", "replace"))
    if expression := told.get("License-Expression"):
        return str(expression).strip()
    for value in told.get_all("Classifier", []):
        found = re.search(r"OSI Approved :: (.+)$", str(value).strip())
        if found and found[1] in _CLASSIFIED:
            return _CLASSIFIED[found[1]]
    words = str(told.get("License") or "").strip().splitlines()
    named = words[0].strip("# ").strip() if words else ""
    return _CLASSIFIED.get(named, named)
