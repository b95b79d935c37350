"""Files of records, one JSON line each behind its checksum: what long runs have done so far.

The first line names the plan that the records belong to. Each line begins with a digest of the plan's key
and of its own bytes, so that neither a changed digit nor a line of another plan is believed; what it held is
done again. A line without an end was cut short by a crash and is passed over.
"""

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from uptake.codec import dumps, parse
from uptake.errors import BadInput, UptakeError
from uptake.sealed import write_whole

ReadT = TypeVar("ReadT")

FORMAT = "uptake journal 2"  # another one where old rows would be read as something else
_SHOWN = 3  # damaged lines that a warning names


@dataclass
class RecordFile:
    """A file of JSON records made under the plan that `key` names; without a path nothing is kept.

    `about` gives the parts of the plan by name: where two plans differ, those that do are named.
    """

    path: Path | None = None
    key: str = ""
    about: Mapping[str, str] = field(default_factory=dict)

    def start(self, read: Callable[[Any], ReadT], fresh: bool = False) -> list[ReadT]:
        """Return what `read` makes of each record there is, and make the file ready to go on.

        A line that is not what was written, or that `read` refuses by a ValueError, is dropped, and a
        warning names it. `fresh` drops them all. Raises BadInput, and drops nothing, where the file
        holds records of another plan or is none of these files.
        """
        if self.path is None:
            return []
        raw = self.path.read_bytes() if self.path.exists() else b""
        lines = raw.split(b"\n")[:-1]
        records: list[ReadT] = []
        whole, damaged = [self._line("", self._head())], []
        if lines and not self._begins(lines):
            damaged.append(1)
        for number, line in enumerate(lines[1:] if not fresh else (), start=2):
            try:
                records.append(read(self._record(line)))
                whole.append(line)
            except (ValueError, RecursionError):
                damaged.append(number)
        if damaged:
            named = ", ".join(map(str, damaged[:_SHOWN])) + (", ..." if len(damaged) > _SHOWN else "")
            lines_are = f"line {named} is" if len(damaged) == 1 else f"lines {named} are"
            warnings.warn(
                f"{self.path}: {lines_are} not what was written, and what was there is done again",
                stacklevel=3,
            )
        content = b"".join(line + b"\n" for line in whole)
        if content != raw:  # replaced at once: a full disk must not cost what was done
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, content)
        return records

    def keep(self, record: object) -> None:
        """Write one record down, as JSON data; it is on the disk when this returns."""
        if self.path is None:
            return
        try:
            with self.path.open("ab") as file:
                file.write(self._line(self.key, dumps(record)) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UptakeError(
                f"cannot write {self.path}: {error.strerror or error}; make room and give the same command "
                "again: what was finished is kept"
            ) from error

    def done(self) -> None:
        """Remove the file: the report holds it all now."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    @property
    def count(self) -> int:
        """How many records the file holds, sound or not."""
        if self.path is None or not self.path.is_file():
            return 0
        return max(self.path.read_bytes().count(b"\n") - 1, 0)

    def _begins(self, lines: list[bytes]) -> bool:
        """Whether the file begins as one of this plan; False where its first line alone is damaged.

        Raises BadInput where records of something else would be lost.
        """
        try:
            head = _checked("", lines[0])
        except ValueError:
            if any(self._mine(line) for line in lines[1:]):
                return False
            raise BadInput(
                f"{self.path}: not a journal of this version of Uptake, or damaged from its first line on; "
                f"{self._cure}"
            ) from None
        if head == parse(self._head()):
            return True
        if len(lines) == 1:  # nothing was done under that plan
            return True
        raise BadInput(
            f"{self.path} holds what another run has done ({len(lines) - 1} records{self._differing(head)}): "
            f"give its command again to finish it; {self._cure}"
        )

    @property
    def _cure(self) -> str:
        return "begin anew with --fresh, which deletes the file, or give another file"

    def _differing(self, head: Any) -> str:
        """Return what differs between this plan and the one that a first line names."""
        if not isinstance(head, dict) or head.get("format") != FORMAT or not isinstance(head["about"], dict):
            return ", of another format"
        theirs = head["about"]
        names = [name for name, value in self.about.items() if theirs.get(name) != value]
        return f"; not the same: {', '.join(names)}" if names else ""

    def _mine(self, line: bytes) -> bool:
        try:
            self._record(line)
        except (ValueError, RecursionError):
            return False
        return True

    def _head(self) -> str:
        return dumps({"format": FORMAT, "key": self.key, "about": dict(self.about)})

    def _record(self, line: bytes) -> Any:
        return _checked(self.key, line)

    def _line(self, key: str, text: str) -> bytes:
        raw = text.encode()
        return _digest(key, raw) + b" " + raw


def _checked(key: str, line: bytes) -> Any:
    """Return the record in a line; raises ValueError where it is not what was written under this key."""
    digest, _, raw = line.partition(b" ")
    if digest != _digest(key, raw):
        raise ValueError("not what was written")
    return parse(raw)


def _digest(key: str, raw: bytes) -> bytes:
    named = key.encode()
    whole = len(named).to_bytes(8, "little") + named + raw
    return hashlib.blake2b(whole, digest_size=8).hexdigest().encode()


def digest_of(path: Path) -> str:
    """Return the digest of a file's bytes, 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
