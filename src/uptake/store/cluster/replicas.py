"""The actors that hold one shard: started once for all programs, asked in turn, asked again when one dies."""

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray import exceptions

from uptake.store.cluster import Cluster
from uptake.store.cluster.connect import NAMESPACE, own_error
from uptake.store.cluster.shard import TELLING, Place, Shard

SILENT = object()  # stands for no answer: what a shard answers may be None


class Replicas:
    """One shard's actors."""

    def __init__(self, place: Place, cluster: Cluster) -> None:
        self.rows = place.rows
        self._place = place
        self._cluster = cluster
        self._actors = [self._started(replica) for replica in range(cluster.replicas)]
        self._turn = 0

    def ask(self, method: str, arguments: Sequence[Any], wait: bool = False) -> Any:
        """Send the next actor a request; with `wait` that outlives the actor: it is done when it is back."""
        self._turn = (self._turn + 1) % len(self._actors)
        call = getattr(self._actors[self._turn], method)
        return (call.options(max_task_retries=-1) if wait else call).remote(*arguments)

    def answer(self, asked: Any, method: str, arguments: Sequence[Any], end: float | None) -> Any:
        """Return what comes of a request, sent to others too if need be; SILENT where nothing has by `end`.

        Raises what the shard itself raised.
        """
        waits = self._cluster.missing == "wait"
        # Every actor once. Who waits asks two more times: for one that is being restarted, and for
        # one that Ray gives up, which is made anew.
        for left in reversed(range(len(self._actors) + 2 * waits)):
            try:
                return ray.get(asked, timeout=None if end is None else max(0.0, end - time.monotonic()))
            except exceptions.RayTaskError as error:
                raise own_error(error) or error from None
            except exceptions.GetTimeoutError:
                break
            except exceptions.RayError as error:
                if isinstance(error, exceptions.ActorDiedError):
                    self._actors[self._turn] = self._started(self._turn)
                if left:
                    asked = self.ask(method, arguments, wait=waits and left <= 2)
        return SILENT

    def _started(self, replica: int) -> Any:
        """Return the actor of this name, which another program may have started."""
        grouped: Any = ray.remote
        actor = grouped(concurrency_groups={TELLING: 1})(Shard)
        return actor.options(
            name=f"{self._place.uid}/{self._place.rows}/{replica}",
            namespace=NAMESPACE,
            get_if_exists=True,
            num_cpus=self._cluster.cpus,
            max_restarts=-1,
            scheduling_strategy="SPREAD",
        ).remote(self._place, replica)
