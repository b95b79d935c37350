"""What a long run has done so far, kept on disk as it is done, so that it can go on.

One line a part (see records.py), flushed to the disk. In a folder beside it lie the states that unfinished
units go on from: a line names its state's file and the digest of it, so the two never disagree. A unit
whose parts are not all there is begun again; a journal of another plan is refused.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from uptake.codec import load
from uptake.evaluation.protocol import Part, Resume
from uptake.evaluation.records import RecordFile, digest_of
from uptake.lm.base import LM
from uptake.methods.contract.method import State
from uptake.methods.contract.state import load_state, save_state
from uptake.report.kind import AnyShowcase, ReportKind, reader, tagged
from uptake.report.results import Row

StateT = TypeVar("StateT", bound=State)


@dataclass
class RunOutcome:
    """All rows and showcases of a run, in the order of the plan, and the most bytes each method held."""

    rows: list[Row] = field(default_factory=list)
    showcases: list[Any] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)
    gpu_peaks: dict[str, int] = field(default_factory=dict)


@dataclass
class SavedUnit:
    """What one unit has given so far."""

    rows: list[Row] = field(default_factory=list)
    showcases: list[Any] = field(default_factory=list)
    done: int = 0  # steps
    finished: bool = False
    resume: Resume | None = None


@dataclass
class SavedRun:
    """What a run has given so far, by the places of its units."""

    units: dict[int, SavedUnit] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    gpu_peaks: dict[str, int] = field(default_factory=dict)

    def add(self, part: Part) -> None:
        """Add a part."""
        for place in part.places:
            if part.first and part.kept:
                self.units[place] = SavedUnit()
            unit = self.units.setdefault(place, SavedUnit())
            unit.rows += part.rows.get(place, ())
            unit.showcases += part.showcases.get(place, ())
            # The units of a batch are as many steps each.
            unit.done = part.done // len(part.places)
            if part.kept:
                unit.finished = part.finished
                unit.resume = Resume(part.saved, part.data) if part.saved else None
        for mine, theirs in ((self.peaks, part.peaks), (self.gpu_peaks, part.gpu_peaks)):
            for name, peak in theirs.items():
                mine[name] = max(mine.get(name, 0), peak)

    def drop(self, place: int) -> None:
        """Forget a unit: it is begun again."""
        self.units.pop(place, None)

    def finished(self, place: int) -> bool:
        """Whether nothing is left to do of a unit."""
        return place in self.units and self.units[place].finished

    def resume(self, place: int) -> Resume | None:
        """Return where a unit goes on, if it was begun and its state was kept."""
        return self.units[place].resume if place in self.units else None

    @property
    def done(self) -> int:
        """How many steps are done."""
        return sum(unit.done for unit in self.units.values())

    def outcome(self) -> RunOutcome:
        """Return everything, in the order of the units."""
        units = [self.units[place] for place in sorted(self.units)]
        return RunOutcome(
            [row for unit in units for row in unit.rows],
            [showcase for unit in units for showcase in unit.showcases],
            self.peaks,
            self.gpu_peaks,
        )


@dataclass(frozen=True)
class States:
    """The states that units go on from, in a folder beside the journal; without a `path` none is kept."""

    path: Path | None = None

    @property
    def folder(self) -> Path | None:
        """Where they lie: nothing else does, so what a killed process left half written goes with them."""
        return self.path and self.path.with_name(f"{self.path.name}.states")

    def save(self, state: State, place: int, done: int) -> str:
        """Write the state of the unit at `place` after so many steps; return its file's name, "" for none."""
        if self.folder is None:
            return ""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{place}.{done}.state"
        save_state(state, self.folder / name)
        return name

    def load(self, kind: type[StateT], name: str, lm: LM) -> StateT:
        """Return a state; raises BadInput, Damaged or Mismatch where it is not what was written."""
        assert self.folder is not None
        return load_state(kind, self.folder / name, lm)

    def digest(self, name: str) -> str:
        """Return the digest of a state's file; empty where there is none."""
        path = self.folder / name if self.folder and name else None
        return digest_of(path) if path and path.is_file() else ""

    def clear(self, but: Iterable[str] = ()) -> None:
        """Remove all states but those named."""
        if self.folder is None or not self.folder.is_dir():
            return
        kept = set(but)
        for file in self.folder.iterdir():
            if file.name not in kept:
                file.unlink(missing_ok=True)
        if not kept:
            self.folder.rmdir()

    def drop(self, place: int, before: int | None = None) -> None:
        """Remove the states of one unit, or those `before` a number of steps."""
        if self.folder is None or not self.folder.is_dir():
            return
        for file in self.folder.glob(f"{place}.*.state"):
            if before is None or int(file.name.split(".")[1]) < before:
                file.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Record:
    """A line: a part, its rows and showcases one list a place, in the order of `places`."""

    places: tuple[int, ...]
    turns: tuple[int, ...]  # how many parts each of them had before this one
    rows: tuple[list[Row], ...]
    showcases: tuple[list[AnyShowcase], ...]
    peaks: dict[str, int]
    gpu_peaks: dict[str, int]
    done: int
    finished: bool
    first: bool
    data: Mapping[str, Any]
    state: str
    state_digest: str

    def part(self) -> Part:
        """Return the part; ValueError where a place has no list or a list no place."""
        return Part(
            places=self.places,
            rows=dict(zip(self.places, self.rows, strict=True)),
            showcases=dict(zip(self.places, self.showcases, strict=True)),
            peaks=self.peaks,
            gpu_peaks=self.gpu_peaks,
            done=self.done,
            finished=self.finished,
            first=self.first,
            data=self.data,
            saved=self.state,
        )


@dataclass
class Journal:
    """The parts of an evaluation in such a file; without a path nothing is kept.

    `about` says by name what the plan is that `key` stands for, so that a refusal can say what differs.
    """

    path: Path | None = None
    key: str = ""
    about: Mapping[str, str] = field(default_factory=dict)
    _turns: dict[int, int] = field(default_factory=dict, repr=False)  # how many parts of each unit are kept

    @property
    def states(self) -> States:
        """The states beside it."""
        return States(self.path)

    def start(self, report: ReportKind, fresh: bool = False) -> SavedRun:
        """Return what is there already, and make the file ready to go on; `fresh` throws it away.

        Raises BadInput where the file holds what another plan has done.
        """
        kept, by = SavedRun(), reader(report)

        def read(data: Any) -> tuple[_Record, Part]:
            record = load(_Record, data, by)
            if len(record.turns) != len(record.places):
                raise ValueError("a place has no turn")
            return record, record.part()

        digests: dict[int, str] = {}
        for record, part in self._lines.start(read, fresh):
            self._add(kept, record, part)
            digests.update(dict.fromkeys(part.places, record.state_digest))
        for place, unit in list(kept.units.items()):
            if unit.resume and self.states.digest(unit.resume.state) != digests[place]:
                warnings.warn(
                    f"{self.path}: the state {unit.resume.state} beside it is missing or not what was "
                    "written, and what goes on from it is done again",
                    stacklevel=2,
                )
                kept.drop(place)
                self._turns.pop(place, None)
        self.states.clear(but=[unit.resume.state for unit in kept.units.values() if unit.resume])
        return kept

    def _add(self, kept: SavedRun, record: _Record, part: Part) -> None:
        """Add what follows on the part before; a unit of which a part is missing is dropped."""
        whole = []
        for place, turn in zip(record.places, record.turns, strict=True):
            if turn and turn != self._turns.get(place):
                kept.drop(place)
                self._turns.pop(place, None)
                continue
            if not turn:
                kept.drop(place)
            self._turns[place] = turn + 1
            whole.append(place)
        # The units of a batch are as many steps each.
        each = part.done // len(part.places) if part.places else 0
        kept.add(replace(part, places=tuple(whole), done=each * len(whole)))

    def keep(self, part: Part) -> None:
        """Write one part down; it is on the disk when this returns, and earlier states are gone."""
        turns = [0 if part.first else self._turns.get(place, 0) for place in part.places]
        record = {
            "places": part.places,
            "turns": turns,
            "rows": [[tagged(row) for row in part.rows.get(place, ())] for place in part.places],
            "showcases": [part.showcases.get(place, ()) for place in part.places],
            "peaks": part.peaks,
            "gpu_peaks": part.gpu_peaks,
            "done": part.done,
            "finished": part.finished,
            "first": part.first,
            "data": part.data,
            "state": part.saved,
            "state_digest": self.states.digest(part.saved),
        }
        self._lines.keep(record)
        for place, turn in zip(part.places, turns, strict=True):
            self._turns[place] = turn + 1
            self.states.drop(place, before=None if part.finished else part.done)

    def done(self) -> None:
        """Remove all files: the report holds it all now."""
        self.states.clear()
        self._lines.done()

    @property
    def _lines(self) -> RecordFile:
        return RecordFile(self.path, self.key, self.about)
