"""A text as its letters alone, and the runs of them by which edited copies are known in any script.

White space, punctuation and marks that may be left out do not count, nor do case and forms that Unicode
holds to be the same character. Where words are written together, or spaced otherwise in a copy, letters
are what is left to compare.

A run is as long as 36 letters of English are worth, or 18 for passages whose words are written together,
where nothing else tells a copy: bench/overlap.py calibrates both. What a character is worth was measured on
the Universal Declaration of Human Rights. English takes 8,733 letters for it; Russian, Hindi, Thai and Khmer
7,900 to 9,900, and Korean 8,270 once its syllables are taken apart; Chinese 2,590 characters and Yi 2,960,
which count three each; Amharic 4,320 and Japanese kana about as many, which count two.
"""

import unicodedata
from collections.abc import Iterator
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from uptake.text.hashes import BASE, Hashes, distinct
from uptake.text.slabs import slabs

RUN = 36  # English letters that a run is worth: 12 Chinese characters
SHORT_RUN = 18  # the same where words are written together: 6 Chinese characters
FEW = 256  # a text of fewer runs is compared by all of them, a longer one by one in SAMPLE of them
SAMPLE = 4

_Read = tuple[NDArray[np.uint32], NDArray[np.uint8]]  # the characters that count, and what each is worth

_PIECE = 1 << 17  # characters whose runs are hashed together
_MIX = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
_INVERSE = np.uint64(pow(int(BASE), -1, 1 << 64))
_BLOCK = 256  # characters whose worth is looked up together, when one of them is first met
_NOT_ASCII = bytes(code for code in range(128) if not chr(code).isalnum())
_DOUBLE = ("HIRAGANA", "KATAKANA", "ETHIOPIC", "CHEROKEE", "CANADIAN SYLLABICS", "VAI SYLLABLE")
_TOGETHER = (
    "CJK ", "HIRAGANA", "KATAKANA", "YI ", "TANGUT", "NUSHU", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TAI ",
    "NEW TAI ", "TIBETAN ", "JAVANESE ", "BALINESE ",
)  # fmt: skip
_TRIPLE = ("CJK ", "YI ", "TANGUT", "NUSHU", "KHITAN", "EGYPTIAN HIEROGLYPH", "CUNEIFORM")

_worth = np.zeros(0x110000, np.uint8)  # of each character; 0 for what is left out
_together = np.zeros(len(_worth), bool)  # whether its script writes words together
_known = np.zeros(len(_worth) // _BLOCK, bool)  # the blocks that were looked up


class Letters:
    """The letters of one text; its runs are hashed when first needed, the same in every process."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._runs: dict[int, Hashes] = {}
        self._samples: dict[int, Hashes] = {}

    @cached_property
    def worth(self) -> int:
        """How many letters of English the text is worth."""
        return sum(int(worth.sum(dtype=np.int64)) for _, worth in self._pieces())

    @cached_property
    def together(self) -> int:
        """How much of that is in scripts that write words together."""
        if self._text.isascii():
            return 0
        return sum(int(worth[_together[codes]].sum(dtype=np.int64)) for codes, worth in self._pieces())

    def runs(self, length: int = RUN) -> Hashes:
        """Return the sorted unique hashes of all runs worth `length` English letters."""
        if length not in self._runs:
            self._runs[length] = distinct(np.concatenate([np.empty(0, np.uint64), *self._hashed(length)]))
        return self._runs[length]

    def sample(self, length: int = RUN) -> Hashes:
        """Return one in four of the runs, whichever their hashes choose: the same of a run in every text."""
        if length not in self._samples:
            # Of a huge document the sample alone is ever held.
            found = [self._runs[length]] if length in self._runs else self._hashed(length)
            parts = [part[part % np.uint64(SAMPLE) == 0] for part in found]
            self._samples[length] = distinct(np.concatenate([np.empty(0, np.uint64), *parts]))
        return self._samples[length]

    def _hashed(self, length: int) -> Iterator[Hashes]:
        """Yield the hashes of the runs in order, some at a time."""
        codes, worth = np.empty(0, np.uint32), np.empty(0, np.uint8)
        for more in self._pieces():
            codes, worth = np.concatenate([codes, more[0]]), np.concatenate([worth, more[1]])
            found = _runs(codes, worth, length)
            yield found
            # The last few letters, which no run of these begins with, begin the next ones.
            codes, worth = codes[len(found) :], worth[len(found) :]

    def _pieces(self) -> Iterator[_Read]:
        if len(self._text) <= _PIECE:
            yield self._whole
            return
        for slab in slabs(self._text):
            codes, worth = _letters(slab)
            for start in range(0, len(codes), _PIECE):
                yield codes[start : start + _PIECE], worth[start : start + _PIECE]

    @cached_property
    def _whole(self) -> _Read:
        return _letters(self._text)


def _letters(text: str) -> _Read:
    """Return the characters that count, folded, and what each is worth."""
    if text.isascii():
        raw = text.encode("ascii").lower().translate(None, _NOT_ASCII)
        return np.frombuffer(raw, np.uint8).astype(np.uint32), np.ones(len(raw), np.uint8)
    # Unicode's caseless match (section 3.13): small letters of decomposed text, decomposed again.
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    blocks = codes // _BLOCK
    if not _known[blocks].all():
        for block in np.unique(blocks[~_known[blocks]]).tolist():
            span = range(block * _BLOCK, (block + 1) * _BLOCK)
            _worth[span.start : span.stop] = [_worth_of(chr(code)) for code in span]
            names = (unicodedata.name(chr(code), "") for code in span)
            _together[span.start : span.stop] = [name.startswith(_TOGETHER) for name in names]
            _known[block] = True
    worth = _worth[codes]
    return codes[worth > 0], worth[worth > 0]


def _worth_of(character: str) -> int:
    """Return what a character is worth, 0 for one that is left out."""
    code, kind = ord(character), unicodedata.category(character)
    if kind == "So":  # pictures count as words do; of other symbols, such as lines of boxes, most are layout
        return 3 if code >= 0x1F000 else 0
    if kind[0] == "M":
        # Marks of a combining class, such as accents and the vowel points of Arabic, are often left out;
        # the others are vowels, as in Hindi and Thai, but for those that choose a glyph.
        chooses = code == 0x34F or 0xFE00 <= code <= 0xFE0F or code >= 0xE0000
        return int(not unicodedata.combining(character) and not chooses)
    if kind[0] not in "LN" and kind not in ("Co", "Cn"):
        return 0
    name = unicodedata.name(character, "")
    return 3 if name.startswith(_TRIPLE) else 2 if name.startswith(_DOUBLE) else 1


def _runs(codes: NDArray[np.uint32], worth: NDArray[np.uint8], length: int) -> Hashes:
    """Return one hash for each run, from every letter after which enough follow."""
    count = len(codes)
    if not count:
        return np.empty(0, np.uint64)
    if worth.min() == worth.max():
        ends = np.arange(-(-length // int(worth[0])), count + 1)
    else:
        sums = np.concatenate([[0], np.cumsum(worth, dtype=np.int64)])
        ends = np.searchsorted(sums, sums[:-1] + length)
        ends = ends[: np.searchsorted(ends, count, "right")]
    # With the sums of each letter's hash times BASE^-place known up to every place, the polynomial hash of a
    # run is a difference of two of them: the time does not grow with the run.
    hashes = _mixed(codes.astype(np.uint64))
    powers, inverses = _powers(1 << (count - 1).bit_length())
    sums = np.zeros(count + 1, np.uint64)
    np.cumsum(hashes * inverses[:count], out=sums[1:])
    return _mixed((sums[ends] - sums[: len(ends)]) * powers[: len(ends)])


def _mixed(numbers: Hashes) -> Hashes:
    numbers = numbers * _MIX
    numbers ^= numbers >> _HALF
    numbers *= _MIX
    numbers ^= numbers >> _HALF
    return numbers


@lru_cache(maxsize=20)
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """Return BASE^0, BASE^1, ... and the same of its inverse."""
    found = []
    for base in (BASE, _INVERSE):
        powers = np.full(count, base)
        powers[0] = 1
        found.append(np.cumprod(powers, dtype=np.uint64))
    return found[0], found[1]
