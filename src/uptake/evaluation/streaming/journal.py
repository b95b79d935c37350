"""What a stream has done so far, kept on disk: its rows in a journal, the state it is at beside it.

A line of the journal says how many documents a way has taken up and names the file of its state, so
the two never disagree: a state no line names was cut short and is not looked at.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from uptake.codec import plain, typed
from uptake.errors import UptakeError
from uptake.evaluation.journal import Lines
from uptake.evaluation.streaming.results import Answered, Drifted, Spent, Stopped
from uptake.lm.base import LM
from uptake.methods.contract.method import State
from uptake.methods.contract.state import load_state, save_state


@dataclass
class Outcome:
    """Rows of a run so far."""

    answers: list[Answered] = field(default_factory=list)
    drift: list[Drifted] = field(default_factory=list)
    costs: list[Spent] = field(default_factory=list)
    stopped: list[Stopped] = field(default_factory=list)

    def add(self, other: "Outcome") -> None:
        """Add another's rows at the end."""
        for part in fields(self):
            getattr(self, part.name).extend(getattr(other, part.name))

    def drop(self, way: str) -> None:
        """Leave out all rows of a way."""
        for part in fields(self):
            rows = getattr(self, part.name)
            rows[:] = [row for row in rows if row.method != way]


_ROWS: Mapping[str, Any] = {
    "answers": tuple[Answered, ...],
    "drift": tuple[Drifted, ...],
    "costs": tuple[Spent, ...],
    "stopped": tuple[Stopped, ...],
}


@dataclass
class StreamJournal:
    """A journal of the plan that `key` names, and states named after it; without a path nothing is kept."""

    path: Path | None = None
    key: str = ""
    spent: dict[str, Spent] = field(default_factory=dict)  # by way, as last written down
    _state: str = ""  # the name of the file that the last line speaks of

    def start(self) -> Outcome:
        """Return the rows there are already, and make the file ready to go on."""
        outcome = Outcome()
        self._lines.start(lambda record: self._read(record, outcome))
        self._clear(but=self._state)
        return outcome

    def _read(self, record: dict[str, Any], outcome: Outcome) -> None:
        spent = typed(Spent, record["spent"], "spent")
        parts = {name: [*typed(kind, record[name], name)] for name, kind in _ROWS.items()}
        if record["start"]:  # the way was begun again, because its state could not be read
            outcome.drop(spent.method)
        outcome.add(Outcome(**parts))
        self.spent[spent.method] = spent
        self._state = str(record["state"])

    def resume(self, way: str, fresh: State, lm: LM, outcome: Outcome) -> tuple[State, Spent]:
        """Return where a way stopped: its state, or `fresh` where there is none, and what it has spent.

        Where the state is lost its rows are dropped, and the way begins again.
        """
        nothing = Spent(way, 0)
        spent = self.spent.get(way, nothing)
        if spent == nothing or self.path is None or not self._state:
            return fresh, spent
        try:
            return load_state(type(fresh), self.path.with_name(self._state), lm), spent
        except UptakeError:
            outcome.drop(way)
            return fresh, nothing

    def keep(self, spent: Spent, rows: Outcome, state: State | None, first: bool) -> None:
        """Write down what a way has done since it was last written down, all of it if it is the `first` time.

        It is on the disk when this returns; `state` is None where nothing is left to do.
        """
        if self.path is None:
            return
        name = f"{self.path.name}.{spent.taken}.state" if state is not None else ""
        if state is not None:
            save_state(state, self.path.with_name(name))
        kept = {part: plain(getattr(rows, part)) for part in _ROWS}
        self._lines.keep({"start": first, "spent": plain(spent), "state": name, **kept})
        self._state = name
        self._clear(but=name)

    def done(self) -> None:
        """Remove all files: the report holds it all now."""
        self._clear()
        self._lines.done()

    @property
    def _lines(self) -> Lines:
        return Lines(self.path, self.key)

    def _clear(self, but: str = "") -> None:
        """Remove the states that no line needs any more."""
        if self.path is None or not self.path.parent.is_dir():
            return
        for file in self.path.parent.iterdir():
            own = file.name.removeprefix(f"{self.path.name}.")
            number = own.removesuffix(".state")
            if file.name != but and own != file.name and own != number and number.isdigit():
                file.unlink(missing_ok=True)
