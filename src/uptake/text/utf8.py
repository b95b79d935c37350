"""Text as UTF-8 can hold it, which is how files and other libraries take it."""

import re

_SURROGATE = re.compile("[\ud800-\udfff]")


def storable(text: str) -> str:
    """Return the text with lone surrogates, which UTF-8 cannot hold, replaced one for one."""
    return _SURROGATE.sub("\ufffd", text)
