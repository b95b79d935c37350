"""How much of a passage already stands in the evaluated document, and whether it must be withheld.

It is measured twice. By words, lower-cased runs of letters, digits and underscores with the marks on
them: shared 13-grams are a copy in whatever is written with spaces. And by letters alone (see letters.py):
that sees copies where words are written together, as in Chinese and Thai, and such as were spaced otherwise
or edited every few words. Every comparison is made on sorted 64-bit hashes, the same in every process.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from uptake.errors import BadInput
from uptake.text.hashes import Hashes as Hashes
from uptake.text.hashes import distinct, rolled, shared
from uptake.text.letters import FEW, RUN, SHORT_RUN, Letters
from uptake.text.slabs import slabs
from uptake.text.types import Passage

GRAM = 13  # words: the customary length at which shared text is a copy and not an idiom
SHINGLE = 5  # words: shorter, so that a copy with many small changes still shares most of them
UNSPACED = 12  # letters of English a word is worth on average, above which words are written together

NEAR_TWIN = 0.5  # of its runs of letters: a passage that shares so many with a document is of a near twin

OVERLAP_EDGES = (0.0, 0.1, 0.25, 0.5)
OVERLAP_BINS = ("0", "(0, 0.1]", "(0.1, 0.25]", "(0.25, 0.5]", "> 0.5")

_WORD = re.compile(r"\w+")
_JOINERS = "\u200c\u200d"  # stand within words of Persian and of India


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
            np.fromiter(map(word_hash, _word_in(slab).findall(slab)), dtype=np.uint64)
            for slab in slabs(self._text)
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.uint64)

    @cached_property
    def plain(self) -> str:
        """The text with every run of white space made one space."""
        parts = (" ".join(slab.split()) for slab in slabs(self._text))
        return " ".join(filter(None, parts))

    @cached_property
    def letters(self) -> Letters:
        """The text as its letters alone."""
        return Letters(self._text)

    @cached_property
    def unspaced(self) -> bool:
        """Whether a third of it is in scripts that write words together, or its words are very long."""
        worth = max(self.letters.worth, 1)
        return 3 * self.letters.together >= worth or self.letters.worth >= max(UNSPACED * len(self.words), 1)

    @property
    def run(self) -> int:
        """How long the runs of letters are by which this text is compared with a document."""
        return SHORT_RUN if self.unspaced else RUN

    @cached_property
    def sampled(self) -> bool:
        """Whether the text has so many runs that a sample of them is compared."""
        return len(self.letters.runs(self.run)) >= FEW

    @property
    def runs(self) -> Hashes:
        """The runs of letters by which this text is compared with a document."""
        return self.letters.sample(self.run) if self.sampled else self.letters.runs(self.run)

    def grams(self, length: int) -> Hashes:
        """Return the sorted unique hashes of all runs of `length` words; none where there are fewer."""
        if length not in self._grams:
            self._grams[length] = distinct(rolled(self.words, length))
        return self._grams[length]


class Overlap:
    """One whole document, ready to be compared with many passages.

    A 50 MB document takes a few seconds at the first comparison and under a millisecond after it. A passage
    given as `Shingles` is hashed once for all comparisons.
    """

    def __init__(self, document: str) -> None:
        self.shingles = Shingles(document)

    def containment(self, passage: str | Shingles) -> float:
        """Return the share, 0 to 1, of the passage's 13-grams that stand in the document.

        A passage of fewer words is one gram of its own length. A passage that stands in the
        document letter for letter, white space aside, has 1, even if it holds no word or begins
        within one; an empty passage has 0.
        """
        passage = _shingles(passage)
        length = min(GRAM, len(passage.words))
        grams = passage.grams(length) if length else passage.words
        found = shared(grams, self.shingles.grams(length)) if length else 0
        # A passage cut from the document can miss no grams but those of its first and last word,
        # so the slower search for its letters is spared nearly always.
        if len(grams) - found <= 2 and passage.plain and passage.plain in self.shingles.plain:
            return 1.0
        return found / len(grams) if length else 0.0

    def coverage(self, passage: str | Shingles) -> float:
        """Return the share, 0 to 1, of the document's 13-grams that stand in the passage.

        It sees what containment misses: a short document inside a longer passage. Documents of
        fewer than 13 words have 0, for a phrase that short is no copy.
        """
        whole = self.shingles.grams(GRAM)
        return shared(_shingles(passage).grams(GRAM), whole) / len(whole) if len(whole) else 0.0

    def jaccard(self, passage: str | Shingles) -> float:
        """Return the Jaccard index, 0 to 1, of passage and document as sets of 5-word shingles.

        A text of fewer words is one shingle of its own length; an empty one shares nothing.
        """
        one, other = (
            text.grams(min(SHINGLE, len(text.words))) if len(text.words) else text.words
            for text in (_shingles(passage), self.shingles)
        )
        both = shared(one, other)
        return both / (len(one) + len(other) - both) if both else 0.0

    def letters(self, passage: str | Shingles) -> float:
        """Return the share, 0 to 1, of the passage's runs of letters that stand in the document.

        They are worth 36 letters, or 18 where words are written together (see letters.py). White space,
        punctuation, case and Unicode's forms change nothing of them. A passage too short for a run has 0.
        """
        passage = _shingles(passage)
        return shared(passage.runs, self._comparable(passage)) / max(len(passage.runs), 1)

    def letters_coverage(self, passage: str | Shingles) -> float:
        """Return the share, 0 to 1, of the document's runs of letters that stand in the passage.

        A document of fewer than two runs' letters has 0, for a phrase that short is no copy.
        """
        passage = _shingles(passage)
        whole = self._comparable(passage)
        return shared(passage.runs, whole) / len(whole) if self.shingles.letters.worth >= 2 * RUN else 0.0

    def share(self, passage: str | Shingles) -> float:
        """Return how much of the passage stands in the document, 0 to 1, as reports bin it.

        Its containment by words or, where those are written together, that by runs worth 36 letters if it is
        more: in length those are nearest to 13 words.
        """
        passage = _shingles(passage)
        words = self.containment(passage)
        if not passage.unspaced:
            return words
        runs = passage.letters.runs()
        return max(words, shared(runs, self.shingles.letters.runs()) / max(len(runs), 1))

    def _comparable(self, passage: Shingles) -> Hashes:
        """Return those of the document's runs that a passage's may be found among."""
        letters = self.shingles.letters
        return letters.sample(passage.run) if passage.sampled else letters.runs(passage.run)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a passage leaks, by which rule, and the share of it that stands in the document.

    `letters` is the share of its runs of letters that do, 0 for a passage that leaks, for nobody reads it.
    """

    leaks: bool
    reason: str
    share: float
    letters: float = 0.0


@dataclass(frozen=True, slots=True)
class LeakFilter:
    """What must not be read while a document is evaluated.

    Withheld are passages of the same document or, where both name one, the same group; passages
    whose 13-gram containment in the whole document, or the document's in them, reaches
    `containment`; those whose Jaccard index with it reaches `jaccard`; and those of whose runs of letters so
    great a share stands in the document, or of the document's in them: `letters` where words are written
    together, `spaced_letters` elsewhere. Raises BadInput for a threshold outside (0, 1].

    `spaced_letters` is high because words do the same work there and recorded figures rest on them: it finds
    copies that were spaced or written otherwise. At 0.5 it finds those with one word in twelve replaced, too.
    """

    containment: float = 0.5
    jaccard: float = 0.8
    letters: float = 0.5
    spaced_letters: float = 0.8
    same_document: bool = True
    same_group: bool = True
    enabled: bool = True

    def __post_init__(self) -> None:
        for name in ("containment", "jaccard", "letters", "spaced_letters"):
            value = getattr(self, name)
            if not 0.0 < value <= 1.0:
                raise BadInput(f"leak filter: {name} {value}: use a number above 0 and at most 1")

    @classmethod
    def off(cls) -> "LeakFilter":
        """Return the filter that withholds nothing and still measures the overlap."""
        return cls(enabled=False)

    def of_letters(self, unspaced: bool) -> float:
        """Return the threshold of runs of letters for passages that are written so."""
        return self.letters if unspaced else self.spaced_letters

    def judge(self, overlap: Overlap, document_id: str, group: str, passage: Passage) -> Verdict:
        """Judge one passage for the document `document_id` of `group` whose text `overlap` holds."""
        shingles = Shingles(passage.text)
        share, letters = overlap.share(shingles), None
        if not self.enabled:
            reason = ""
        elif self.same_document and passage.document == document_id:
            reason = "same document"
        elif self.same_group and group and passage.group == group:
            reason = "same group"
        elif overlap.containment(shingles) >= self.containment:
            reason = "stands in the document"
        elif overlap.coverage(shingles) >= self.containment:
            reason = "holds the document"
        elif overlap.jaccard(shingles) >= self.jaccard:
            reason = "near copy"
        elif (letters := overlap.letters(shingles)) >= self.of_letters(shingles.unspaced):
            reason = "edited copy"
        elif overlap.letters_coverage(shingles) >= self.of_letters(shingles.unspaced):
            reason = "holds an edited copy"
        else:
            reason = ""
        if reason:
            return Verdict(True, reason, share)
        return Verdict(False, "", share, overlap.letters(shingles) if letters is None else letters)


def _word_in(text: str) -> re.Pattern[str]:
    return _WORD if text.isascii() else _word_with_marks()


@lru_cache(maxsize=1)
def _word_with_marks() -> re.Pattern[str]:
    """Return the pattern of a word with the marks on it: without them Hindi falls apart into consonants."""
    # Beyond these are pictures, ideographs and nothing, and then selectors of glyphs.
    places = (*range(0x300, 0x1F000), *range(0xE0100, 0xE01F0))
    marks = "".join(chr(code) for code in places if unicodedata.category(chr(code))[0] == "M")
    return re.compile(rf"\w[\w{marks}{_JOINERS}]*")


@lru_cache(maxsize=1 << 18)
def word_hash(word: str) -> int:
    # Lowering word by word keeps the result free of context: "Σ" ends a word in another small letter.
    raw = word.lower().encode("utf8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def _shingles(text: str | Shingles) -> Shingles:
    return Shingles(text) if isinstance(text, str) else text
