"""Tensors that can be computed again, the latest of them kept within so many bytes. It knows no model."""

import threading
from collections import OrderedDict
from collections.abc import Hashable

from torch import Tensor


class Latest:
    """A table of tensors that forgets the one used longest ago once all are more than `most` bytes."""

    def __init__(self, most: int) -> None:
        self._most, self.bytes = most, 0  # bytes that are kept now
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Tensor | None:
        """Return what is kept under a key, None where nothing is."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def put(self, key: Hashable, value: Tensor) -> None:
        """Keep a tensor of its own storage under a key; what is there already stays."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = value
                self.bytes += value.nbytes
            while self.bytes > self._most and self._kept:
                _, oldest = self._kept.popitem(last=False)
                self.bytes -= oldest.nbytes

    def __len__(self) -> int:
        return len(self._kept)
