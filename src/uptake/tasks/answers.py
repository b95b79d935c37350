"""Marks for answers as SQuAD's own evaluation script gives them: exact match and F1.

Followed is the script of SQuAD 2.0 (Rajpurkar et al. 2018); that of 1.1 agrees wherever both
texts keep a word. A prefix of an answer is no exact match.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Return the text in small letters, without ASCII punctuation and articles, single spaces between."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(said: str, answers: Sequence[str]) -> float:
    """Return 1 if what was said is one of the answers, both normalised, else 0."""
    words = normalised(said)
    return float(any(words == answer for answer in _golds(answers)))


def f1(said: str, answers: Sequence[str]) -> float:
    """Return the best harmonic mean, over the answers, of precision and recall of normalised words."""
    words = normalised(said).split()
    return max(_overlap(words, answer.split()) for answer in _golds(answers))


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
