"""What an evaluation has done so far, kept on disk as it is done, so that it can go on.

One JSON line a batch, flushed to the disk; a line cut short by a crash is that batch not done.
A journal belongs to one plan: under another key it begins afresh.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uptake.plain import plain, typed
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
        lines = self.path.read_text(encoding="utf8").splitlines() if self.path.exists() and not fresh else []
        whole = []
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                break
            if number == 0 and record != {"key": self.key}:
                break
            whole.append(line)
            if number > 0:
                outcome.rows += typed(tuple[Row, ...], record["rows"], "rows")
                outcome.showcases += typed(tuple[Showcase, ...], record["showcases"], "showcases")
                outcome.peaks = record["peaks"]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = whole or [json.dumps({"key": self.key})]
        self.path.write_text("".join(line + "\n" for line in whole), encoding="utf8")
        return outcome

    def keep(self, rows: Sequence[Row], showcases: Sequence[Showcase], peaks: Mapping[str, int]) -> None:
        """Write one batch down; it is on the disk when this returns."""
        if self.path is None:
            return
        record = {"rows": plain(rows), "showcases": plain(showcases), "peaks": dict(peaks)}
        with self.path.open("a", encoding="utf8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def done(self) -> None:
        """Remove the file: the report holds it all now."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
