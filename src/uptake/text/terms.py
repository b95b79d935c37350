"""Cuts text into what a search by words finds it by, in any script: the one place that does.

Where a script sets words apart, a term is a word. Where it does not (Chinese, Japanese, Thai, Lao, Khmer,
Burmese), or glues endings to words (Korean), the terms are each character and each pair of neighbouring
characters, so that whatever stands in a text is found there, whoever would cut it into which words. This
is the customary way without a dictionary (Lucene's CJK analyzer). A character is what a reader takes for
one: a Thai letter with its marks. Each emoji is a term, without its skin tone. Latin words that touch such
a script are words as well. Knows nothing of indexes and scores.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from uptake.text.overlap import Hashes, Shingles, word_hash

_WORD = re.compile(r"\w+")
QUERY_WORDS = 64  # the cost of a query grows with its words; more than these hardly change the order
QUERY_PAIRS = 256  # pairs are commoner than words: more of them decide

# What has no spaces between words, or words with endings glued to them, and how to name it to people.
_SCRIPTS = {
    "Chinese characters": r"\p{Script=Han}〆",
    "Japanese kana": r"\p{Script=Hiragana}\p{Script=Katakana}ーｰﾞﾟ",
    "Korean": r"\p{Script=Hangul}",
    "Thai": r"\p{Script=Thai}",
    "Lao": r"\p{Script=Lao}",
    "Khmer": r"\p{Script=Khmer}",
    "Burmese": r"\p{Script=Myanmar}",
    "text without spaces": r"\p{Line_Break=SA}\p{Script=Bopomofo}\p{Script=Yi}",
}
_DENSE = rf"[{''.join(_SCRIPTS.values())}]&&[\p{{L}}\p{{N}}\p{{M}}]"
_UNSPACED = rf"[[{_DENSE}]--\p{{Script=Hangul}}]\p{{M}}*+"
# Extended_Pictographic also holds signs such as the copyright sign, which nobody calls an emoji.
_PICTURE = r"[\p{Extended_Pictographic}&&[\u2600-\U0010FFFF]]\p{Emoji_Presentation}"
_EMOJI = rf"\p{{RI}}\p{{RI}}|[{_PICTURE}--\p{{RI}}--\p{{EMod}}]"


class _Patterns(NamedTuple):
    """Compiled when first needed: the module that knows of scripts takes a while to load."""

    word: Any  # a run of letters, digits, underscores and the marks on them
    any: Any  # what no run of words between spaces can be found by
    part: Any  # a stretch of one kind within a text
    character: Any  # as a reader takes it
    unspaced: Any  # a character of a script without spaces, and its marks
    apart: Any  # a stretch of such characters, or of others
    mark: Any
    hiragana: Any
    names: dict[str, Any]


@cache
def _patterns() -> _Patterns:
    import regex

    def compiled(pattern: str) -> Any:
        return regex.compile(pattern, regex.VERSION1)

    return _Patterns(
        compiled(r"[\p{L}\p{N}_][\p{L}\p{N}_\p{M}]*+"),
        compiled(rf"[{_DENSE}]|{_EMOJI}"),
        compiled(
            rf"(?P<dense>(?:[{_DENSE}]\p{{M}}*+)++)|(?P<emoji>{_EMOJI})"
            rf"|(?P<word>[[\p{{L}}\p{{N}}]--[{_DENSE}]][[\p{{L}}\p{{N}}\p{{M}}]--[{_DENSE}]]*+)"
        ),
        compiled(r"\X"),
        compiled(_UNSPACED),
        compiled(rf"(?:{_UNSPACED})++|(?:(?!{_UNSPACED}).)++"),
        compiled(r"\p{M}"),
        compiled(r"\p{Script=Hiragana}"),
        {name: compiled(f"[{some}]") for name, some in _SCRIPTS.items()} | {"emoji": compiled(_EMOJI)},
    )


def words(text: str) -> list[str]:
    """Return the runs of letters, digits, underscores and the marks on them, in order, as they stand."""
    return list(_patterns().word.findall(text))


def has_pieces(text: str) -> bool:
    """Return whether some of a text can be found by its pieces alone, and by no words between spaces."""
    return not text.isascii() and _patterns().any.search(text) is not None


def pieces(text: str) -> list[str]:
    """Return the characters, pairs, emoji and words touching them that a text is found by, in order.

    They hold no white space and are in lower case; a text in a script that sets words apart has none.
    """
    found = []
    for kind, part in _parts(text):
        found += _characters(part) if kind == "dense" else [part]
        found += _pairs(part) if kind == "dense" else []
    return found


def query_pieces(text: str) -> list[str]:
    """Return the pieces to search for: as `pieces`, but a character by itself only where it stands alone."""
    found: list[str] = []
    for kind, part in _parts(text):
        found += (_pairs(part) or _characters(part)) if kind == "dense" else [part]
    return found


def mostly_ascii(text: str) -> bool:
    """Return whether at least half of a text's letters are ASCII: then it is read as English is."""
    letters = [character for character in text if character.isalpha()]
    return text.isascii() or 2 * sum(map(str.isascii, letters)) >= len(letters)


def spans(text: str) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield each term of a text in lower case, and where it stands.

    Terms are the words and, in stretches without spaces, each pair of neighbouring characters, or a character
    that stands alone; emoji are none. What a text in English quotes of another script is words to it.
    """
    if mostly_ascii(text):
        yield from ((match[0].lower(), match.span()) for match in _WORD.finditer(text))
        return
    patterns = _patterns()
    for match in patterns.word.finditer(text):
        if not has_pieces(match[0]):
            yield match[0].lower(), match.span()
            continue
        for part in patterns.part.finditer(text, *match.span()):
            if part.lastgroup == "word":
                yield part[0].lower(), part.span()
            elif part.lastgroup == "dense":
                found = [each.span() for each in patterns.character.finditer(text, *part.span())]
                pairs = [(one, other) for (one, _), (_, other) in itertools.pairwise(found)] or found
                yield from ((text[start:end].lower(), (start, end)) for start, end in pairs)


def characters_apart(text: str) -> list[str]:
    """Return what stands between spaces, but characters of scripts that have none each by itself.

    Korean has spaces.
    """
    if not has_pieces(text):
        return text.split()
    patterns, found = _patterns(), list[str]()
    for word in text.split():
        for part in patterns.apart.findall(word):
            found += _characters(part) if patterns.unspaced.match(part) else [part]
    return found


class Searched(NamedTuple):
    """What to search for, no term twice: `words` as they stand, `pieces` as `query_pieces` gives them."""

    words: list[str]
    pieces: list[str]


def searched(text: str, with_pieces: bool) -> Searched:
    """Return the terms of a query, of a long one those that decide.

    These are the 64 longest words, for long words are rare, and the 256 pieces with least hiragana, in which
    Japanese writes endings. Without pieces every run between spaces is a word, whatever its script.
    """
    runs = dict.fromkeys(words(text))
    if _patterns().mark.search(text):  # a mark after its letter and a letter with its mark are one word
        runs |= dict.fromkeys(words(unicodedata.normalize("NFC", text)))
    few = list(dict.fromkeys(query_pieces(text))) if with_pieces else []
    if few:
        runs = {run: None for run in runs if not has_pieces(run)}
    endings = _patterns().hiragana
    return Searched(
        _first(runs, sorted(runs, key=len, reverse=True)[:QUERY_WORDS]),
        _first(few, sorted(few, key=lambda piece: len(endings.findall(piece)))[:QUERY_PAIRS]),
    )


def hashes(text: str) -> Hashes:
    """Return one hash for each term of a text, words and pieces, each as often as it stands there."""
    return _hashes(text, pieces)


def query_hashes(text: str) -> Hashes:
    """Return one hash for each term to search for, as `query_pieces` says."""
    return _hashes(text, query_pieces)


def unsearchable(text: str) -> list[str]:
    """Name the scripts of a text that a search by words between spaces cannot find, the commonest first."""
    if not has_pieces(text):
        return []
    left, counts = text, {}
    for name, pattern in _patterns().names.items():
        left, counts[name] = pattern.subn(" ", left)
    return sorted((name for name, count in counts.items() if count), key=lambda name: -counts[name])


def _hashes(text: str, cut: Any) -> Hashes:
    if text.isascii() or not (_patterns().any.search(text) or _patterns().mark.search(text)):
        return Shingles(text).words
    text = unicodedata.normalize("NFC", text)
    found = [word for word in words(text) if not has_pieces(word)] + cut(text)
    return np.fromiter(map(word_hash, found), dtype=np.uint64, count=len(found))


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, part) for each dense stretch, each emoji, and each word that touches a dense stretch."""
    if not has_pieces(text):
        return
    text = unicodedata.normalize("NFKC", text).lower()
    end, before, waiting = -1, "", ""  # of the part before: its end, its kind, and the word that it is
    for match in itertools.chain(_patterns().part.finditer(text), [None]):
        touches = match is not None and match.start() == end
        kind = match.lastgroup if match is not None else ""
        if before == "word" and waiting and touches and kind == "dense":
            yield "word", waiting
        if match is None:
            return
        waiting = ""
        if kind == "word":
            if touches and before == "dense":
                yield "word", match[0]
            else:
                waiting = match[0]
        else:
            yield kind, match[0]
        end, before = match.end(), kind


def _characters(part: str) -> list[str]:
    return list(_patterns().character.findall(part)) if _patterns().mark.search(part) else list(part)


def _pairs(part: str) -> list[str]:
    return [one + other for one, other in itertools.pairwise(_characters(part))]


def _first(every: Iterable[str], chosen: Iterable[str]) -> list[str]:
    """Return those of `every` that are chosen, in their own order."""
    kept = set(chosen)
    return [each for each in every if each in kept]
