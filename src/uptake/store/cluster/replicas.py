"""The actors of one shard: started once for all programs, used in turn, replaced when one dies."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import ray
from ray import exceptions

from uptake.store.cluster import Cluster
from uptake.store.cluster.connect import NAMESPACE, own_error
from uptake.store.cluster.shard import STATUS, Place, Shard

SILENT = object()  # stands for no answer: what a shard answers may be None


class ShardRequest(NamedTuple):
    """A request under way, and the number of the actor that has it."""

    replica: int
    request: Any


class Replicas:
    """One shard's actors, for one version of the table."""

    def __init__(self, place: Place, version: int, cluster: Cluster) -> None:
        self.rows = place.rows
        self._place = place
        self._version = version
        self._cluster = cluster
        self._actors = [self._started(replica) for replica in range(cluster.replicas)]
        self._opening: dict[
            int, Any
        ] = {}  # actors that are not ready yet: others are used where there are any
        self._turn = 0

    def send(self, method: str, arguments: Sequence[Any], wait: bool = False) -> ShardRequest:
        """Send the next actor a request; with `wait` it is done even if the actor has to restart."""
        return self._send_to(self._next(), method, arguments, wait)

    def send_to_another(
        self, first: ShardRequest, method: str, arguments: Sequence[Any]
    ) -> list[ShardRequest]:
        """Send another actor the same request; none where no other has the version open."""
        count = len(self._actors)
        others = [(first.replica + step) % count for step in range(1, count)]
        ready = [replica for replica in others if replica not in self._opening]
        return [self._send_to(replica, method, arguments) for replica in ready[:1]]

    def send_to_all(self, method: str, arguments: Sequence[Any]) -> list[ShardRequest]:
        """Send every actor a request."""
        return [self._send_to(replica, method, arguments) for replica in range(len(self._actors))]

    def open_all(self) -> list[ShardRequest]:
        """Let every actor open the version; until it has, others are used where there are any."""
        requests = self.send_to_all("open", (self._version,))
        self._opening = dict(requests)
        return requests

    def answer(
        self, requests: Sequence[ShardRequest], method: str, arguments: Sequence[Any], end: float | None
    ) -> Any:
        """Return the first answer to any of these requests, or to those sent in place of failed ones.

        SILENT where nothing has come by `end`. Raises what the shard itself raised.
        """
        waits = self._cluster.missing == "wait"
        under_way = {each.request: each.replica for each in requests}
        # Every actor once. With "wait" two more requests: to an actor that is being restarted, and to
        # one that Ray has given up, which is made anew.
        left = len(self._actors) - len(requests) + 2 * waits
        while under_way:
            seconds = None if end is None else max(0.0, end - time.monotonic())
            done, _ = ray.wait(list(under_way), timeout=seconds)
            if not done:
                break
            replica = under_way.pop(done[0])
            try:
                return ray.get(done[0])
            except exceptions.RayTaskError as error:
                raise own_error(error) or error from None
            except exceptions.RayError as error:
                self._lost(replica, error)
                if left > 0 and not under_way:
                    left -= 1
                    again = self.send(method, arguments, wait=waits and left < 2)
                    under_way[again.request] = again.replica
        return SILENT

    def _send_to(
        self, replica: int, method: str, arguments: Sequence[Any], wait: bool = False
    ) -> ShardRequest:
        call = getattr(self._actors[replica], method)
        return ShardRequest(replica, (call.options(max_task_retries=-1) if wait else call).remote(*arguments))

    def _next(self) -> int:
        """Return the next actor, of those that have the version open where there are any."""
        for replica, request in list(self._opening.items()):
            if ray.wait([request], timeout=0)[0]:
                del self._opening[replica]
                try:
                    ray.get(request)
                except exceptions.RayTaskError:
                    pass  # the next request raises it again
                except exceptions.RayError as error:
                    self._lost(replica, error)
        for _ in self._actors:
            self._turn = (self._turn + 1) % len(self._actors)
            if self._turn not in self._opening:
                break
        return self._turn

    def _lost(self, replica: int, error: Exception) -> None:
        """Take an actor out of the turns until Ray has started it again, or we have where Ray does not."""
        if isinstance(error, exceptions.ActorDiedError):
            self._actors[replica] = self._started(replica)
        if len(self._actors) > 1:
            self._opening[replica] = self._send_to(replica, "open", (self._version,), wait=True).request

    def _started(self, replica: int) -> Any:
        """Return the actor of this name, which another program may have started."""
        grouped: Any = ray.remote
        actor = grouped(concurrency_groups={STATUS: 1})(Shard)
        return actor.options(
            name=f"{self._place.name}/{self._place.rows}/{replica}",
            namespace=NAMESPACE,
            get_if_exists=True,
            num_cpus=self._cluster.cpus,
            max_restarts=-1,
            scheduling_strategy="SPREAD",
        ).remote(self._place, replica)
