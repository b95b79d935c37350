"""Texts that are far too long for the model, refused in the door before the thread that computes sees them.

A text is counted in pieces and only up to twice its room, so that the work is bounded whatever was sent. What
is a little too long passes here, and the engine, which counts exactly, refuses it.
"""

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from uptake.server.errors import bad

PIECE = 8 << 10  # characters that are counted at once
MARGIN = 2  # times the room: a text cut into pieces has a few more tokens than the whole
LONGEST = 128  # characters a token of the room; even runs of spaces are told apart in shorter ones
MOST_TOKENIZED = 256 << 10  # characters that are made tokens at once for a client


class Sizes:
    """Counts tokens in threads of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(2, "sizes")

    async def check(self, tokenizer: Any, texts: Iterable[str], room: int, param: str) -> None:
        """Raise ApiError where texts together have far more tokens than there is room for."""
        given = list(texts)
        size = sum(map(len, given))
        # A token is a byte at least, and a character four bytes at most.
        if size * 4 <= MARGIN * room:
            return
        beyond = size > LONGEST * room
        if not beyond:
            beyond = await asyncio.get_running_loop().run_in_executor(
                self._threads, _beyond, tokenizer, given, MARGIN * room
            )
        if beyond:
            raise bad(
                f"{param} of {size:,} characters is far more than the {room:,} tokens there is room for: "
                "shorten it",
                param,
                "context_length_exceeded",
            )

    async def ids(self, tokenizer: Any, text: str) -> list[int]:
        """Return a text as tokens. Raises ApiError for one that would take long."""
        if len(text) > MOST_TOKENIZED:
            told = f"prompt of {len(text):,} characters: at most {MOST_TOKENIZED:,} at once, so cut it"
            raise bad(told, "prompt", "too_long")
        return await asyncio.get_running_loop().run_in_executor(self._threads, _ids, tokenizer, text)


def _beyond(tokenizer: Any, texts: list[str], most: int) -> bool:
    count = 0
    for text in texts:
        for start in range(0, len(text), PIECE):
            count += len(_ids(tokenizer, text[start : start + PIECE]))
            if count > most:
                return True
    return False


def _ids(tokenizer: Any, text: str) -> list[int]:
    # A batch, even of one, leaves the other threads of this process their turns.
    (found,) = tokenizer.encode_batch([text], add_special_tokens=False)
    return list(found.ids)
