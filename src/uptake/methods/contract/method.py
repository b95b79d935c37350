"""The contract: how a model adapts to text.

A method turns evidence into a state, and a state into an LM. It says nothing of *when* text is
read (protocols do) and nothing of where text comes from (store/ does). States are plain frozen
values: `adapt` returns new ones and the old stay valid.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch

from uptake.errors import BadInput, Mismatch
from uptake.lm.base import LM, Scores, Segment
from uptake.methods.contract.spending import Budget, Ledger, Meter
from uptake.text.breaks import unspaced_break
from uptake.text.select import Nearest, Select
from uptake.text.types import Found, Passage, Source, stable_hash


@dataclass(frozen=True)
class Evidence:
    """What one query may read: passages found for it, in the order to read them, and where more is.

    `source` searches one view and one version of a store under this query's leak filter. `own` is
    what of the query's text may be learnt, where that is not `query`: what is yet to be scored is not.
    """

    found: Found
    query: str = ""
    source: Source | None = None
    own: str | None = None

    @property
    def prefix(self) -> str:
        """The query's own text, as far as it may be learnt."""
        return self.query if self.own is None else self.own

    @property
    def passages(self) -> tuple[Passage, ...]:
        return self.found.passages

    @classmethod
    def of(cls, *texts: str, query: str = "") -> "Evidence":
        """Return evidence made of bare texts, numbered by their content."""
        passages = tuple(Passage(stable_hash(text), text) for text in texts)
        zeros = (0.0,) * len(texts)
        return cls(Found(passages, zeros, zeros, zeros), query)


@dataclass
class Context:
    """Seed, budget and accounts of a batch of queries; row i has `ledgers[i]`. For one thread at a time.

    Time is counted while somebody is `charging` it: a method charges the rows it works on, one or several.
    `continues` says whether more will be read from the resulting states: where not, what only further
    reading needs, such as an optimizer state, is dropped.
    """

    seed: int = 0
    budget: Budget = field(default_factory=Budget)
    ledgers: list[Ledger] = field(default_factory=list)
    cancelled: Callable[[], bool] = lambda: False
    continues: bool = True
    meter: Meter = field(default_factory=Meter, repr=False, compare=False)

    def ledger(self, row: int) -> Ledger:
        while len(self.ledgers) <= row:
            self.ledgers.append(Ledger())
        return self.ledgers[row]

    def of(self, row: int) -> "Context":
        """Return the context of one row by itself; what is spent there is spent here."""
        return Context(self.seed, self.budget, [self.ledger(row)], self.cancelled, self.continues, self.meter)

    def generator(self, *names: str) -> torch.Generator:
        """Return a random generator that depends on the seed and the names alone, not on what ran before."""
        return torch.Generator().manual_seed(stable_hash(str(self.seed), *names))

    def charging(
        self, rows: Iterable[int], device: torch.device | None = None
    ) -> AbstractContextManager[None]:
        """Charge what a block takes to these rows, in equal shares; blocks within charge for themselves."""
        return self.meter.charge([self.ledger(row) for row in rows], device)

    @contextmanager
    def charging_together(self, rows: Sequence[int], device: torch.device | None = None) -> Iterator[None]:
        """Charge what a block takes to rows that it trains together, each as its tokens are of theirs."""
        ledgers, whole = [self.ledger(row) for row in rows], Ledger()
        before = [ledger.tokens_trained for ledger in ledgers]
        try:
            with self.meter.charge([whole], device):
                yield
        finally:
            trained = [each.tokens_trained - was for each, was in zip(ledgers, before, strict=True)]
            for ledger, tokens in zip(ledgers, trained, strict=True):
                ledger.charge(whole, tokens / sum(trained) if any(trained) else 1 / len(rows))

    def may_continue(self, row: int) -> bool:
        """Whether a row may read on; if it is cancelled or its time is up, its ledger says so."""
        return self._within(row, Budget(None, None, self.budget.cpu_seconds, self.budget.wall_seconds))

    def affords(self, row: int, tokens: int) -> bool:
        """Whether a row may take one more step, over `tokens` tokens; if not, its ledger says why."""
        return self._within(row, self.budget, tokens)

    def _within(self, row: int, budget: Budget, tokens: int = 0) -> bool:
        ledger = self.ledger(row)
        if self.cancelled():
            ledger.stop("cancelled", f"cancelled after {ledger.steps:,} steps")
            return False
        if budget.timed:
            self.meter.settle()
        if spent := ledger.exceeds(budget, tokens):
            ledger.stop("budget", f"the budget is spent: {spent}")
        return not spent


@dataclass(frozen=True)
class Reading:
    """One call of `adapt` as a state records it, so that it can be replayed without some of its passages."""

    passages: tuple[Passage, ...]
    scores: tuple[float, ...]
    query: str
    seed: int
    own: str | None = None

    def evidence(self) -> Evidence:
        """Return what was read."""
        return Evidence(Found(self.passages, self.scores), self.query, own=self.own)


@dataclass(frozen=True, kw_only=True)
class State:
    """What a method knows after reading; `history` is all that was read, in order.

    Tensors are where the model is, but for those of the fields in `with_processor`.
    """

    with_processor: ClassVar[frozenset[str]] = frozenset()

    base: str  # fingerprint of the model it was made for
    history: tuple[Reading, ...] = ()

    @property
    def passages(self) -> list[Passage]:
        """All passages read, in order."""
        return [passage for reading in self.history for passage in reading.passages]

    def history_without(self, ids: Sequence[int]) -> tuple[Reading, ...]:
        """Return the history as if the passages with these ids had not been there.

        A reading left without passages is left out.
        """
        gone, left = set(ids), []
        for reading in self.history:
            pairs = list(zip(reading.passages, reading.scores, strict=True))
            kept = [(passage, score) for passage, score in pairs if passage.id not in gone]
            if kept or not pairs:
                passages, scores = zip(*kept, strict=True) if kept else ((), ())
                left.append(dataclasses.replace(reading, passages=passages, scores=scores))
        return tuple(left)

    def after(self, evidence: Evidence, context: Context, **changes: object) -> Self:
        """Return this state with `changes`, having read the evidence."""
        found = evidence.found
        reading = Reading(found.passages, found.scores, evidence.query, context.seed, evidence.own)
        return dataclasses.replace(self, history=(*self.history, reading), **changes)  # type: ignore[arg-type]


StateT = TypeVar("StateT", bound=State)


class Method(ABC, Generic[StateT]):
    """How a model adapts to text. Final classes are frozen dataclasses whose fields are the settings."""

    reads: ClassVar[bool] = True  # False: reads nothing, whatever it is given
    # Settings that `uptake tune` tries, one group after another, each from the best so far; empty where the
    # learning rate is what matters most, which it tries for every method that has one.
    tuning_choices: ClassVar[tuple[tuple[str, ...], ...]] = ()
    # True: all it has read is in the weights of its LM, so a `FrozenModelMethod` can be combined with it.
    trains_weights_only: ClassVar[bool] = False
    learns_while_scoring: ClassVar[bool] = (
        False  # True: its LM learns each token it scores, before the next one
    )

    @staticmethod
    def load_choices() -> None:
        """Import every method: one that is a setting of another is written as the name of its class."""
        from uptake import methods

        for name in methods.names():
            methods.find(name)

    @property
    def sequential(self) -> bool:
        """Whether queries must run one after another, because `next_state` passes something to the next."""
        return False

    @property
    def separate(self) -> bool:
        """Whether rows share no pass while each may hold a copy of the model: they are done one by one."""
        return False

    @property
    def private(self) -> bool:
        """Whether it reads under differential privacy, as its setting `privacy` says, if it has one.

        It reads all that one reading holds together then, and each unit in one reading alone.
        """
        return getattr(self, "privacy", None) is not None

    @property
    def takes_input_tokens(self) -> bool:
        """Whether its LM uses input tokens of the model for places of its own, as a soft prompt does."""
        return not getattr(getattr(self, "trainable", None), "neutral", True)

    @property
    def incremental(self) -> bool:
        """Whether several calls of `adapt` give the same state as one call on all their passages."""
        return True

    @property
    def views(self) -> tuple[str, ...]:
        """What it reads of a store beside passages: "tokens", "chunks". A journal is told what they hold."""
        return ()

    def check(self, lm: LM, source: Source | None = None) -> None:
        """Raise BadInput, Mismatch or Missing where it cannot work: on this model, with this store.

        It is asked before the first query is read; `source` is one of any query, None where no store is
        searched. This default makes the first state and its LM.
        """
        self.adapted([self.init(lm)], lm)

    @classmethod
    @abstractmethod
    def example(cls) -> Self:
        """Return settings under which reading a sentence or two shows on a tiny model (for the laws)."""

    @abstractmethod
    def init(self, lm: LM) -> StateT:
        """Return the state of having read nothing."""

    @abstractmethod
    def adapt(
        self,
        states: Sequence[StateT],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[StateT]:
        """Return the states after reading; row i is query i.

        The old states stay valid unless `donate` is set, which lets a method update in place.
        """

    @abstractmethod
    def adapted(self, states: Sequence[StateT], lm: LM) -> LM:
        """Return an LM whose row i answers from states[i]; `lm`, the base, is untouched."""

    def read(
        self, states: Sequence[StateT], lm: LM, segments: Sequence[Segment], context: Context
    ) -> tuple[list[Scores], list[StateT]]:
        """Score each segment, then read it: no token is scored by a model that has seen it."""
        scores = self.adapted(states, lm).score(segments)
        evidence = [self.evidence_of(segment) for segment in segments]
        return scores, self.adapt(states, lm, evidence, context)

    def evidence_of(self, segment: Segment) -> Evidence:
        """Return a segment as what `read` adapts to once it is scored."""
        return Evidence.of(segment.text, query=segment.context)

    def next_state(self, state: StateT, lm: LM) -> StateT:
        """Return the state the next query starts from: a fresh one, unless a method says otherwise."""
        return self.init(lm)

    def forget(self, state: StateT, lm: LM, ids: Sequence[int], context: Context | None = None) -> StateT:
        """Return the state as if the passages with these ids had never been read.

        This default reads everything else again.
        """
        fresh = self.init(lm)
        for reading in state.history_without(ids):
            replay = Context(reading.seed, (context or Context()).budget)
            (fresh,) = self.adapt([fresh], lm, [reading.evidence()], replay)
        return fresh


@dataclass(frozen=True)
class MethodSpec:
    """A method under its name: its settings, and how the passages that it reads are selected.

    With `segment` an answer is scored in pieces of so many characters, each read once scored. `learner`
    is what `uptake train` trains by the method's name, where that is not the method itself.
    """

    method: Method[Any]
    select: Select = field(default_factory=Nearest)
    segment: int | None = None
    learner: object | None = None

    def __post_init__(self) -> None:
        if self.method.private and self.searches:
            raise BadInput(
                f"{type(self.method).__name__.lower()} under privacy reads what it finds in a store: which "
                "neighbours those are depends on the private text itself, and noise that hides a few drowns "
                "them; use online, which reads no store, or leave privacy out"
            )

    @property
    def searches(self) -> bool:
        """Whether it reads passages that somebody has to find."""
        return self.method.reads and self.select.searches

    def choose(self, lm: LM, source: Source, k: int, generator: np.random.Generator) -> Found:
        """Return at most k passages that its selection chooses for this model; BadInput if k is below 1."""
        return self.select.for_model(lm).choose(source, k, generator)

    def score(
        self, states: Sequence[Any], lm: LM, segments: Sequence[Segment], context: Context
    ) -> list[Scores]:
        """Score each segment by the LM of its state."""
        if self.segment is None:
            return self.method.adapted(states, lm).score(segments)
        return [
            self._score_running(state, lm, segment, context.of(row))
            for row, (state, segment) in enumerate(zip(states, segments, strict=True))
        ]

    def _score_running(self, state: Any, lm: LM, segment: Segment, context: Context) -> Scores:
        text = segment.text
        parts: list[Scores] = []
        for start, end in _pieces(text, self.segment or len(text)):
            piece = Segment(text[start:end], segment.context + text[:start])
            (scores,), (state,) = self.method.read([state], lm, [piece], context)
            parts.append(scores.shifted(start))
        return Scores.joined(parts)


def _pieces(text: str, size: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of pieces of at most `size` characters, cut before white space where some is near.

    Elsewhere they are cut after a sentence or a clause, and never within a character and its marks.
    A word cut in two is dear where tokens are whole words: cut every 256 characters, text took 3 % more bits.
    """
    start = 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            floor = start + 1 + size // 2
            at = max(text.rfind(mark, floor, end + 1) for mark in " \n")
            end = at if at > start else unspaced_break(text, floor, end)
        yield start, end
        start = end


def same_base(states: Sequence[State], lm: LM) -> None:
    """Raise Mismatch unless every state was made for this model."""
    for state in states:
        if state.base != lm.fingerprint:
            raise Mismatch(
                f"the state was made for model {state.base}, not {lm.fingerprint}: load that model"
            )


def charged_by_row(
    learn: Callable[[int, StateT, Evidence], StateT],
    states: Sequence[StateT],
    evidence: Sequence[Evidence],
    context: Context,
    device: torch.device,
) -> list[StateT]:
    """Return what `learn(row, state, evidence)` makes of each row, whose time is charged to it alone."""
    same_length(states, evidence)
    after = []
    for row, (state, read) in enumerate(zip(states, evidence, strict=True)):
        with context.charging([row], device):
            after.append(learn(row, state, read))
    return after


def same_length(states: Sequence[State], evidence: Sequence[Evidence]) -> None:
    """Raise BadInput unless there is one state for each query."""
    if len(states) != len(evidence):
        raise BadInput(f"{len(states)} states for {len(evidence)} queries: give one a query")
