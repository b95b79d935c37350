"""Where a text is cut that has no space near: after a sentence, after a clause, or between characters."""

from functools import cache
from typing import Any

# Later ones are taken where none of the earlier ones is near. All are followed by the next piece.
_MARKS = (
    "\u3000\u2028\u2029\u0085\u200b",  # other spaces; the last may end a line of Khmer
    "。！？｡…‥।॥؟۔።။។།",  # ends of sentences
    "，、；：､،؛၊」』）】》〉”",  # ends of clauses
)
_AROUND = 64  # characters before a cut that are looked at; what a reader takes for one has fewer


def unspaced_break(text: str, floor: int, end: int) -> int:
    """Return where to cut after `floor` and at `end` at the latest, in a stretch without a space.

    Not within what a reader takes for a character, such as a letter and its marks or a family of emoji,
    unless that is longer than the stretch.
    """
    if text.isascii() or end >= len(text):
        return end
    for marks in _MARKS:
        at = max(text.rfind(mark, floor, end) for mark in marks)
        if at >= floor:
            return at + 1
    start = max(floor, end - _AROUND)
    # From a little before on, so that the characters at its beginning are seen whole.
    ends = (found.end() for found in _character().finditer(text, max(0, start - _AROUND), end + _AROUND))
    return max((at for at in ends if start < at <= end), default=end)


@cache
def _character() -> Any:
    import regex

    return regex.compile(r"\X")
