"""Share an evaluation between the workers of a Ray cluster: one model and one thread each, or one GPU each.

A worker does what a process of this machine does (workers.py); a lost worker's batch is done
again by another. Every machine must see the model's folder, the store and the
journal's folder.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from uptake.evaluation.journal import States
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocol import Batch, Part
from uptake.evaluation.runner import Runner
from uptake.evaluation.workers import Job
from uptake.lm.base import LM
from uptake.store.cluster.pool import Pool
from uptake.store.datastore import Datastore


class Scorer:
    """A worker: makes what the job names, then does batches."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def ready(self) -> None:
        """Load the model and open the store."""
        self._runner: Runner = self._job.runner()

    def do(self, batch: Batch) -> list[Part]:
        """Return what came of a batch, part by part."""
        return list(self._runner.run(batch))


@dataclass
class RayWorkers:
    """So many workers of the cluster at `address`; use as a context manager, as `Workers` is."""

    lm: LM
    plan: Plan
    store: Datastore | None
    states: States
    count: int
    address: str
    _pool: Pool = field(init=False)

    def __enter__(self) -> Self:
        job = Job.of(self.lm, self.plan, self.store, self.states)
        gpu = job.device.startswith("cuda")
        # Ray shows each worker its own GPU as the only one.
        job = replace(job, device="cuda") if gpu else job
        if self.store is not None:
            self.store.prepare()  # shards belong to the program that starts them, which must outlive workers
        self._pool = Pool(self.address, Scorer, (job,), self.count, gpu).__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.__exit__(*error)

    def share(self, batches: Sequence[Batch]) -> Iterator[Part]:
        """Yield the parts of each batch once all of it is done; raises as `Pool.share` does."""
        for _, parts in self._pool.share("do", batches):
            yield from parts
