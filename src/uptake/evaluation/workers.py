"""Share an evaluation between processes of one machine: one model and one thread each, or one GPU each.

A worker that dies has its batch done again by another. Batches travel through pipes that the
parent makes and nobody else can reach.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Self

from uptake.errors import BadInput, UptakeError
from uptake.evaluation.journal import Outcome
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocol import Query
from uptake.evaluation.runner import Runner
from uptake.lm.base import LM
from uptake.lm.causal import Causal, load
from uptake.store.cluster import Cluster
from uptake.store.datastore import Datastore
from uptake.store.remote.objects import Location


@dataclass(frozen=True)
class Batch:
    """Units to score side by side, the first `shown` of them to be kept in full."""

    units: list[list[Query]]
    shown: int = 0


@dataclass(frozen=True)
class Job:
    """All that a worker needs to begin, as plain data."""

    model: str
    fingerprint: str
    device: str
    dtype: str
    plan: Plan
    store: Location | None
    version: int | None
    encoder: str | None
    cluster: Cluster | None

    @classmethod
    def of(cls, lm: LM, plan: Plan, store: Datastore | None) -> "Job":
        """Describe it; raises BadInput for a model that another process could not load."""
        if not isinstance(lm, Causal) or not lm.name:
            raise BadInput(
                "several workers each load the model: give one that `uptake.load` loaded, or one worker"
            )
        dtype = str(lm.dtype).removeprefix("torch.")
        place = (
            (None, None, None, None)
            if store is None
            else (store.path, store.version, store.encoder_spec or None, store.cluster)
        )
        return cls(lm.name, lm.fingerprint, str(lm.device), dtype, plan, *place)

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
                self.store, encoder=self.encoder, version=self.version, threads=1, cluster=self.cluster
            )
        )
        return Runner(lm, self.plan, store)


@dataclass
class Workers:
    """Processes that each hold the model; use as a context manager."""

    lm: LM
    plan: Plan
    store: Datastore | None
    count: int
    _alive: dict[Connection, Any] = field(default_factory=dict)

    def __enter__(self) -> Self:
        job = Job.of(self.lm, self.plan, self.store)
        spawn = multiprocessing.get_context("spawn")
        for number in range(self.count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_work, args=(_on(job, number), theirs), daemon=True)
            with _deaf_to_interrupts():
                process.start()
            theirs.close()
            self._alive[ours] = process
        return self

    def __exit__(self, *_: object) -> None:
        for connection, process in self._alive.items():
            connection.close()
            process.terminate()
            process.join()

    def share(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Outcome]]:
        """Yield each batch with what came of it, in the order of completion.

        Raises what a worker raised, and BadInput once no worker is left alive.
        """
        waiting = list(reversed(batches))
        under_way: dict[Connection, Batch] = {}
        while waiting or under_way:
            for connection in [idle for idle in self._alive if idle not in under_way and waiting]:
                if waiting:
                    under_way[connection] = waiting.pop()
                    self._send(connection, under_way[connection])
            for ready in wait(list(under_way)):
                connection = next(each for each in under_way if each is ready)
                batch = under_way.pop(connection)
                made = self._receive(connection)
                if made is None:
                    waiting.append(batch)
                elif isinstance(made, Outcome):
                    yield batch, made
                else:
                    raise made
            if not self._alive:
                raise BadInput(
                    "every worker died, perhaps for want of memory: use fewer workers or a smaller batch"
                )

    def _send(self, connection: Connection, batch: Batch) -> None:
        # A dead worker cannot be sent to: the wait that follows finds its end of the pipe closed.
        with contextlib.suppress(OSError):
            connection.send(batch)

    def _receive(self, connection: Connection) -> Outcome | UptakeError | None:
        """Return a worker's answer, or None where it has died."""
        try:
            answer: Outcome | UptakeError = connection.recv()
        except (EOFError, OSError):
            self._alive.pop(connection).join()
            return None
        return answer


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let processes started in the block ignore Ctrl-C, which a terminal sends to all: this one ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say so
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


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
            connection.send(runner.batch(batch.units, batch.shown))
    except (EOFError, KeyboardInterrupt):
        return  # the parent has finished, or was told to stop
    except UptakeError as error:
        connection.send(error)
