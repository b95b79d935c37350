"""What a query may spend while it is adapted to, what it has spent, and why it was stopped if it was.

A meter charges the time that passes to the queries at work and to no others: what a query may spend does
not depend on which other queries are in its batch. It knows no method.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from uptake.errors import BadInput
from uptake.preparation import query_clocks


@dataclass(frozen=True)
class Budget:
    """The most that one query may spend on being adapted to; None is no limit.

    Seconds count while this very query is at work, not while others of its batch are, nor while something is
    prepared once for all. A method stops
    before the step that would exceed `tokens` or `steps`, and after the one that exceeded a time.
    """

    tokens: int | None = None
    steps: int | None = None
    cpu_seconds: float | None = None
    wall_seconds: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (isinstance(value, int | float) and value >= 0):
                raise BadInput(f"budget {name} {value!r}: use 0 or more")

    @property
    def timed(self) -> bool:
        """Whether it limits a time."""
        return self.cpu_seconds is not None or self.wall_seconds is not None


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a reading ended before everything was read.

    After `diverged` the state is that of before the reading; after `budget` and `cancelled` it is as far as
    the method got.
    """

    kind: Literal["diverged", "budget", "cancelled"]
    reason: str  # one line for people, with the value and the cure

    def __str__(self) -> str:
        return self.reason


@dataclass
class Ledger:
    """What one query has spent, and what stopped it, if anything did."""

    tokens_trained: int = 0
    tokens_read: int = 0
    steps: int = 0
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    gpu_seconds: float = 0.0  # 0 where there is no GPU
    stopped: Stop | None = None

    @property
    def failed(self) -> str:
        """Why the reading failed and left no trace, or "": a budget that is spent is no failure."""
        return self.stopped.reason if self.stopped and self.stopped.kind == "diverged" else ""

    def stop(self, kind: Literal["diverged", "budget", "cancelled"], reason: str) -> None:
        """Note a stop; of several a divergence counts, else the first."""
        if self.stopped is None or (kind == "diverged" and self.stopped.kind != "diverged"):
            self.stopped = Stop(kind, reason)

    def charge(self, spent: "Ledger", share: float = 1.0) -> None:
        """Add this share of the seconds of another ledger."""
        self.cpu_seconds += spent.cpu_seconds * share
        self.wall_seconds += spent.wall_seconds * share
        self.gpu_seconds += spent.gpu_seconds * share

    def exceeds(self, budget: Budget, tokens: int = 0) -> str:
        """Return which limit one more step over `tokens` tokens would not keep, in one line, or ""."""
        trained, steps = self.tokens_trained, self.steps
        if budget.tokens is not None and trained + tokens > budget.tokens:
            return f"{trained:,} of {budget.tokens:,} tokens are trained on, the next step has {tokens:,}"
        if budget.steps is not None and steps >= budget.steps:
            return f"{steps:,} of {budget.steps:,} steps are taken"
        if budget.cpu_seconds is not None and self.cpu_seconds >= budget.cpu_seconds:
            return f"{budget.cpu_seconds:g} CPU seconds are spent after {steps:,} steps"
        if budget.wall_seconds is not None and self.wall_seconds >= budget.wall_seconds:
            return f"{budget.wall_seconds:g} seconds on the clock are spent after {steps:,} steps"
        return ""


class Times(NamedTuple):
    """What clocks show, in seconds: differences mean something, values do not."""

    thread: float  # CPU time of this thread
    process: float  # CPU time of all threads
    wall: float
    gpu: float = 0.0


class _AtWork:
    """How many meters of this process are charging somebody now."""

    def __init__(self) -> None:
        self._lock, self._count = threading.Lock(), 0

    def add(self, change: int) -> None:
        with self._lock:
            self._count += change

    @property
    def count(self) -> int:
        return max(1, self._count)


_meters = _AtWork()


class GpuClock:
    """Seconds of a GPU, by events on its current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._first = self._record()

    def __call__(self) -> float:
        """Return the seconds since the clock was made, once all that was asked of the GPU is done."""
        now = self._record()
        now.synchronize()
        return float(self._first.elapsed_time(now)) / 1000

    def _record(self) -> torch.cuda.Event:
        with torch.cuda.device(self._device):
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
        return event


class Meter:
    """Charges passing time to the ledgers of the innermost `charge`, in equal shares. One thread at a time.

    CPU time is that of this thread where torch computes in it alone. Where torch spreads work over threads it
    is the process's, shared equally between the meters that are charging somebody at the same time.
    """

    def __init__(self, clocks: Callable[[], Times] | None = None) -> None:
        """Read other `clocks` than this machine's, if any are given."""
        self._read = clocks or self._clocks
        self._gpu: GpuClock | None = None
        self._charged: list[Sequence[Ledger]] = []
        self._last = Times(0.0, 0.0, 0.0)

    @contextmanager
    def charge(self, ledgers: Sequence[Ledger], device: torch.device | None = None) -> Iterator[None]:
        """Charge what the block takes to these ledgers; a block within charges its own time to its own.

        With a CUDA device the GPU's time is charged as well.
        """
        if self._gpu is None and device is not None and device.type == "cuda":
            self._gpu = GpuClock(device)
        if not self._charged:
            _meters.add(1)
        self.settle()
        self._charged.append(ledgers)
        try:
            yield
        finally:
            self.settle()
            self._charged.pop()
            if not self._charged:
                _meters.add(-1)

    def settle(self) -> None:
        """Charge what has passed until now."""
        now, before = self._read(), self._last
        self._last = now
        if not self._charged:
            return
        alone = torch.get_num_threads() == 1
        cpu = now.thread - before.thread if alone else (now.process - before.process) / _meters.count
        passed = Ledger(0, 0, 0, cpu, now.wall - before.wall, now.gpu - before.gpu)
        for ledger in self._charged[-1]:
            ledger.charge(passed, 1 / len(self._charged[-1]))

    def _clocks(self) -> Times:
        gpu = self._gpu() if self._gpu else 0.0
        return Times(*query_clocks(), gpu)


@contextmanager
def cpu_seconds(into: list[float]) -> Iterator[None]:
    """Append the CPU seconds that the block takes, over all threads, to `into`; preparation is left out."""
    _, started, _ = query_clocks()
    try:
        yield
    finally:
        into.append(query_clocks()[1] - started)
