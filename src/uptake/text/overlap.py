"""How much of a passage already stands in the evaluated document, and whether it must be withheld.

Words are lower-cased runs of letters, digits and underscores. Every comparison is made on sorted
64-bit hashes of word n-grams, the same in every process. Text written without spaces, such as
Chinese, has long "words"; near copies of it are seen, but more coarsely.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput
from uptake.text.types import Passage

Hashes = NDArray[np.uint64]

GRAM = 13  # words: the customary length at which shared text is a copy and not an idiom
SHINGLE = 5  # words: shorter, so that a copy with many small changes still shares most of them

OVERLAP_EDGES = (0.0, 0.1, 0.25, 0.5)
OVERLAP_BINS = ("0", "(0, 0.1]", "(0.1, 0.25]", "(0.25, 0.5]", "> 0.5")

_WORD = re.compile(r"\w+")
_SPACE = re.compile(r"\s")
_SLAB = 1 << 20  # characters hashed at a time, so that a huge document never becomes one huge list
_BASE = np.uint64(0x9E3779B97F4A7C15)


def overlap_bin(value: float) -> str:
    """Return the label, one of OVERLAP_BINS, of a containment; BadInput outside 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise BadInput(f"overlap {value}: a containment lies between 0 and 1")
    return OVERLAP_BINS[sum(value > edge for edge in OVERLAP_EDGES)]


class Shingles:
    """The word n-grams of one text, hashed when first needed."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._grams: dict[int, Hashes] = {}

    @cached_property
    def words(self) -> Hashes:
        """One hash a word, in order."""
        parts = [
            np.fromiter(map(word_hash, _WORD.findall(slab)), dtype=np.uint64) for slab in _slabs(self._text)
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.uint64)

    @cached_property
    def plain(self) -> str:
        """The text with every run of white space made one space."""
        slabs = (" ".join(slab.split()) for slab in _slabs(self._text))
        return " ".join(filter(None, slabs))

    def grams(self, length: int) -> Hashes:
        """Return the sorted unique hashes of all runs of `length` words; none where there are fewer."""
        if length not in self._grams:
            rolled = _rolled(self.words, length)
            # np.unique would put millions of hashes into a table first: 15 times slower than a sort.
            rolled.sort()
            first = np.ones(len(rolled), bool)
            first[1:] = rolled[1:] != rolled[:-1]
            self._grams[length] = rolled[first]
        return self._grams[length]


class Overlap:
    """One whole document, ready to be compared with many passages.

    A 50 MB document takes a few seconds at the first comparison and under a millisecond after it.
    """

    def __init__(self, document: str) -> None:
        self._document = Shingles(document)

    def containment(self, passage: str | Shingles) -> float:
        """Return the share, 0 to 1, of the passage's 13-grams that stand in the document.

        A passage of fewer words is one gram of its own length. A passage that stands in the
        document letter for letter, white space aside, has 1, even if it holds no word or begins
        within one; an empty passage has 0.
        """
        passage = _shingles(passage)
        length = min(GRAM, len(passage.words))
        grams = passage.grams(length) if length else passage.words
        found = _shared(grams, self._document.grams(length)) if length else 0
        # A passage cut from the document can miss no grams but those of its first and last word,
        # so the slower search for its letters is spared nearly always.
        if len(grams) - found <= 2 and passage.plain and passage.plain in self._document.plain:
            return 1.0
        return found / len(grams) if length else 0.0

    def coverage(self, passage: str | Shingles) -> float:
        """Return the share, 0 to 1, of the document's 13-grams that stand in the passage.

        It sees what containment misses: a short document inside a longer passage. Documents of
        fewer than 13 words have 0, for a phrase that short is no copy.
        """
        whole = self._document.grams(GRAM)
        return _shared(_shingles(passage).grams(GRAM), whole) / len(whole) if len(whole) else 0.0

    def jaccard(self, passage: str | Shingles) -> float:
        """Return the Jaccard index, 0 to 1, of passage and document as sets of 5-word shingles.

        A text of fewer words is one shingle of its own length; an empty one shares nothing.
        """
        one, other = (
            text.grams(min(SHINGLE, len(text.words))) if len(text.words) else text.words
            for text in (_shingles(passage), self._document)
        )
        shared = _shared(one, other)
        return shared / (len(one) + len(other) - shared) if shared else 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a passage leaks, by which rule, and its 13-gram containment in the document."""

    leaks: bool
    reason: str
    containment: float


@dataclass(frozen=True, slots=True)
class LeakFilter:
    """What must not be read while a document is evaluated.

    Withheld are passages of the same document or, where both name one, the same group; passages
    whose 13-gram containment in the whole document, or the document's in them, reaches
    `containment`; and those whose Jaccard index with it reaches `jaccard`. Raises BadInput for a
    threshold outside (0, 1].
    """

    containment: float = 0.5
    jaccard: float = 0.8
    same_document: bool = True
    same_group: bool = True
    enabled: bool = True

    def __post_init__(self) -> None:
        for name, value in (("containment", self.containment), ("jaccard", self.jaccard)):
            if not 0.0 < value <= 1.0:
                raise BadInput(f"leak filter: {name} {value}: use a number above 0 and at most 1")

    @classmethod
    def off(cls) -> "LeakFilter":
        """Return the filter that withholds nothing and still measures the overlap."""
        return cls(enabled=False)

    def judge(self, overlap: Overlap, document_id: str, group: str, passage: Passage) -> Verdict:
        """Judge one passage for the document `document_id` of `group` whose text `overlap` holds."""
        shingles = Shingles(passage.text)
        containment = overlap.containment(shingles)
        if not self.enabled:
            reason = ""
        elif self.same_document and passage.document == document_id:
            reason = "same document"
        elif self.same_group and group and passage.group == group:
            reason = "same group"
        elif containment >= self.containment:
            reason = "stands in the document"
        elif overlap.coverage(shingles) >= self.containment:
            reason = "holds the document"
        elif overlap.jaccard(shingles) >= self.jaccard:
            reason = "near copy"
        else:
            reason = ""
        return Verdict(bool(reason), reason, containment)


class Collection:
    """The words of many passages, compared with one document at once.

    `words` are those of every passage, one after another, as `Shingles.words` gives them, and
    `lengths` says how many each has.
    """

    def __init__(self, words: Hashes, lengths: NDArray[np.integer]) -> None:
        self._words = words
        self._lengths = np.asarray(lengths, np.int64)

    def suspects(self, document: Overlap, leak: LeakFilter) -> NDArray[np.bool_]:
        """Return which passages `leak` might withhold for what they share with the document.

        All that it would withhold are among them, and few besides: whoever needs to know judges those.
        """
        if not leak.enabled:
            return np.zeros(len(self._lengths), bool)
        # The rules for short texts and for pieces that stand in the document letter for letter are left
        # to the judge: every passage that either could concern is a suspect.
        found = _Counts(self._grams[GRAM], document._document.grams(GRAM), len(self._lengths))
        missed = found.own - found.shared
        suspects = (self._lengths < GRAM) | (missed <= 2) | (found.shared >= leak.containment * found.own)
        if found.whole:
            suspects |= found.shared >= leak.containment * found.whole
        near = _Counts(self._grams[SHINGLE], document._document.grams(SHINGLE), len(self._lengths))
        return suspects | (near.shared >= leak.jaccard * (near.own + near.whole - near.shared))

    @cached_property
    def _grams(self) -> dict[int, tuple[Hashes, NDArray[np.int64]]]:
        """The n-grams of each length, sorted, and whose each is; none twice for one passage."""
        owners = np.repeat(np.arange(len(self._lengths)), self._lengths)
        ends = np.repeat(np.cumsum(self._lengths), self._lengths)
        made = {}
        for length in (GRAM, SHINGLE):
            rolled = _rolled(self._words, length)
            within = np.arange(len(rolled)) + length <= ends[: len(rolled)]
            grams, whose = rolled[within], owners[: len(rolled)][within]
            order = np.lexsort((whose, grams))
            grams, whose = grams[order], whose[order]
            first = np.ones(len(grams), bool)
            first[1:] = (grams[1:] != grams[:-1]) | (whose[1:] != whose[:-1])
            made[length] = (grams[first], whose[first])
        return made


class _Counts:
    """How many n-grams each passage has (`own`), the document has (`whole`), and they share."""

    def __init__(self, grams: tuple[Hashes, NDArray[np.int64]], document: Hashes, passages: int) -> None:
        hashes, whose = grams
        first, last = (np.searchsorted(hashes, document, side) for side in ("left", "right"))
        matched = np.flatnonzero(_between(first, last, len(hashes)))
        self.shared = np.bincount(whose[matched], minlength=passages)
        self.own = np.bincount(whose, minlength=passages)
        self.whole = len(document)


def _between(first: NDArray[np.intp], last: NDArray[np.intp], count: int) -> NDArray[np.bool_]:
    """Mark the places from each `first` up to its `last`; the stretches do not overlap."""
    edges = np.zeros(count + 1, np.int64)
    np.add.at(edges, first, 1)
    np.add.at(edges, last, -1)
    return np.cumsum(edges[:-1]) > 0


@lru_cache(maxsize=1 << 18)
def word_hash(word: str) -> int:
    # Lowering word by word keeps the result free of context: "Σ" ends a word in another small letter.
    raw = word.lower().encode("utf8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def _rolled(words: Hashes, length: int) -> Hashes:
    """Return one hash for each run of `length` words, in order."""
    count = len(words) - length + 1
    rolled = words[: max(count, 0)].copy()
    for offset in range(1, length if count > 0 else 1):
        rolled *= _BASE
        rolled += words[offset : offset + count]
    return rolled


def _slabs(text: str) -> Iterator[str]:
    """Cut a text at white space, where neither a word nor a plain line can be harmed."""
    start = 0
    while start < len(text):
        cut = _SPACE.search(text, start + _SLAB)
        end = cut.end() if cut else len(text)
        yield text[start:end]
        start = end


def _shingles(text: str | Shingles) -> Shingles:
    return Shingles(text) if isinstance(text, str) else text


def _shared(one: Hashes, other: Hashes) -> int:
    """Count what two sorted sets of hashes have in common, in time ruled by the smaller."""
    small, large = sorted((one, other), key=len)
    if not len(small):
        return 0
    places = np.minimum(np.searchsorted(large, small), len(large) - 1)
    return int(np.count_nonzero(large[places] == small))
