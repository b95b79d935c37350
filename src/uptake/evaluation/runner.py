"""Do batches of an evaluation in one process: what a protocol's work is done with.

It holds the model, the plan and the store, measures, and writes states down. What reading and
scoring are it leaves to the protocol.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from uptake.errors import BadInput, UptakeError
from uptake.evaluation.cost_meter import CostMeter
from uptake.evaluation.failures import reason_of
from uptake.evaluation.journal import States
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocol import Batch, Part
from uptake.lm.base import LM
from uptake.methods.contract.method import State
from uptake.store.datastore import Datastore
from uptake.store.passages.source import QueryText
from uptake.text.types import Document, Source

StateT = TypeVar("StateT", bound=State)


@dataclass
class Runner:
    """One process's share of an evaluation; `carried` is what sequential methods hand on, by name."""

    lm: LM
    plan: Plan
    store: Datastore | None = None
    states: States = field(default_factory=States)
    carried: dict[str, State] = field(default_factory=dict)
    meter: CostMeter = field(default_factory=CostMeter)

    def __post_init__(self) -> None:
        self.meter.device = self.lm.device
        if not self.plan.searches:
            self.store = None
        elif self.store is None and self.plan.protocol.needs_store(self.plan):
            name = next(name for name, spec in self.plan.methods.items() if spec.searches)
            raise BadInput(f"{name} reads neighbours and there is no store: name one with --store")

    def run(self, batch: Batch) -> Iterator[Part]:
        """Do a batch and yield what comes of it; its states are on the disk when their part is yielded.

        Units that fail together are done one by one; one that fails alone is a failure of its rows.
        """
        self.meter.clear()
        parts = self.plan.protocol.run(batch, self)
        while True:
            try:
                part = next(parts, None)
            except Exception as error:  # whatever a network can raise is a failed unit, named in the report
                yield from self._failed(batch, reason_of(error))
                return
            if part is None:
                return
            # A disk that is full is no failure of the unit.
            yield self._saved(part, batch)

    def _failed(self, batch: Batch, reason: str) -> Iterator[Part]:
        if len(batch.units) > 1:
            for each in batch.each():
                yield from self.run(each)
            return
        (unit,), (place,) = batch.units, batch.places
        rows = {place: self.plan.protocol.failed(unit, self.plan, reason)}
        yield self._saved(Part(rows=rows, done=unit.steps, label=unit.id, first=False), batch)

    def resume(self, batch: Batch, kind: type[StateT]) -> StateT | None:
        """Return the state that a batch goes on from; None where it has none, or it cannot be read."""
        if batch.resume is None:
            return None
        try:
            return self.states.load(kind, batch.resume.state, self.lm)
        except UptakeError:
            return None

    def sources(self, asked: Sequence[tuple[str, Document]]) -> list[Source]:
        """Return where the neighbours of each text are, under the leak filter of its document."""
        assert self.store is not None
        texts = [QueryText(text, document.id, document.group, document.text) for text, document in asked]
        return list(self.store.sources(texts, self.plan.leak))

    def _saved(self, part: Part, batch: Batch) -> Part:
        saved = self.states.save(part.state, batch.places[0], part.done) if part.state is not None else ""
        # A state stays where it was made: what travels is the name of its file.
        peaks, gpu_peaks = {**self.meter.peaks}, {**self.meter.gpu_peaks}
        return replace(part, places=batch.places, state=None, saved=saved, peaks=peaks, gpu_peaks=gpu_peaks)
