"""What a long run has done so far, kept on disk as it is done, so that it can go on.

One JSON line a batch, flushed to the disk; a line cut short by a crash is that batch not done.
A journal belongs to one plan: under another key it begins afresh.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from uptake.codec import plain, typed, write_whole
from uptake.errors import UptakeError
from uptake.report.results import Row, Showcase

ReadT = TypeVar("ReadT")


@dataclass
class Outcome:
    """Rows and showcases of a run, and the most memory each way held, in bytes."""

    rows: list[Row] = field(default_factory=list)
    showcases: list[Showcase] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)


@dataclass
class Lines:
    """A file of JSON records made under the plan that `key` names; without a path nothing is kept."""

    path: Path | None = None
    key: str = ""

    def start(self, read: Callable[[Any], ReadT], fresh: bool = False) -> list[ReadT]:
        """Return what `read` makes of each record there is, and make the file ready to go on.

        The first record that `read` refuses (ValueError, KeyError, TypeError) and all after it are
        dropped; `fresh` drops them all.
        """
        if self.path is None:
            return []
        raw = self.path.read_bytes() if self.path.exists() and not fresh else b""
        records: list[ReadT] = []
        whole = []
        # What has no end of line was cut short.
        for number, line in enumerate(raw.split(b"\n")[:-1]):
            try:
                record = json.loads(line)
                if number == 0 and record != {"key": self.key}:
                    break
                if number > 0:
                    records.append(read(record))
            except (ValueError, KeyError, TypeError):
                break
            whole.append(line)
        whole = whole or [json.dumps({"key": self.key}).encode()]
        content = b"".join(line + b"\n" for line in whole)
        if content != raw:  # replaced at once: a full disk must not cost what was done
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, content)
        return records

    def keep(self, record: Mapping[str, object]) -> None:
        """Write one record down; it is on the disk when this returns."""
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf8") as file:
                file.write(json.dumps(record) + "\n")
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


@dataclass
class Journal:
    """The batches of an evaluation in such a file."""

    path: Path | None = None
    key: str = ""

    def start(self, fresh: bool = False) -> Outcome:
        """Return what is there already, and make the file ready to go on; `fresh` throws it away."""
        outcome = Outcome()
        for batch in self._lines.start(_batch, fresh):
            outcome.rows += batch.rows
            outcome.showcases += batch.showcases
            outcome.peaks = batch.peaks
        return outcome

    def keep(self, rows: Sequence[Row], showcases: Sequence[Showcase], peaks: Mapping[str, int]) -> None:
        """Write one batch down; it is on the disk when this returns."""
        self._lines.keep({"rows": plain(rows), "showcases": plain(showcases), "peaks": dict(peaks)})

    def done(self) -> None:
        """Remove the file: the report holds it all now."""
        self._lines.done()

    @property
    def _lines(self) -> Lines:
        return Lines(self.path, self.key)


def _batch(record: Any) -> Outcome:
    return Outcome(
        list(typed(tuple[Row, ...], record["rows"], "rows")),
        list(typed(tuple[Showcase, ...], record["showcases"], "showcases")),
        dict(typed(Mapping[str, int], record["peaks"], "peaks")),
    )
