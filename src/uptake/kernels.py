"""How many kernels a process keeps for products of bfloat16 matrices on a CPU: those of a few lengths.

PyTorch makes one for each shape, so for each length of a text in each layer, and keeps a thousand, oneDNN
below it a thousand more. On a processor that computes bfloat16 itself that is some 5 MB a length, until a
gigabyte is full. Making one anew takes a third of a millisecond.
"""

import os

LIMITS = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")  # of PyTorch, and of oneDNN
KEPT = 16


def keep_few() -> None:
    """Bound them, unless the environment does: before the first such product, which reads the bounds."""
    for name in LIMITS:
        os.environ.setdefault(name, str(KEPT))
