"""What an evaluation will cost, from a handful of its queries.

Queries spread evenly over the data are run as the evaluation would run them, one at a time; what
each of them took is scaled up to the whole. The spread is that of the queries measured: as if all
were like the cheapest of them, or like the dearest. Nothing here says whether it will help.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from uptake.errors import BadInput
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocol import Batch, Unit
from uptake.evaluation.queries import QueryProtocol, queries_of
from uptake.evaluation.runner import Runner
from uptake.lm.base import LM
from uptake.methods.contract.method import MethodSpec
from uptake.report.scored.rows import Scored
from uptake.store.datastore import Datastore
from uptake.text.types import Document


@dataclass(frozen=True)
class Workload:
    """How much there is to do. A unit is what is done in one go: a query, or under `running` a document."""

    units: int
    documents: int
    bytes: int  # UTF-8 bytes scored

    @classmethod
    def of(cls, everything: Sequence[Unit]) -> "Workload":
        queries = [query for unit in everything for query in queries_of(unit)]
        scored = sum(len(query.target.encode("utf8")) for query in queries)
        return cls(len(everything), len({query.document.id for query in queries}), scored)


@dataclass(frozen=True)
class CostRange:
    """A figure for the whole, and what it would be were all like the least or the most of those measured."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "CostRange":
        return cls(fmean(values), min(values), max(values))

    def times(self, factor: float) -> "CostRange":
        return CostRange(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class MethodCost:
    """What a method will cost over the whole data; without `cpu_seconds` where all it was tried on failed."""

    method: str
    k: tuple[int, ...]
    cpu_seconds: CostRange | None
    tokens_trained: CostRange | None
    peak_bytes: int  # the most one process held
    failed: str = ""  # why the first query that failed did


@dataclass(frozen=True)
class Forecast:
    """What a whole evaluation will cost. Loading the model and opening the store come on top."""

    size: Workload
    measured: int  # units
    workers: int  # as many as there is work and a core for
    wall_seconds: CostRange | None
    methods: tuple[MethodCost, ...]


def forecast(
    lm: LM,
    plan: Plan,
    documents: Iterable[Document],
    store: Datastore | None = None,
    *,
    queries: int = 3,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Forecast:
    """Measure `queries` units of an evaluation and return what all of it will cost.

    For several `workers` measure with one thread, as each of them has. Raises BadInput where
    nothing can be scored, where neighbours are wanted and there is no store, or where the protocol
    does not score queries.
    """
    if not isinstance(plan.protocol, QueryProtocol):
        raise BadInput(f"--protocol {plan.protocol.name}: what it costs cannot be told from a few queries")
    if queries < 1 or workers < 1:
        raise BadInput(f"queries {queries}, workers {workers}: use 1 or more of each")
    everything = plan.protocol.units(plan, Inputs.of(documents))
    chosen = [everything[place] for place in spread(len(everything), queries)]
    runner = Runner(lm, plan, store)
    # What is done once, a library's first call, is no query's cost. One neighbour, but the whole batch:
    # the states of all its queries are held at once.
    first = Runner(lm, replace(plan, ks=(min(1, max(plan.ks)),)), store)
    peaks = _measured(first, everything[: plan.batch if plan.protocol.reads_neighbours else 1])[1]
    rows: list[list[Scored]] = []
    wall = cpu = 0.0
    for unit in chosen:
        started, spent = time.perf_counter(), time.process_time()
        found, most = _measured(runner, [unit])
        wall += time.perf_counter() - started
        cpu += time.process_time() - spent
        rows.append(found)
        peaks = {name: max(peak, most[name]) for name, peak in peaks.items()}
        progress(len(rows), len(chosen))
    size = Workload.of(everything)
    processes = min(workers, _cores(), math.ceil(size.units / plan.batch))
    made = tuple(estimate(name, spec, plan, rows, size, peaks[name]) for name, spec in plan.methods.items())
    return Forecast(
        size,
        len(chosen),
        processes,
        wall_clock(plan, rows, size, processes, wall / cpu if cpu > 0 else 1.0),
        made,
    )


def _measured(runner: Runner, units: Sequence[Unit]) -> tuple[list[Scored], dict[str, int]]:
    """Return the rows of a batch of units, and the most memory each method held."""
    rows: list[Scored] = []
    peaks: dict[str, int] = {}
    for part in runner.run(Batch(tuple(units), tuple(range(len(units))))):
        rows += [row for some in part.rows.values() for row in some if isinstance(row, Scored)]
        peaks |= {name: max(peak, peaks.get(name, 0)) for name, peak in part.peaks.items()}
    return rows, peaks


def estimate(
    name: str, spec: MethodSpec, plan: Plan, rows: Sequence[Sequence[Scored]], size: Workload, peak: int = 0
) -> MethodCost:
    """Return the cost of one method over the whole; `rows` are those of each unit measured."""
    mine = [[row for row in unit if row.method == name] for unit in rows]
    failed = next((row.failed for unit in mine for row in unit if row.failed), "")
    sound = [unit for unit in mine if unit and not any(row.failed for row in unit)]
    if not sound:
        return MethodCost(name, plan.neighbour_counts(spec), None, None, peak, failed)
    seconds = [_seconds(unit, spec, plan, size) for unit in sound]
    tokens = [_tokens(unit, spec, plan, size) for unit in sound]
    return MethodCost(
        name, plan.neighbour_counts(spec), CostRange.of(seconds), CostRange.of(tokens), peak, failed
    )


def wall_clock(
    plan: Plan, rows: Sequence[Sequence[Scored]], size: Workload, processes: int, wall_per_cpu: float = 1.0
) -> CostRange | None:
    """Return how long the whole takes, shared between `processes` processes; None where every unit failed.

    The last batches leave processes idle: the longest share of any of them is what is waited for.
    """
    sound = [unit for unit in rows if unit and not any(row.failed for row in unit)]
    if not sound:
        return None
    whole = [
        sum(_seconds(mine, plan.methods[n], plan, size) for n, mine in _by_method(unit)) for unit in sound
    ]
    batches = math.ceil(size.units / plan.batch)
    share = min(1.0, math.ceil(batches / processes) * plan.batch / size.units)
    return CostRange.of(whole).times(share * wall_per_cpu)


def spread(count: int, wanted: int) -> list[int]:
    """Return places of at most `wanted` out of `count`, evenly spread."""
    wanted = min(count, wanted)
    return [(2 * number + 1) * count // (2 * wanted) for number in range(wanted)]


def _seconds(unit: Sequence[Scored], spec: MethodSpec, plan: Plan, size: Workload) -> float:
    """Return the CPU seconds of the whole, were all of it like this unit.

    Finding and learning grow with the number of queries, scoring with the bytes scored; under a
    protocol that learns what it scores, so does learning.
    """
    last = unit[-1]
    # Several k from one pass: the last row's training has that of the others in it.
    train = last.train_seconds if spec.method.incremental else sum(row.train_seconds for row in unit)
    score = sum(row.score_seconds for row in unit)
    by_bytes = size.bytes / max(1, last.bytes)
    if not _reads_neighbours(plan):
        return (train + score) * by_bytes
    return (last.retrieve_seconds + train) * size.units + score * by_bytes


def _tokens(unit: Sequence[Scored], spec: MethodSpec, plan: Plan, size: Workload) -> float:
    last = unit[-1]
    tokens = last.tokens_trained if spec.method.incremental else sum(row.tokens_trained for row in unit)
    return tokens * (size.units if _reads_neighbours(plan) else size.bytes / max(1, last.bytes))


def _reads_neighbours(plan: Plan) -> bool:
    return isinstance(plan.protocol, QueryProtocol) and plan.protocol.reads_neighbours


def _by_method(unit: Sequence[Scored]) -> Iterable[tuple[str, list[Scored]]]:
    found: Mapping[str, list[Scored]] = {row.method: [] for row in unit}
    for row in unit:
        found[row.method].append(row)
    return found.items()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
