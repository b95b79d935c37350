"""All edits are made first, then everything is asked once: what changed, what was not to, and what is left.

A unit is one method's way through all edits, so methods run side by side in workers. An edit that cannot
be made is passed over, named in the results, and the others are made. Beside the methods stand controls:
the base; one edit at a time in context, its own (`oracle`, which no editor that keeps many edits can be
sure to find) or another one at random (`other-edit`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from uptake.codec import load, plain
from uptake.errors import BadInput, Diverged
from uptake.evaluation.edit_making import check_edits, check_lengths, make_edits
from uptake.evaluation.edit_replies import base_replies, other_edits, state_bytes
from uptake.evaluation.failures import reason_of
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.protocol import Batch, Part, Protocol, Unit
from uptake.lm.base import LM
from uptake.methods import find
from uptake.methods.contract.method import Context, Evidence
from uptake.report.edited import EDITED
from uptake.report.edited.rows import Cost, EditFailed, Elsewhere, ShownEdit, Told
from uptake.report.formatting import many
from uptake.report.results import BASE, Row
from uptake.tasks.edit_asking import Reply, drift, reply_to
from uptake.tasks.edit_marks import Asking, askings
from uptake.tasks.edits import Edit, independent
from uptake.text.types import Document, Found, stable_hash

if TYPE_CHECKING:
    from uptake.evaluation.plan import Plan
    from uptake.evaluation.runner import Runner

ORACLE, OTHER = "oracle", "other-edit"
SHOWN = 12  # edits that are shown in words
_READS = "in-context"  # what the controls read an edit with


@dataclass(frozen=True)
class Edits(Protocol):
    """Each method makes all edits, `turn` at a time (0: all at once), then everything is asked of it.

    At each of `checkpoints`, numbers of edits made, the prompts of the edits made so far are asked as well.
    Of each kind of prompt beside an edit's own at most `probes` an edit are asked. An answer has at most
    `tokens` tokens, whatever the target's length. A plan's budget is a turn's.
    """

    name: ClassVar[str] = "edits"
    report = EDITED
    wants: ClassVar[str] = "edits"
    data: ClassVar[Literal["documents", "edits"]] = "edits"
    options: ClassVar[dict[str, str]] = {
        "turn": "turn", "checkpoints": "checkpoints", "tokens": "answer_tokens", "probes": "probes",
    }  # fmt: skip
    turn: int = 0
    checkpoints: tuple[int, ...] = ()
    tokens: int = 12
    probes: int = 2
    controls: bool = True
    prompts_side_by_side: int = 64
    save_every: int = 100  # edits from one keeping of the state to the next, and edits asked about at once

    def __post_init__(self) -> None:
        if (
            min(self.turn, self.probes) < 0
            or min(self.tokens, self.prompts_side_by_side, self.save_every) < 1
        ):
            raise BadInput(
                f"turn {self.turn}, probes {self.probes}, tokens {self.tokens}, side by side "
                f"{self.prompts_side_by_side}, save every {self.save_every}: use 0 or more for the first "
                f"two, "
                "1 or more for the others"
            )

    @classmethod
    def from_options(cls, values: Mapping[str, Any]) -> Self:
        stops = str(values["checkpoints"] or "")
        try:
            checkpoints = tuple(int(stop) for stop in stops.split(",") if stop.strip())
        except ValueError:
            raise BadInput(f"--checkpoints {stops!r}: write whole numbers such as 10 or 1,10,100") from None
        return super().from_options({**values, "checkpoints": checkpoints})

    def units(self, plan: "Plan", inputs: Inputs) -> list[Unit]:
        edits = independent(inputs.edits)
        if not edits:
            raise BadInput("no edit to make: give at least one")
        check_edits(edits)
        if wrong := [stop for stop in self.checkpoints if not 1 <= stop <= len(edits)]:
            raise BadInput(
                f"checkpoint {wrong[0]}: {many(len(edits), 'edit is', 'edits are')} to be made, use 1 to "
                f"{len(edits)}"
            )
        if taken := {BASE, ORACLE, OTHER} & {
            name for name, spec in plan.methods.items() if spec.method.reads
        }:
            raise BadInput(f"method {min(taken)!r}: a control is called so, give the method another name")
        stops = tuple(sorted({*self.checkpoints, len(edits)}))

        def editing(name: str, stops: tuple[int, ...], made: int) -> Unit:
            steps = made + sum(stops)
            return Editing(name, steps, edits=edits, unrelated=inputs.unrelated, stops=stops)

        controls = (ORACLE, OTHER) if self.controls and len(edits) > 1 else (ORACLE,) if self.controls else ()
        reading = [name for name, spec in plan.methods.items() if spec.method.reads]
        return [
            *(editing(name, (len(edits),), 0) for name in (BASE, *controls)),
            *(editing(name, stops, len(edits)) for name in reading),
        ]

    def check(self, units: Sequence[Unit], lm: LM) -> None:
        check_lengths(_editing(units[0]).edits, lm, self.tokens)

    def charge(self, part: Part, once: dict[str, float]) -> None:
        for rows in part.rows.values():
            for place, row in enumerate(rows):
                if isinstance(row, Cost) and (more := once.get(row.method, 0.0)):
                    rows[place] = replace(row, prepare_seconds=row.prepare_seconds + more)

    def describe(self, inputs: Inputs) -> dict[str, str | int | float]:
        made = "all at once" if not self.turn else f"{self.turn} at a time"
        return {
            "edits": len(inputs.edits),
            "unrelated": len(inputs.unrelated),
            "made": made,
            "checkpoints": ", ".join(map(str, self.checkpoints)),
            "answer_tokens": self.tokens,
            "probes": self.probes,
            "controls": self.controls,
        }

    def failed(self, unit: Unit, plan: "Plan", reason: str) -> list[Row]:
        editing = _editing(unit)
        asked = [
            one for place, edit in enumerate(editing.edits, 1) for one in askings(edit, place, self.probes)
        ]
        made = 0 if unit.id == BASE else len(editing.edits)
        return [_told(unit.id, made, one, None, reason) for one in asked]

    def run(self, batch: Batch, runner: "Runner") -> Iterator[Part]:
        (unit,), (place,) = batch.units, batch.places
        editing = _editing(unit)
        with runner.meter.memory(unit.id):
            if unit.id == BASE:
                yield from self._base(editing, place, runner)
            elif unit.id in (ORACLE, OTHER):
                yield from self._control(editing, place, runner)
            else:
                yield from _Run(self, editing, place, batch, runner).parts()

    def asked(self, editing: "Editing", start: int, end: int, whole: bool = True) -> list[Asking]:
        """Return what is asked of the edits at these places; of a checkpoint not the whole, their prompts."""
        most = self.probes if whole else 0
        return [
            one
            for place, edit in enumerate(editing.edits[start:end], start + 1)
            for one in askings(edit, place, most)
        ]

    def _base(self, editing: "Editing", place: int, runner: "Runner") -> Iterator[Part]:
        rows, shown = list[Row](), list[ShownEdit]()
        for start in range(0, len(editing.edits), self.save_every):
            end = min(start + self.save_every, len(editing.edits))
            asked = self.asked(editing, start, end)
            try:
                replies = base_replies(runner.lm, asked, self.tokens, self.prompts_side_by_side)
            except Diverged as error:  # nothing could be compared with it
                raise BadInput(f"the base model: {error}") from error
            rows += [_told(BASE, 0, one, reply) for one, reply in zip(asked, replies, strict=True)]
            shown += [
                ShownEdit(one.edit, one.kind, one.number, one.prompt, one.target)
                for one in asked
                if one.place <= SHOWN and one.number == 0
            ]
            if end < len(editing.edits):
                yield Part.progress(end, BASE)
        yield Part(rows={place: rows}, showcases={place: list(shown)}, done=len(editing.edits), label=BASE)

    def _control(self, editing: "Editing", place: int, runner: "Runner") -> Iterator[Part]:
        """Ask about each edit with one edit in context: its own, or another one drawn at random."""
        method, lm, edits = find(_READS).method, runner.lm, editing.edits
        read = edits if editing.id == ORACLE else other_edits(edits, runner.plan.seed)
        rows, cost = list[Row](), Cost(editing.id, len(edits))
        for start in range(0, len(edits), self.save_every):
            end = min(start + self.save_every, len(edits))
            evidence = [Evidence(Found((edit.passage(),), (0.0,)), edit.prompt) for edit in read[start:end]]
            asked, seconds = self.asked(editing, start, end), list[float]()
            with runner.meter.seconds(seconds):
                states = method.adapt([method.init(lm) for _ in evidence], lm, evidence, Context())
                adapted = method.adapted(states, lm)
                places = [one.place - start - 1 for one in asked]
                found = self._replies(adapted, asked, places)
            rows += [
                _told(editing.id, len(edits), one, *reply) for one, reply in zip(asked, found, strict=True)
            ]
            cost = replace(cost, ask_seconds=cost.ask_seconds + seconds[0], asked=cost.asked + len(asked))
            if end < len(edits):
                yield Part.progress(end, editing.id)
        yield Part(rows={place: [*rows, cost]}, done=len(edits), label=editing.id)

    def _replies(
        self, lm: LM, asked: Sequence[Asking], rows: Sequence[int] | None = None
    ) -> list[tuple[Reply | None, str]]:
        """Return for each asking the reply, or why there is none: all fail together."""
        try:
            return [(one, "") for one in reply_to(lm, asked, self.tokens, self.prompts_side_by_side, rows)]
        except Exception as error:  # whatever a network can raise: these count at the base's answers
            reason = reason_of(error)
            return [(None, reason) for _ in asked]


@dataclass(frozen=True)
class Editing(Unit):
    """One method's edits, and after how many is asked; the base and controls are asked alone."""

    edits: tuple[Edit, ...] = field(kw_only=True)
    unrelated: tuple[Document, ...] = field(kw_only=True)
    stops: tuple[int, ...] = field(kw_only=True)


@dataclass(frozen=True)
class _Progress:
    """How far a method is: `stops` points of asking are behind it, and `asked` edits of the next one."""

    made: int = 0
    stops: int = 0
    asked: int = 0
    cost: Cost = field(default_factory=lambda: Cost("", 0))


@dataclass
class _Run:
    """One method's way through all edits."""

    protocol: Edits
    editing: Editing
    place: int
    batch: Batch
    runner: "Runner"

    def parts(self) -> Iterator[Part]:
        """Make the edits that are left, ask at the stops that are left, and yield what comes of it."""
        name, stops = self.editing.id, self.editing.stops
        self.method = self.runner.plan.methods[name].method
        self.state: Any = self.method.init(self.runner.lm)
        self.progress, self.rows, self.first = _Progress(cost=Cost(name, 0)), list[Row](), True
        batch = self.batch
        if batch.resume is not None and (left := self.runner.resume(batch, type(self.state))) is not None:
            self.state, self.progress, self.first = left, load(_Progress, batch.resume.data), False
        while self.progress.stops < len(stops):
            stop = stops[self.progress.stops]
            yield from self._make(stop)
            yield from self._ask(stop)

    def _make(self, stop: int) -> Iterator[Part]:
        protocol, edits, name = self.protocol, self.editing.edits, self.editing.id
        kept = self.progress.made
        while self.progress.made < stop:
            start = self.progress.made
            end = min(start + (protocol.turn or stop), stop)
            seed = stable_hash(str(self.runner.plan.seed), "edits", str(start))
            context = Context(seed, self.runner.plan.budget, continues=end < len(edits))
            seconds, gpu, once = list[float](), list[float](), list[float]()
            with self.runner.meter.preparation(once), self.runner.meter.seconds(seconds, gpu):
                self.state, failed = make_edits(
                    self.method, self.state, self.runner.lm, edits[start:end], context, start == 0
                )
            self.rows += [EditFailed(name, edits[start + at].id, start + at + 1, why) for at, why in failed]
            cost, ledger = self.progress.cost, context.ledger(0)
            self.progress = replace(
                self.progress,
                made=end,
                cost=replace(
                    cost,
                    made=end,
                    edit_seconds=cost.edit_seconds + seconds[0],
                    gpu_seconds=cost.gpu_seconds + gpu[0],
                    prepare_seconds=cost.prepare_seconds + once[0],
                    tokens_trained=cost.tokens_trained + ledger.tokens_trained,
                    steps=cost.steps + ledger.steps,
                ),
            )
            if end - kept >= protocol.save_every or end == stop:
                kept = end
                yield self._part(f"{name} {edits[end - 1].id}")
            else:
                yield Part.progress(self._done, f"{name} {edits[end - 1].id}")

    def _ask(self, stop: int) -> Iterator[Part]:
        protocol, name, lm = self.protocol, self.editing.id, self.runner.lm
        last = stop == len(self.editing.edits)
        adapted = self.method.adapted([self.state], lm)
        while self.progress.asked < stop:
            start = self.progress.asked
            end = min(start + protocol.save_every, stop)
            asked, seconds = protocol.asked(self.editing, start, end, last), list[float]()
            with self.runner.meter.seconds(seconds):
                found = protocol._replies(adapted, asked)
            self.rows += [_told(name, stop, one, *reply) for one, reply in zip(asked, found, strict=True)]
            cost = self.progress.cost
            cost = replace(cost, ask_seconds=cost.ask_seconds + seconds[0], asked=cost.asked + len(asked))
            self.progress = replace(self.progress, asked=end, cost=cost)
            if end < stop:
                yield self._part(f"{name} asked")
        if last:
            self.rows += self._elsewhere(adapted, stop)
        cost = replace(self.progress.cost, bytes=state_bytes(self.state) if last else 0)
        self.rows.append(cost)
        self.progress = replace(
            self.progress,
            stops=self.progress.stops + 1,
            asked=0,
            cost=replace(cost, ask_seconds=0.0, asked=0),
        )
        yield self._part(f"{name} asked")

    def _elsewhere(self, adapted: LM, made: int) -> Iterator[Row]:
        for text in self.editing.unrelated:
            try:
                found = drift(self.runner.lm, adapted, text.text)
            except Exception as error:
                yield EditFailed(self.editing.id, text.id, 0, f"unrelated text: {reason_of(error)}")
            else:
                yield Elsewhere(self.editing.id, made, text.id, **asdict(found))

    @property
    def _done(self) -> int:
        progress, stops = self.progress, self.editing.stops
        return progress.made + sum(stops[: progress.stops]) + progress.asked

    def _part(self, label: str) -> Part:
        finished = self.progress.stops == len(self.editing.stops)
        part = Part(
            rows={self.place: self.rows},
            done=self._done,
            label=label,
            finished=finished,
            first=self.first,
            state=None if finished else self.state,
            data={} if finished else plain(self.progress),
        )
        self.rows, self.first = [], False
        return part


def _editing(unit: Unit) -> Editing:
    assert isinstance(unit, Editing)
    return unit


def _told(method: str, made: int, asked: Asking, reply: Reply | None, failed: str = "") -> Told:
    about = (method, made, asked.edit, asked.place, asked.kind, asked.number)
    return Told(*about, "", False, failed=failed) if reply is None else Told(*about, **asdict(reply))
