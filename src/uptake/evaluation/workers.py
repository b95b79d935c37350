"""Share an evaluation between processes of one machine: one model and one thread each, or one GPU each.

A worker that dies has its batch done again by another, from the last state that was kept. Batches
travel through pipes that the parent makes and nobody else can reach.
"""

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from uptake.errors import BadInput, UptakeError
from uptake.evaluation.journal import States
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocol import Batch, Part, Resume
from uptake.evaluation.runner import Runner
from uptake.lm.base import LM
from uptake.lm.loading import load
from uptake.lm.pretrained import Pretrained
from uptake.lm.processes import ignoring_interrupts
from uptake.store.cluster import Cluster
from uptake.store.datastore import Datastore
from uptake.store.passages.searching import VECTOR_WEIGHT, Searching
from uptake.store.remote.objects import Location
from uptake.text.types import QueryEncoder


@dataclass(frozen=True)
class Job:
    """All that a worker needs to begin, as plain data."""

    model: str
    fingerprint: str
    device: str
    dtype: str
    plan: Plan
    states: States
    store: Location | None
    version: int | None
    encoder: str | None
    cluster: Cluster | None
    searching: Searching | None = None
    query_encoder: QueryEncoder | None = None

    @classmethod
    def of(cls, lm: LM, plan: Plan, store: Datastore | None, states: States) -> "Job":
        """Describe it; raises BadInput for a model that another process could not load."""
        if not isinstance(lm, Pretrained) or not lm.name:
            raise BadInput(
                "several workers each load the model: give one that `uptake.load` loaded, or one worker"
            )
        dtype = str(lm.dtype).removeprefix("torch.")
        place = (
            (None, None, None, None, None, None)
            if store is None
            else (
                store.path,
                store.version,
                store.encoder_spec or None,
                store.cluster,
                store.searching,
                store.query_encoder,
            )
        )
        return cls(lm.name, lm.fingerprint, str(lm.device), dtype, plan, states, *place)

    def runner(self) -> Runner:
        """Load the model and open the store, in the process that is to do the work: one thread for all."""
        os.environ["OMP_NUM_THREADS"] = "1"
        import torch

        torch.set_num_threads(1)
        lm = load(self.model, self.device, self.dtype)
        if lm.fingerprint != self.fingerprint:
            raise BadInput(f"model {self.model} changed while it was being read: begin again")
        store = (
            None
            if self.store is None
            else Datastore.open(
                self.store,
                encoder=self.encoder,
                version=self.version,
                threads=1,
                cluster=self.cluster,
                search_by=self.searching.by if self.searching else None,
                vector_weight=self.searching.vector_weight if self.searching else VECTOR_WEIGHT,
                query_encoder=self.query_encoder,
            )
        )
        return Runner(lm, self.plan, store, self.states)


@dataclass
class Workers:
    """Processes that each hold the model; use as a context manager."""

    lm: LM
    plan: Plan
    store: Datastore | None
    states: States
    count: int
    _alive: dict[Connection, Any] = field(default_factory=dict)

    def __enter__(self) -> Self:
        job = Job.of(self.lm, self.plan, self.store, self.states)
        spawn = multiprocessing.get_context("spawn")
        for number in range(self.count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_work, args=(_on(job, number), theirs), daemon=True)
            with ignoring_interrupts():
                process.start()
            theirs.close()
            self._alive[ours] = process
        return self

    def __exit__(self, *_: object) -> None:
        for connection, process in self._alive.items():
            connection.close()
            process.terminate()
            process.join()

    def share(self, batches: Sequence[Batch]) -> Iterator[Part]:
        """Yield the parts of all batches as they come.

        Raises what a worker raised, and BadInput once no worker is left alive.
        """
        waiting = list(reversed(batches))
        under_way: dict[Connection, Batch] = {}
        whole: set[Connection] = set()  # whose batch has all its parts, though not yet its end
        while waiting or under_way:
            for connection in [idle for idle in self._alive if idle not in under_way and waiting]:
                if waiting:
                    under_way[connection] = waiting.pop()
                    self._send(connection, under_way[connection])
            for ready in wait(list(under_way)):
                connection = next(each for each in under_way if each is ready)
                answer = self._receive(connection)
                if answer is None or answer == _END:
                    batch = under_way.pop(connection)
                    if answer is None and connection not in whole:
                        waiting.append(batch)
                    whole.discard(connection)
                elif isinstance(answer, Part):
                    if answer.finished and set(answer.places) == set(under_way[connection].places):
                        whole.add(connection)
                    under_way[connection] = _from(under_way[connection], answer)
                    yield answer
                elif isinstance(answer, UptakeError):
                    raise answer
            if not self._alive:
                raise BadInput(
                    "every worker died, perhaps for want of memory: use fewer workers or a smaller batch"
                )

    def _send(self, connection: Connection, batch: Batch) -> None:
        # A dead worker cannot be sent to: the wait that follows finds its end of the pipe closed.
        with contextlib.suppress(OSError):
            connection.send(batch)

    def _receive(self, connection: Connection) -> Part | str | UptakeError | None:
        """Return a worker's answer, or None where it has died."""
        try:
            answer: Part | str | UptakeError = connection.recv()
        except (EOFError, OSError):
            self._alive.pop(connection).join()
            return None
        return answer


_END = "end"  # what a worker sends after the last part of a batch


def _from(batch: Batch, part: Part) -> Batch:
    """Return the batch as another worker would go on with it after this part."""
    return replace(batch, resume=Resume(part.saved, part.data)) if part.saved else batch


def _on(job: Job, number: int) -> Job:
    """Return the job for the worker of this number: on one machine they share its GPUs in turn."""
    if not job.device.startswith("cuda"):
        return job
    import torch

    return replace(job, device=f"cuda:{number % torch.cuda.device_count()}")


def _work(job: Job, connection: Connection) -> None:
    try:
        runner = job.runner()
        while True:
            batch: Batch = connection.recv()
            for part in runner.run(batch):
                connection.send(part)
            connection.send(_END)
    except (EOFError, KeyboardInterrupt):
        return  # the parent has finished, or was told to stop
    except UptakeError as error:
        connection.send(error)
