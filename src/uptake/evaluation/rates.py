"""Choose the learning rate of a method that leaves it open, `learning_rate=auto`, on a store itself.

The best rate differs between models, between stores and with what is trained. So a few documents of the
store are taken as if they were queries: their neighbours come from the rest of the store, under the leak
filter. Rates a factor of three apart are measured on all of them around the largest gain, and the rate is
that of the top of the curve through these (climb.py). No evaluated text is seen. What was chosen is kept in
the store's folder, or else in this user's cache, under all that it depends on.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from uptake.adaptation.by_size import SMALL
from uptake.codec import Malformed, load, plain
from uptake.errors import BadInput, Diverged
from uptake.evaluation.climb import peak
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.queries import OpenQuery, queries_of
from uptake.evaluation.runner import Runner
from uptake.kept import cache_of, keep, read_kept
from uptake.lm.base import LM
from uptake.lm.size import size_of
from uptake.methods.contract.method import Method, MethodSpec
from uptake.report.formatting import percent
from uptake.report.metrics import gain
from uptake.settings import describe
from uptake.store.datastore import Datastore
from uptake.text.types import stable_hash

FACTOR, CLIMBS = 3.0, 6
FOLDER = "rates"  # in a store, and in the cache
_DRAWN = 3  # documents for each that is wanted: some have no neighbour

Progress = Callable[[int, float], None]  # how many rates were tried, the best gain


@dataclass(frozen=True)
class Effort:
    """How much is measured: documents that play the query, and how long they are."""

    documents: int
    neighbours: int  # at most, that each of them reads
    characters: int  # of its prefix, and as many of what is scored

    @classmethod
    def of(cls, weights: int) -> "Effort":
        """Return what a model of so many weights can afford: the cost is theirs times the tokens read."""
        return cls(9, 5, 1024) if weights <= SMALL else cls(12, 3, 512)


@dataclass(frozen=True)
class Tried:
    """A rate, and the share of bits it saved over the first so many documents: all, unless it did harm."""

    rate: float
    gain: float
    documents: int


@dataclass(frozen=True)
class ChosenRate:
    """A learning rate, and on what it was chosen; `gain` is read off the curve through those `tried`."""

    rate: float
    gain: float
    documents: int
    neighbours: int
    cpu_seconds: float
    tried: tuple[Tried, ...]

    def __str__(self) -> str:
        return (
            f"{self.rate:.2g}, chosen on {self.documents} documents of the store with {self.neighbours} "
            f"neighbours each (saves about {percent(self.gain)} there; {len(self.tried)} rates tried, "
            f"{self.cpu_seconds:.0f} CPU seconds)"
        )


def rate_of(
    lm: LM,
    method: Method[Any],
    store: Datastore,
    k: int,
    seed: int = 0,
    progress: Progress = lambda tried, best: None,
) -> ChosenRate | None:
    """Return the learning rate for a method whose optimizer leaves it open, as it was kept or chosen now.

    None where no document of the store has a neighbour to learn from. Raises BadInput where training
    fails at every rate.
    """
    effort = Effort.of(size_of(lm))
    effort = replace(effort, neighbours=max(1, min(k, effort.neighbours)))
    of = _dependencies(lm, method, store, effort, seed)
    for folder in _folders(store):
        if found := _read(folder, of):
            return found
    chosen = _Choosing(lm, method, store, effort, seed, progress).run()
    if chosen:
        any(keep(folder, of, plain(chosen)) for folder in _folders(store))
    return chosen


@dataclass
class _Choosing:
    """A choice under way: what each rate has made of each document so far."""

    lm: LM
    method: Any
    store: Datastore
    effort: Effort
    seed: int
    progress: Progress
    queries: list[OpenQuery] = field(default_factory=list)
    bits: dict[float, list[float]] = field(default_factory=dict)  # a rate -> the first documents' bits

    def __post_init__(self) -> None:
        size = self.effort.characters
        plan = Plan(
            {"method": MethodSpec(self.method)}, PerQuery(size, size), (self.effort.neighbours,), self.seed, 1
        )
        self.protocol, self.runner = PerQuery(size, size), Runner(self.lm, plan, self.store)

    def run(self) -> ChosenRate | None:
        started = time.process_time()
        self.queries += self._drawn()
        if not self.queries:
            return None
        start = self.method.optimizer.start
        rate, saved = peak(self._measure, start, FACTOR, CLIMBS)
        if saved == float("-inf"):
            raise BadInput("learning_rate=auto: training fails at every rate tried; set `trainable` anew")
        spent = time.process_time() - started
        rate = float(f"{rate:.2g}")  # as it is told, so that whoever names it gets the same
        tried = tuple(Tried(rate, self._gain(rate), len(self.bits[rate])) for rate in sorted(self.bits))
        return ChosenRate(rate, saved, len(self.queries), self.effort.neighbours, spent, tried)

    def _drawn(self) -> Iterator[OpenQuery]:
        """Yield documents of the store that have something to read in the rest of it, as queries."""
        effort = self.effort
        draws = np.random.default_rng(stable_hash(str(self.seed), "rates"))
        documents = self.store.sample(_DRAWN * effort.documents, 2 * effort.characters, draws)
        left = effort.documents
        for unit in self.protocol.units(self.runner.plan, Inputs(tuple(documents))) if documents else ():
            (query,) = queries_of(unit)
            (source,) = self.runner.sources([(query.search, query.document)])
            if left and source.search(1).passages:
                with contextlib.suppress(Diverged):  # the base has no score for it
                    yield from self.protocol.asked([unit], self.runner)
                    left -= 1

    def _measure(self, rate: float) -> float:
        """Return the gain at a rate over the documents; one that does harm ends early.

        At once where another rate does good on the same documents, else after half of them.
        """
        done = self.bits.setdefault(rate, [])
        spec = MethodSpec(replace(self.method, optimizer=self.method.optimizer.at(rate)))
        for one in self.queries:
            ((row,),) = self.protocol.rows(str(rate), spec, [one], self.runner)
            # A rate at which training fails anywhere is none to use, though its row counts as the base's.
            done.append(float("inf") if row.failed else row.bits)
            self.progress(len(self.bits), max(map(self._gain, self.bits)))
            better = any(self._gain(other, len(done)) > 0 for other in self.bits)
            if self._gain(rate) < 0 and (better or 2 * len(done) >= len(self.queries)):
                break
        return self._gain(rate)

    def _gain(self, rate: float, count: int | None = None) -> float:
        """Return the gain at a rate over the first documents, all that it was tried on unless told."""
        bits = self.bits[rate][:count]
        return gain(bits, [sum(part.bits for part in one.base) for one in self.queries[: len(bits)]])


def _dependencies(lm: LM, method: Method[Any], store: Datastore, effort: Effort, seed: int) -> str:
    settings: Mapping[str, Any] = describe(method)
    return f"{lm.fingerprint} {store.contents} {plain(settings)!r} {effort!r} {seed}"


def _folders(store: Datastore) -> Iterator[Path | None]:
    """Yield where chosen rates are kept: beside the store's passages where that may be written, the cache."""
    if isinstance(store.path, Path) and os.access(store.path, os.W_OK):
        yield store.path / FOLDER
    yield cache_of(FOLDER)


def _read(folder: Path | None, of: str) -> ChosenRate | None:
    """Return what was chosen before, None where nothing was, or what is there is damaged."""
    try:
        found = load(ChosenRate, read_kept(folder, of) or {})
    except Malformed:
        return None
    return found if 0 < found.rate < float("inf") else None
