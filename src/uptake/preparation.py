"""What is done once for all queries, such as opening an index: no single query's cost.

Whatever prepares something does it under `preparing()`, and every clock that measures the cost of a query
stands still meanwhile. What it took is counted apart, a thread by itself.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple


class Prepared(NamedTuple):
    """Seconds that this thread has spent on preparing, by each clock."""

    thread: float = 0.0  # CPU time of the thread
    cpu: float = 0.0  # CPU time of the process
    wall: float = 0.0


def clocks() -> tuple[float, float, float]:
    """Return what the clocks show, in seconds: of this thread, of the process, on the wall."""
    return time.thread_time(), time.process_time(), time.perf_counter()


@dataclass
class _Tally(threading.local):
    done: Prepared = field(default_factory=Prepared)
    since: tuple[float, float, float] | None = None  # when what is under way began


_tally = _Tally()


@contextmanager
def preparing() -> Iterator[None]:
    """Count the block as preparation; one inside another is part of it. Also a decorator."""
    if _tally.since is not None:
        yield
        return
    _tally.since = clocks()
    try:
        yield
    finally:
        _tally.done, _tally.since = prepared(), None


def prepared() -> Prepared:
    """Return what this thread has spent on preparing so far, what is under way included."""
    if _tally.since is None:
        return _tally.done
    passed = (now - then for now, then in zip(clocks(), _tally.since, strict=True))
    return Prepared(*(had + more for had, more in zip(_tally.done, passed, strict=True)))


def query_clocks() -> tuple[float, float, float]:
    """Return what the clocks show, less what was spent on preparing."""
    thread, cpu, wall = (now - gone for now, gone in zip(clocks(), prepared(), strict=True))
    return thread, cpu, wall
