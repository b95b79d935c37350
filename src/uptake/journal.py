"""What an evaluation has done so far, kept on disk as it is done, so that it can go on.

One JSON line a batch, flushed to the disk; a line cut short by a crash is that batch not done.
A journal belongs to one plan: under another key it begins afresh.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uptake.errors import UptakeError
from uptake.plain import plain, typed, write_whole
from uptake.results import Row, Showcase


@dataclass
class Outcome:
    """Rows and showcases of a run, and the most memory each way held, in bytes."""

    rows: list[Row] = field(default_factory=list)
    showcases: list[Showcase] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)


@dataclass
class Journal:
    """A file of batches done under the plan that `key` names; without a path nothing is kept."""

    path: Path | None = None
    key: str = ""

    def start(self, fresh: bool = False) -> Outcome:
        """Return what is there already, and make the file ready to go on; `fresh` throws it away."""
        outcome = Outcome()
        if self.path is None:
            return outcome
        raw = self.path.read_bytes() if self.path.exists() and not fresh else b""
        # What has no end of line was cut short.
        lines = raw.split(b"\n")[:-1]
        whole = []
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
                if number == 0 and record != {"key": self.key}:
                    break
                if number > 0:
                    rows = typed(tuple[Row, ...], record["rows"], "rows")
                    showcases = typed(tuple[Showcase, ...], record["showcases"], "showcases")
                    peaks = typed(Mapping[str, int], record["peaks"], "peaks")
                    outcome.rows += rows
                    outcome.showcases += showcases
                    outcome.peaks = dict(peaks)
            except (ValueError, KeyError, TypeError):
                break
            whole.append(line)
        whole = whole or [json.dumps({"key": self.key}).encode()]
        content = b"".join(line + b"\n" for line in whole)
        if content != raw:  # replaced at once: a full disk must not cost what was done
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, content)
        return outcome

    def keep(self, rows: Sequence[Row], showcases: Sequence[Showcase], peaks: Mapping[str, int]) -> None:
        """Write one batch down; it is on the disk when this returns."""
        if self.path is None:
            return
        record = {"rows": plain(rows), "showcases": plain(showcases), "peaks": dict(peaks)}
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
