"""Run an evaluation: what is left to do, by one process, by several, by a cluster, and what came of it.

What is done is journaled as it is done, so an interrupted run goes on. Results depend on the plan
alone, not on how many processes share the work. What a unit is only its protocol knows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from uptake.errors import BadInput
from uptake.evaluation.checks import check
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.journal import Journal, RunOutcome, SavedRun
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocol import Batch, Part, Unit
from uptake.evaluation.ray import RayWorkers
from uptake.evaluation.runner import Runner
from uptake.evaluation.workers import Workers
from uptake.lm.base import LM
from uptake.store.datastore import Datastore
from uptake.text.types import Document

Progress = Callable[[int, int, str], None]


def evaluate(
    lm: LM,
    plan: Plan,
    inputs: Iterable[Document] | Inputs,
    store: Datastore | None = None,
    journal: Journal | None = None,
    progress: Progress = lambda done, total, name: None,
    workers: int = 1,
    ray: str | None = None,
    once: Mapping[str, float] | None = None,
) -> RunOutcome:
    """Do all that the plan's protocol makes of the inputs, under every method of the plan.

    With several `workers` as many processes share the units, one thread each: on this machine, or
    on the Ray cluster at the address `ray`. Raises BadInput where the inputs do not fit the protocol or the
    model, or where neighbours are wanted and there is no store; Incomplete where a cluster is. `once` is what
    `checked` returned, where it was called before.
    """
    if workers < 1:
        raise BadInput(f"workers {workers}: use 1 or more")
    if plan.sequential and (workers > 1 or ray is not None):
        raise BadInput("reference=true carries state from query to query: use one worker")
    journal = journal or Journal()
    once = dict(checked(lm, plan, inputs, store) if once is None else once)
    runner = Runner(lm, plan, store, journal.states)
    everything = plan.protocol.units(plan, Inputs.of(inputs))
    # What one unit processes to the next is in no journal: such a run begins again.
    kept = journal.start(plan.protocol.report, fresh=plan.sequential)
    batches = _batches(everything, plan, kept)
    total = sum(unit.steps for unit in everything)
    progress(kept.done, total, "")
    processes = min(workers, len(batches))
    for part in _made(runner, plan, batches, processes, ray):
        plan.protocol.charge(part, once)
        if part.kept:  # what is told as done is on the disk
            journal.keep(part)
        kept.add(part)
        if part.label is not None:
            progress(kept.done, total, part.label)
    journal.states.clear()  # all is done: nothing goes on from one
    return kept.outcome()


def checked(
    lm: LM, plan: Plan, inputs: Iterable[Document] | Inputs, store: Datastore | None = None
) -> dict[str, float]:
    """Raise as `evaluate` does for what can be told before the first query.

    Return the CPU seconds of what was prepared for each method, such as an index.
    """
    runner = Runner(lm, plan, store)
    plan.protocol.check(plan.protocol.units(plan, Inputs.of(inputs)), lm)
    return check(lm, plan, runner.store)


def _batches(everything: Sequence[Unit], plan: Plan, kept: SavedRun) -> list[Batch]:
    left = [place for place in range(len(everything)) if not kept.finished(place)]
    size = plan.protocol.side_by_side(plan)
    parts = [left[start : start + size] for start in range(0, len(left), size)]
    return [
        Batch(tuple(everything[place] for place in part), tuple(part), kept.resume(part[0])) for part in parts
    ]


def _made(runner: Runner, plan: Plan, batches: list[Batch], workers: int, ray: str | None) -> Iterator[Part]:
    if not batches or (workers <= 1 and ray is None):
        for batch in batches:
            yield from runner.run(batch)
        return
    shared = (runner.lm, plan, runner.store, runner.states, workers)
    with Workers(*shared) if ray is None else RayWorkers(*shared, ray) as processes:
        yield from processes.share(batches)
