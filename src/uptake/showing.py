"""Text from files and from outside, made fit for a terminal: shown as text, on one line where asked, cut."""

import unicodedata

MOST = 800  # characters of a line of a message; what is cut away is counted
_TAIL = 300  # of them from the end, where the cure stands
_KEPT = "\n\t\u200c\u200d"  # joiners make one emoji, or one syllable, of several characters


def visible(text: str) -> str:
    """Return text whose control characters, and those that turn or break lines, are shown as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def one_line(text: str, most: int | None = None) -> str:
    """Return text as `visible` shows it, on one line and cut to `most` characters."""
    flat = " ".join(text.split()) if most is None else " ".join(text[: 4 * most].split())
    shown = visible(flat)
    return shown if most is None or len(shown) <= most else shown[: most - 1] + "…"


def message(text: str) -> str:
    """Return a message on one line; what is too long loses its middle, and says how much."""
    shown = one_line(text)
    if len(shown) <= MOST:
        return shown
    left_out = len(shown) - MOST
    return f"{shown[: MOST - _TAIL]} … ({left_out:,} characters left out) … {shown[-_TAIL:]}"


def _shown(character: str) -> str:
    if character not in _KEPT and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape").decode()
    return character
