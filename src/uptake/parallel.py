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
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Self

from uptake.causal import Causal, load
from uptake.errors import BadInput, UptakeError
from uptake.journal import Outcome
from uptake.lm import LM
from uptake.plan import Plan
from uptake.protocol import Query
from uptake.runner import Runner
from uptake.store.datastore import Datastore


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
    store: Path | None
    version: int | None
    encoder: str | None


@dataclass
class Workers:
    """Processes that each hold the model; use as a context manager."""

    lm: LM
    plan: Plan
    store: Datastore | None
    count: int
    _alive: dict[Connection, Any] = field(default_factory=dict)

    def __enter__(self) -> Self:
        if not isinstance(self.lm, Causal) or not self.lm.name:
            raise BadInput(
                "several workers each load the model: give one that `uptake.load` loaded, or one worker"
            )
        spawn = multiprocessing.get_context("spawn")
        for number in range(self.count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_work, args=(self._job(self.lm, number), theirs), daemon=True)
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

    def _job(self, lm: Causal, number: int) -> Job:
        device = str(lm.device)
        if lm.device.type == "cuda":
            import torch

            device = f"cuda:{number % torch.cuda.device_count()}"
        dtype = str(lm.dtype).removeprefix("torch.")
        store = self.store
        place = (
            (None, None, None) if store is None else (store.path, store.version, store.encoder_spec or None)
        )
        return Job(lm.name, lm.fingerprint, device, dtype, self.plan, *place)


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


def _work(job: Job, connection: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    try:
        lm = load(job.model, job.device, job.dtype)
        if lm.fingerprint != job.fingerprint:
            raise BadInput(f"model {job.model} changed while it was being read: begin again")
        store = (
            None
            if job.store is None
            else Datastore.open(job.store, encoder=job.encoder, version=job.version, threads=1)
        )
        runner = Runner(lm, job.plan, store)
        while True:
            batch: Batch = connection.recv()
            connection.send(runner.batch(batch.units, batch.shown))
    except (EOFError, KeyboardInterrupt):
        return  # the parent has finished, or was told to stop
    except UptakeError as error:
        connection.send(error)
