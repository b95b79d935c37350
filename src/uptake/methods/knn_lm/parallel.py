"""A `Keyer` that several processes of one machine share, a model and a thread each: for views of real models.

Windows are dealt out, not texts, so that a long document keeps no process waiting for another.
"""

import contextlib
import multiprocessing
import os
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput, UptakeError
from uptake.lm.causal import Causal
from uptake.lm.examples import Example
from uptake.lm.loading import load
from uptake.lm.processes import ignoring_interrupts
from uptake.methods.knn_lm.keys import BATCH_TOKENS, TokenKeyer

_AHEAD = 2  # batches that a process has at once: the next one waits for it
_LEAST = 1024  # tokens of a batch

Keys = list[NDArray[np.float16]]


class ParallelKeyer(TokenKeyer):
    """Reads with so many processes, this one among them; use as a context manager.

    Batches are smaller than those of one process, so the last bit of a key may differ. What a process that
    died had under way is read again. Raises BadInput for a model that another process could not load.
    """

    def __init__(self, lm: Causal, workers: int) -> None:
        if workers < 1:
            raise BadInput(f"workers {workers}: use 1 or more")
        if workers > 1 and not lm.name:
            raise BadInput("several workers each load the model: give one that `uptake.load` loaded, or one")
        super().__init__(lm)
        self.batch_tokens = max(_LEAST, BATCH_TOKENS // workers)
        self._model = (lm.name, str(lm.device), str(lm.dtype).removeprefix("torch."))
        self._others = workers - 1
        self._alive: dict[Connection, Any] = {}

    def __enter__(self) -> Self:
        spawn = multiprocessing.get_context("spawn")
        for _ in range(self._others):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=_work, args=(*self._model, self.fingerprint, theirs), daemon=True)
            with ignoring_interrupts():
                process.start()
            theirs.close()
            self._alive[ours] = process
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection, process in self._alive.items():
            connection.close()
            process.terminate()
            process.join()
        self._alive.clear()

    def run(self, batches: Sequence[Sequence[Example]]) -> list[Keys]:
        found: dict[int, Keys] = {}
        waiting = deque(range(len(batches)))
        under_way: dict[Connection, list[int]] = {connection: [] for connection in self._alive}
        while len(found) < len(batches):
            for connection, own in under_way.items():
                while waiting and len(own) < _AHEAD:
                    own.append(waiting.popleft())
                    with contextlib.suppress(OSError):  # a dead one is found out when it should answer
                        connection.send([(each.context, each.target) for each in batches[own[-1]]])
            if waiting:
                number = waiting.popleft()
                found[number] = self.keys_of(batches[number])
            busy = [connection for connection, own in under_way.items() if own]
            for ready in wait(busy, 0 if waiting else None) if busy and len(found) < len(batches) else ():
                (connection,) = (each for each in busy if each is ready)
                answer = self._receive(connection)
                if answer is None:
                    waiting.extend(under_way.pop(connection))
                    continue
                if isinstance(answer, UptakeError):
                    raise answer
                found[under_way[connection].pop(0)] = answer
        return [found[number] for number in range(len(batches))]

    def _receive(self, connection: Connection) -> "Keys | UptakeError | None":
        """Return a process's answer, or None where it has died."""
        try:
            answer: Keys | UptakeError = connection.recv()
        except (EOFError, OSError):
            self._alive.pop(connection).join()
            return None
        return answer


def _work(model: str, device: str, dtype: str, fingerprint: str, connection: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    try:
        keyer = TokenKeyer(load(model, device, dtype))
        if keyer.fingerprint != fingerprint:
            raise BadInput(f"model {model} changed while it was being read: begin again")
        while True:
            batch = [Example(context, target) for context, target in connection.recv()]
            connection.send(keyer.keys_of(batch))
    except (EOFError, OSError, KeyboardInterrupt):
        return  # the parent has finished, or was told to stop
    except UptakeError as error:
        connection.send(error)
