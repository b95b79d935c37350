"""Edits that leave a text a copy: what the calibration of the leak filter is about (overlap.py)."""

import random
import re
import unicodedata
from collections.abc import Callable

from uptake.text.letters import Letters

_CLAUSE = re.compile(r"[^、。，．,.!?;:！？；：۔،।॥\n]+")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


def units(text: str) -> list[str]:
    """Cut a text into words, or pieces as long as words where they are written together; all is kept."""
    if len(_UNSPACED.findall(text)) < len(text) / 3 and text.count(" ") > len(text) / 30:
        return re.findall(r"\s*\S+\s*?|\s+", text)
    size = max(1, round(5 * len(text) / max(Letters(text).worth, 1)))
    return [text[at : at + size] for at in range(0, len(text), size)]


def replaced(rate: int) -> Callable[[str, random.Random], str]:
    """Replace one word in `rate` by another of the text."""

    def edit(text: str, chance: random.Random) -> str:
        words = units(text)
        return "".join(chance.choice(words) if chance.random() < 1 / rate else word for word in words)

    return edit


def dropped(rate: int) -> Callable[[str, random.Random], str]:
    """Leave one word in `rate` out."""
    return lambda text, chance: "".join(word for word in units(text) if chance.random() >= 1 / rate)


def marked(text: str, chance: random.Random) -> str:
    """Put one letter of the text before each clause."""
    letters = [c for c in text if c.isalpha()]
    return _CLAUSE.sub(lambda found: chance.choice(letters) + found[0], text)


def shuffled(text: str, chance: random.Random) -> str:
    """Put the lines, or clauses where there are few lines, in another order."""
    parts = text.splitlines() if text.count("\n") > 4 else _CLAUSE.findall(text)
    chance.shuffle(parts)
    return "\n".join(parts)


def wrapped(text: str, chance: random.Random) -> str:
    """Break every line after 40 characters, wherever that is."""
    flat = " ".join(text.split())
    return "\n".join(flat[at : at + 40] for at in range(0, len(flat), 40))


def wide(text: str, chance: random.Random) -> str:
    """Write ASCII in full width and capitals."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c.upper() for c in text)


def exchanged(text: str, chance: random.Random) -> str:
    """Write Chinese in traditional characters, or in simplified ones if it is in traditional ones."""
    try:
        import opencc  # of opencc-python-reimplemented, for this edit alone
    except ImportError:
        return text
    if not re.search("[\u4e00-\u9fff]", text) or re.search("[\u3040-\u30ff]", text):
        return text
    simplified = opencc.OpenCC("t2s").convert(text)
    changed = sum(a != b for a, b in zip(text, simplified, strict=False))
    return simplified if changed > len(text) / 50 else opencc.OpenCC("s2t").convert(text)


UNEDITED = "as it is"
EDITS: dict[str, Callable[[str, random.Random], str]] = {
    UNEDITED: lambda text, chance: text,
    "a letter before each clause": marked,
    "1 word in 24 replaced": replaced(24),
    "1 in 12 replaced": replaced(12),
    "1 in 8 replaced": replaced(8),
    "1 in 24 dropped": dropped(24),
    "1 in 12 dropped": dropped(12),
    "no punctuation": lambda text, chance: "".join(c for c in text if unicodedata.category(c)[0] != "P"),
    "no white space": lambda text, chance: "".join(text.split()),
    "a space after each third character": lambda text, chance: re.sub(r"(\S{3})", r"\1 ", text),
    "wrapped": wrapped,
    "decomposed": lambda text, chance: unicodedata.normalize("NFD", text),
    "full width, capitals": wide,
    "marks left out": lambda text, chance: "".join(
        c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c)
    ),
    "lines in another order": shuffled,
    "traditional or simplified": exchanged,
}  # fmt: skip
