"""What a protocol is: when text is read, what is scored or asked, and what rows come of it.

A protocol cuts an evaluation into units of work and does one unit under the methods of a plan. It
yields parts, which the engine journals, and leaves the rest to the engine: order, workers, resuming,
failures. Each lives in one file of protocols/.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from uptake.evaluation.inputs import Inputs
from uptake.lm.base import LM
from uptake.methods.contract.method import MethodSpec, State
from uptake.report.kind import ReportKind
from uptake.report.results import Row

if TYPE_CHECKING:
    from uptake.evaluation.plan import Plan
    from uptake.evaluation.runner import Runner


@dataclass(frozen=True)
class Unit:
    """What is done in one go and may be done by any worker; protocols derive theirs from it.

    `id` is what people call it, `steps` how much of the progress it is.
    """

    id: str
    steps: int = 1


@dataclass(frozen=True)
class Resume:
    """Where an interrupted unit goes on: the name of its state's file, and the protocol's own plain data."""

    state: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Units done side by side, with the place of each in the plan."""

    units: tuple[Unit, ...]
    places: tuple[int, ...]
    resume: Resume | None = None  # of the one unit of a protocol that keeps states

    def each(self) -> "list[Batch]":
        """Return a batch for every unit."""
        return [
            Batch((unit,), (place,), self.resume) for unit, place in zip(self.units, self.places, strict=True)
        ]


@dataclass
class Part:
    """What came of a batch since its part before, by the places of its units.

    One that is not `kept` only tells how far the batch is.
    """

    places: tuple[int, ...] = ()  # of the units it speaks of; the runner sets it
    rows: dict[int, list[Row]] = field(default_factory=dict)  # by place
    showcases: dict[int, list[Any]] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)  # most bytes each method held
    gpu_peaks: dict[str, int] = field(default_factory=dict)  # on a GPU, where there is one
    done: int = 0  # steps of the batch that are done by now
    label: str | None = None  # what was or is next done, for people; None: nothing to tell
    kept: bool = True
    finished: bool = True
    first: bool = True  # what was kept of these units before is to be dropped
    state: State | None = None  # to go on from
    data: Mapping[str, Any] = field(default_factory=dict)  # plain, beside the state
    saved: str = ""  # the state's file, once it is written

    @classmethod
    def progress(cls, done: int, label: str) -> "Part":
        """Return a part that only says how far a batch is."""
        return cls(done=done, label=label, kept=False, finished=False)


class Protocol(ABC):
    """When text is read and what is measured. Final classes are frozen dataclasses of settings."""

    name: ClassVar[str]
    report: ClassVar[ReportKind]  # the rows it yields, and how they become figures
    wants: ClassVar[str] = "texts of two characters or more"
    data: ClassVar[Literal["documents", "edits", "questions"]] = "documents"  # what --data is read as
    options: ClassVar[Mapping[str, str]] = {}  # its settings that the command line sets -> option names

    @classmethod
    def from_options(cls, values: Mapping[str, Any]) -> Self:
        """Return the protocol with its settings from the values of options; the rest has its defaults."""
        return cls(**{setting: values[option] for setting, option in cls.options.items()})

    @abstractmethod
    def units(self, plan: "Plan", inputs: Inputs) -> list[Unit]:
        """Return the units of work, in order. Raises BadInput where the inputs do not fit."""

    def left_out(self, inputs: Inputs) -> dict[str, list[str]]:
        """Return the ids of the documents that no unit comes of, by the reason."""
        return {}

    def check(self, units: Sequence[Unit], lm: LM) -> None:
        """Raise BadInput, before anything is done, where this model cannot be measured on the units."""
        return

    def charge(self, part: Part, once: dict[str, float]) -> None:
        """Put the CPU seconds of what was prepared before all units, by method, into the rows of a part.

        Called with each part in turn; what is told once is taken out of `once`.
        """
        return

    @abstractmethod
    def run(self, batch: Batch, runner: "Runner") -> Iterator[Part]:
        """Do a batch of units under every method of the runner's plan that they are for."""

    @abstractmethod
    def failed(self, unit: Unit, plan: "Plan", reason: str) -> list[Row]:
        """Return the rows of a unit that could not be done at all: they count at the base's score."""

    def side_by_side(self, plan: "Plan") -> int:
        """Return how many units a batch holds."""
        return 1

    def searches(self, plan: "Plan") -> bool:
        """Whether any method will retrieve neighbours."""
        return False

    def needs_store(self, plan: "Plan") -> bool:
        """Whether it cannot do without a store."""
        return self.searches(plan)

    def sequential(self, plan: "Plan") -> bool:
        """Whether each unit waits for the one before it, because a method passes its state on."""
        return False

    def neighbour_counts(self, plan: "Plan", spec: MethodSpec) -> tuple[int, ...]:
        """Return the numbers of neighbours a method reads: only 0 where it reads none."""
        return (0,)

    def describe(self, inputs: Inputs) -> dict[str, str | int | float]:
        """Return its settings, but those left out, for the header of a report."""
        settings: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {name: value for name, value in settings.items() if value is not None}

    def shown(self, plan: "Plan", places: Sequence[int]) -> set[int]:
        """Return which of these places are kept in full: the first of the whole, whoever does them."""
        return {place for place in places if place < plan.showcases}
