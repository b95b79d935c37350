"""Shares work items between the actors of a cluster; the item of a lost actor is done again."""

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from uptake.errors import Incomplete
from uptake.store.cluster.connect import connect, own_error
from uptake.store.files import one_line

_DEATHS = 3  # actors that may die over one piece, or one after another before any is ready

Item = TypeVar("Item")


class Worker(Protocol):
    """An actor's class; `ready` does the slow start-up that may fail, so that its errors are reported."""

    def ready(self) -> None: ...


class Pool:
    """So many actors of one class, each made from the same arguments; use as a context manager.

    A dead actor is replaced as soon as the cluster has room; until then the others go on.
    """

    def __init__(
        self, address: str, kind: type[Worker], arguments: tuple[Any, ...], count: int, gpu: bool = False,
        patience: float = 600.0,
    ) -> None:  # fmt: skip
        self._ray = connect(address)
        self._class = self._ray.remote(kind)
        self._options = {"num_cpus": 1, "num_gpus": 1 if gpu else 0, "scheduling_strategy": "SPREAD"}
        self._arguments = arguments
        self._count = count
        self._patience = patience
        self._idle: list[Any] = []
        self._under_way: dict[Any, tuple[Any, Any]] = {}  # request -> actor, and the piece or _START

    def __enter__(self) -> Self:
        for _ in range(self._count):
            self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in [*self._idle, *(actor for actor, _ in self._under_way.values())]:
            self._ray.kill(actor)

    def share(self, method: str, items: Iterable[Item]) -> Iterator[tuple[Item, Any]]:
        """Yield each item with what `method` made of it, in the order of completion.

        Items are taken as actors become free. Raises what an actor raised, and Incomplete where the
        cluster has no room for any or actors keep dying.
        """
        left, again, deaths = iter(items), deque[Item](), Counter[int]()
        wanted = True
        while True:
            while self._idle and (again or wanted):
                item = again.popleft() if again else next(left, _START)
                if item is _START:
                    wanted = False
                    break
                actor = self._idle.pop()
                self._under_way[getattr(actor, method).remote(item)] = (actor, item)
            if not again and not wanted and all(item is _START for _, item in self._under_way.values()):
                return
            actor, item, answer = self._next()
            if isinstance(answer, _Death):
                deaths[id(item)] += 1
                if deaths[id(item)] > _DEATHS:
                    raise Incomplete(
                        f"{deaths[id(item)]} workers died over the same work ({answer.reason}); use fewer a "
                        "machine where memory is short; what was finished is stored"
                    )
                if item is not _START:
                    again.append(item)
                self._start()
                continue
            deaths[id(_START)] = 0
            self._idle.append(actor)
            if item is not _START:
                yield item, answer

    def _start(self) -> None:
        actor = self._class.options(**self._options).remote(*self._arguments)
        self._under_way[actor.ready.remote()] = (actor, _START)

    def _next(self) -> tuple[Any, Any, Any]:
        """Wait for the next request to end; return its actor, its item, and the answer or _Death."""
        errors = self._ray.exceptions
        starting = all(item is _START for _, item in self._under_way.values())
        end = time.monotonic() + self._patience
        while True:
            done, _ = self._ray.wait(list(self._under_way), timeout=10)
            if done:
                break
            if starting and time.monotonic() > end:
                raise Incomplete(
                    f"no worker has started for {self._patience:.0f} s: the cluster has no room for one; see "
                    "`ray status`"
                )
        actor, item = self._under_way.pop(done[0])
        try:
            return actor, item, self._ray.get(done[0])
        except errors.RayTaskError as error:
            raise own_error(error) or error from None
        except errors.RayError as error:
            return actor, item, _Death(one_line(error))


_START: Any = object()  # stands for an actor's first request, which is no item


@dataclass(frozen=True)
class _Death:
    """In place of an answer: why its actor gave none."""

    reason: str
