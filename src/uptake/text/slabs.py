"""A huge text in pieces that are compared one after another, so that it never becomes one huge list."""

import re
from collections.abc import Iterator

SLAB = 1 << 20  # characters

_SPACE = re.compile(r"\s")


def slabs(text: str) -> Iterator[str]:
    """Cut a text at white space, where neither a word nor a plain line can be harmed."""
    start = 0
    while start < len(text):
        cut = _SPACE.search(text, start + SLAB)
        end = cut.end() if cut else len(text)
        yield text[start:end]
        start = end
