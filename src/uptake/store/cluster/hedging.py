"""Sends a late request again, to a second replica, so that one slow machine delays no search.

A request is late when it takes longer than a given share of the recent requests of the same size,
of all shards together: at 0.95 the cluster does a twentieth more work as long as
none is slow ("The Tail at Scale", Dean and Barroso 2013). Whichever answers first counts.
"""

import time
from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import ray

from uptake.store.cluster.replicas import Replicas, ShardRequest

_RECENT = 256  # requests of one size by whose times lateness is judged


class Hedging:
    """Times of recent requests; `resent` counts the requests sent to a second replica."""

    def __init__(self, share: float) -> None:
        self.resent = 0
        self._share = share
        self._least = int(np.ceil(1 / (1 - share)))  # with fewer times the quantile is unknown
        self._recent: defaultdict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=_RECENT))

    def hedge(
        self,
        shards: Sequence[Replicas],
        requests: Sequence[list[ShardRequest]],
        method: str,
        arguments: Sequence[Any],
        size: Hashable,
    ) -> None:
        """Wait until all requests are answered or late, and send a second one for each that is late."""
        recent, start = self._recent[size], time.monotonic()
        limit = np.quantile(recent.copy(), self._share) if len(recent) >= self._least else None

        def note(answer: Future[Any]) -> None:
            if answer.exception() is None:
                recent.append(time.monotonic() - start)

        for (one,) in requests:
            one.request.future().add_done_callback(note)  # also when nobody waits for it any more
        if limit is None:
            return
        first = [one.request for (one,) in requests]
        _, late = ray.wait(first, num_returns=len(first), timeout=float(limit))
        for shard, each in zip(shards, requests, strict=True):
            if each[0].request in late:
                second = shard.send_to_another(each[0], method, arguments)
                self.resent += len(second)
                each += second
