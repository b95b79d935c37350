"""Run an evaluation: what is left to do, by one process, by several, by a cluster, and what came of it.

What is done is kept in a journal as it is done, so an interrupted run goes on. Results depend on
the plan alone, not on how many processes share the work.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from uptake.errors import BadInput
from uptake.evaluation.journal import Journal, Outcome
from uptake.evaluation.plan import Plan, units
from uptake.evaluation.protocol import Query
from uptake.evaluation.ray import Spread
from uptake.evaluation.runner import Runner
from uptake.evaluation.workers import Batch, Workers
from uptake.lm.base import LM
from uptake.store.datastore import Datastore
from uptake.text.types import Document

Progress = Callable[[int, int, str], None]


def evaluate(
    lm: LM,
    plan: Plan,
    documents: Iterable[Document],
    store: Datastore | None = None,
    journal: Journal | None = None,
    progress: Progress = lambda done, total, name: None,
    workers: int = 1,
    ray: str | None = None,
) -> Outcome:
    """Score every document under every way of the plan.

    With several `workers` as many processes share the queries, one thread each: on this machine, or
    on the Ray cluster at the address `ray`. Raises BadInput where nothing can be scored, or where
    neighbours are wanted and there is no store; Incomplete where a cluster is.
    """
    if workers < 1:
        raise BadInput(f"workers {workers}: use 1 or more")
    if plan.sequential and (workers > 1 or ray is not None):
        raise BadInput("reference=true hands on from query to query: use one worker")
    # What one query hands to the next is in no journal: such a run begins again.
    journal = journal or Journal()
    outcome = journal.start(fresh=plan.sequential)
    runner = Runner(lm, plan, store)
    everything = units(plan.protocol, documents)
    done = {row.query for row in outcome.rows}
    left = [(place, unit) for place, unit in enumerate(everything) if unit[0].id not in done]
    finished = len(everything) - len(left)
    progress(finished, len(everything), "")
    for batch, made in _made(runner, plan, _batches(left, plan), min(workers, len(left)), ray):
        outcome.rows += made.rows
        outcome.showcases += made.showcases
        for name, peak in made.peaks.items():
            outcome.peaks[name] = max(outcome.peaks.get(name, 0), peak)
        journal.keep(made.rows, made.showcases, outcome.peaks)
        finished += len(batch.units)
        progress(finished, len(everything), batch.units[-1][0].document.id)
    _sort(outcome, plan, everything)
    return outcome


def _batches(left: Sequence[tuple[int, list[Query]]], plan: Plan) -> list[Batch]:
    size = 1 if plan.sequential else plan.batch
    parts = [left[start : start + size] for start in range(0, len(left), size)]
    # The first queries of the whole are shown in full, whoever does them and whenever.
    return [
        Batch([unit for _, unit in part], sum(place < plan.showcases for place, _ in part)) for part in parts
    ]


def _made(
    runner: Runner, plan: Plan, batches: list[Batch], workers: int, ray: str | None
) -> Iterator[tuple[Batch, Outcome]]:
    if not batches or (workers <= 1 and ray is None):
        for batch in batches:
            yield batch, runner.batch(batch.units, batch.shown)
        return
    shared = (runner.lm, plan, runner.store, workers)
    with Workers(*shared) if ray is None else Spread(*shared, ray) as hands:
        yield from hands.share(batches)


def _sort(outcome: Outcome, plan: Plan, everything: Sequence[Sequence[Query]]) -> None:
    """Put rows and showcases into the order of the queries, whoever finished first."""
    place = {unit[0].id: number for number, unit in enumerate(everything)}
    ways = {name: number for number, name in enumerate(plan.methods)}
    outcome.rows.sort(key=lambda row: (place[row.query], ways[row.method], row.k))
    outcome.showcases.sort(key=lambda showcase: place[showcase.query])
