"""Marks for answers as SQuAD's own evaluation script gives them: exact match and F1.

Followed is the script of SQuAD 2.0 (Rajpurkar et al. 2018); that of 1.1 agrees wherever both
texts keep a word. What it does not know, other scripts' punctuation and words without spaces, is as in
MLQA's (Lewis et al. 2020). A prefix of an answer is no exact match.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from uptake.text.terms import characters_apart, mostly_ascii

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LATIN = 0x0590  # the script knows the punctuation of ASCII alone; that of scripts from Hebrew on goes too
_GENERAL = range(0x2000, 0x2070)  # dashes and curly quotes, which it keeps


def normalised(text: str) -> str:
    """Return the text in small letters, without punctuation and articles, single spaces between.

    Punctuation is that of ASCII, as in the script, and of the scripts that have their own, as in MLQA's.
    """
    text = text.lower().translate(_PUNCTUATION)
    if not text.isascii():
        text = "".join(character for character in text if not _is_foreign_mark(character))
    return " ".join(_ARTICLES.sub(" ", text).split())


def _is_foreign_mark(character: str) -> bool:
    code = ord(character)
    return code >= _LATIN and code not in _GENERAL and unicodedata.category(character)[0] == "P"


def exact(said: str, answers: Sequence[str]) -> float:
    """Return 1 if what was said is one of the answers, both normalised, else 0."""
    words = normalised(said)
    return float(any(words == answer for answer in _golds(answers)))


def f1(said: str, answers: Sequence[str]) -> float:
    """Return the best harmonic mean, over the answers, of precision and recall of normalised words.

    Each character is one where the answer's script writes words together (MLQA, Lewis et al. 2020).
    """
    told = normalised(said)
    return max(
        _overlap(told.split(), answer.split())
        if mostly_ascii(answer)
        else _overlap(characters_apart(told), characters_apart(answer))
        for answer in _golds(answers)
    )


def holds(text: str, answers: Sequence[str]) -> bool:
    """Whether a text holds one of these answers, both normalised as SQuAD does."""
    whole = f" {normalised(text)} "
    return any(f" {answer} " in whole for one in answers if (answer := normalised(one)))


def _golds(answers: Sequence[str]) -> list[str]:
    """Return the answers normalised; those of which nothing is left count only if all are such."""
    return [found for answer in answers if (found := normalised(answer))] or [""]


def _overlap(words: list[str], answer: list[str]) -> float:
    if not words or not answer:
        return float(words == answer)
    shared = (Counter(words) & Counter(answer)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(answer)
    return 2 * precision * recall / (precision + recall)
