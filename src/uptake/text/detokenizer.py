"""Tokens to text, one after another, in a time that does not grow with the text before them."""

from collections.abc import Sequence

from uptake.text.tokenizer import Tokenizer

_BEFORE = 8  # tokens that stand before the text, enough to tell whether it begins with a space
_CHARACTER = 4  # tokens that one character may be cut into
_HELD = 64  # tokens that may wait for a character to become whole; what is no text by then never will be
_CUT = "\ufffd"  # what stands for bytes that are no character, or not yet


class Detokenizer:
    """Turns tokens into the text that they add to `before`, the tokens they go on from.

    Pieces join to what decoding all tokens at once would add. A word that goes on from a text begins with
    its space also where a tokenizer drops the space at the beginning of what it decodes. A character that is
    cut between tokens comes with the last of them.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = self._context(before)
        self._known = len(self._ids)  # tokens whose text was returned; they stay as the context of the next

    def push(self, token: int) -> str:
        """Return the text that became whole with this token."""
        self._ids.append(token)
        text = self._fresh()
        whole = bool(text) and not text.endswith(_CUT)
        if not whole and len(self._ids) - self._known < _HELD:
            return ""
        del self._ids[: self._known]
        self._known = len(self._ids)
        return text

    def flush(self) -> str:
        """Return the text of the tokens that still waited for a character to become whole."""
        text = self._fresh()
        self._known = len(self._ids)
        return text

    def _fresh(self) -> str:
        known = self._tokenizer.decode(self._ids[: self._known])
        return self._tokenizer.decode(self._ids)[len(known) :]

    def _context(self, before: Sequence[int]) -> list[int]:
        """Return the last tokens of the text before, from where no character is cut."""
        last = max(0, len(before) - _BEFORE)
        starts = range(last, max(0, last - _CHARACTER) - 1, -1)
        decoded = ((start, self._tokenizer.decode([*before[start:]])) for start in starts)
        return [*before[next((start for start, text in decoded if not text.startswith(_CUT)), last) :]]
