"""What can be computed again, kept within so many bytes. It knows no model.

Which rule pays depends on how keys come back. Where the same ones come soon again, forgetting the one used
longest ago keeps those in use. Where all come round in turn and are more than fit, that forgets each just
before it is asked for; keeping the first ones that fit finds some of them every time.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """A value that says how many bytes it holds."""

    @property
    def nbytes(self) -> int: ...


Value = TypeVar("Value", bound=Sized)


class BoundedTable(Generic[Value]):
    """A table of values of at most `most` bytes in all.

    Where one more does not fit, the one used longest ago is forgotten if it `forgets`; else the new one is
    not kept. Threads may share it.
    """

    def __init__(self, most: int, forgets: bool = True) -> None:
        self._most, self._forgets = most, forgets
        self.bytes = 0  # kept now
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Value | None:
        """Return what is kept under a key, None where nothing is."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def put(self, key: Hashable, value: Value) -> None:
        """Keep a value of its own storage under a key; what is there already stays."""
        with self._lock:
            if key in self._kept or value.nbytes > self._most:
                return
            while self._forgets and self.bytes + value.nbytes > self._most:
                _, oldest = self._kept.popitem(last=False)
                self.bytes -= oldest.nbytes
            if self.bytes + value.nbytes <= self._most:
                self._kept[key] = value
                self.bytes += value.nbytes

    def __len__(self) -> int:
        return len(self._kept)
