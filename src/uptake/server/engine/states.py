"""States that answer requests, and those of them that stay in memory."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from uptake.lm.grid_rows import Beginning
from uptake.methods.contract.method import Method, State
from uptake.server.engine.plans import Plan
from uptake.server.engine.rows import Answers
from uptake.text.types import Passage


@dataclass(frozen=True)
class Adapted:
    """A state with the method that makes an LM of it."""

    method: Method[Any]
    state: State


@dataclass(frozen=True)
class Made:
    """What came of reading: who answers now, what was read, and what it cost."""

    key: str
    tenant: str
    answers: Answers
    passages: tuple[Passage, ...]
    scores: tuple[float, ...]
    steps: int
    trained: int
    stopped: str | None
    diverged: bool
    bytes: int
    store: str | None
    search_ms: float
    adapt_ms: float
    whole: Adapted | None = None  # where it is to be kept on the disk
    begun: Beginning | None = None  # what was read with it to try it, for the row that asked

    @property
    def name(self) -> str:
        """What clients are told as its id."""
        return f"st_{self.key[:24]}"

    @property
    def bare(self) -> "Made":
        """The same without what is for the one who asked alone."""
        return self if self.whole is None and self.begun is None else replace(self, whole=None, begun=None)


Told = Callable[[Made | Exception, str], None]  # what came of it; and made, hit or joined


@dataclass(eq=False)
class Waiter:
    """One prompt of a request that waits for its state."""

    told: Told
    plan: Plan
    tenant: str
    quota: int
    ids: Sequence[int] = ()  # what its row will read first, where that is known
    cancelled: bool = False
    keep: bool = False


class States:
    """What is kept: the least recently used go first, a tenant's own where its quota is full."""

    def __init__(self, most: int) -> None:
        self._most, self._kept = most, OrderedDict[str, Made]()
        self.hits = self.evictions = 0

    def get(self, key: str) -> Made | None:
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            self.hits += 1
        return found

    def put(self, made: Made, quota: int) -> None:
        """Keep a state, and let others go for it; one that is larger than all there may be is not kept."""
        if made.bytes > min(quota, self._most):
            return
        self._kept[made.key] = made.bare
        self._kept.move_to_end(made.key)
        for tenant, most in ((made.tenant, quota), (None, self._most)):
            while self.bytes(tenant) > most:
                oldest = next(key for key, one in self._kept.items() if tenant in (None, one.tenant))
                del self._kept[oldest]
                self.evictions += 1

    def bytes(self, tenant: str | None = None) -> int:
        """Return the bytes of all states, or of one tenant's."""
        return sum(one.bytes for one in self._kept.values() if tenant in (None, one.tenant))

    def forget(self, held: Callable[[Made], bool]) -> int:
        """Drop every state that this is true of; return how many."""
        gone = [key for key, one in self._kept.items() if held(one)]
        for key in gone:
            del self._kept[key]
        return len(gone)

    def drop(self, key: str) -> None:
        """Drop one state, if it is there."""
        self._kept.pop(key, None)

    def __len__(self) -> int:
        return len(self._kept)
