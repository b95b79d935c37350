"""Asking a second replica where the first is late, so that one slow machine does not hold up a search.

Late is what has not come within the time in which a given share of recent requests of the same size
were answered, all shards taken together: at 0.95 the cluster does a twentieth more work as long as
none is slow ("The Tail at Scale", Dean and Barroso 2013). Whichever answers first counts.
"""

import time
from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import ray

from uptake.store.cluster.replicas import Asked, Replicas

_RECENT = 256  # requests of one size by whose times lateness is judged


class Hedging:
    """What recent requests took; `asked_again` counts those sent to a second replica."""

    def __init__(self, share: float) -> None:
        self.asked_again = 0
        self._share = share
        self._least = int(np.ceil(1 / (1 - share)))  # fewer times do not tell what so few exceed
        self._recent: defaultdict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=_RECENT))

    def hedge(
        self,
        shards: Sequence[Replicas],
        asked: Sequence[list[Asked]],
        method: str,
        arguments: Sequence[Any],
        size: Hashable,
    ) -> None:
        """Wait until all requests are answered or late, and add a second one to each that is late."""
        recent, start = self._recent[size], time.monotonic()
        limit = np.quantile(recent.copy(), self._share) if len(recent) >= self._least else None

        def note(answer: Future[Any]) -> None:
            if answer.exception() is None:
                recent.append(time.monotonic() - start)

        for (one,) in asked:
            one.request.future().add_done_callback(note)  # also when nobody waits for it any more
        if limit is None:
            return
        requests = [one.request for (one,) in asked]
        _, late = ray.wait(requests, num_returns=len(requests), timeout=float(limit))
        for shard, each in zip(shards, asked, strict=True):
            if each[0].request in late:
                second = shard.ask_another(each[0], method, arguments)
                self.asked_again += len(second)
                each += second
