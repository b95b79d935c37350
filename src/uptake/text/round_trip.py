"""What of a text its tokens give back: the rest is not scored, for a model is never asked for it.

A tokenizer may lower-case, strip accents, compose characters, drop white space, or answer "unknown". Its
tokens then stand for many texts, and what a model says of them is no price of this one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from uptake.errors import BadInput
from uptake.text.tokenizer import Spans, Tokenizer

MOST_LOST = 0.1  # share of the bytes of all texts beyond which what is left says too little of them
_BEFORE = 8  # tokens that stand before what is decoded, so that it comes with the space it begins with


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """How a text comes back from its tokens: `lost` are the numbers of tokens that are not scored.

    A token is lost, with all characters it covers, where these do not come back; characters that no token
    covers and none gives back are lost too. `bytes` and `bytes_lost`, in UTF-8, make up the text.
    """

    lost: tuple[int, ...]
    bytes: int
    bytes_lost: int


def round_trip(tokenizer: Tokenizer, text: str, ids: Sequence[int], spans: Spans) -> RoundTrip:
    """Return what of `text` is given back by `ids`, which cover its characters at `spans`.

    A space that decoding puts before a token, as it does before a text or a word, takes nothing away.
    """
    size = len(text.encode("utf8"))
    if tokenizer.decode([*ids]) == text:
        return RoundTrip((), size, 0)
    lost, gone, end = list[int](), 0, 0
    starts: list[int] = []
    for first, last, start, stop in _groups(spans):
        gap, own = text[end:start], text[start:stop]
        # What stands before begins with a whole character, or its bytes would be read with others.
        begin = next((at for at in reversed(starts) if first - at >= _BEFORE), 0)
        back = _given_back(tokenizer, ids[begin:first], ids[first:last])
        starts.append(first)
        end = max(end, stop)
        if any(each == gap + own for each in back):
            continue
        kept = any(own and each.endswith(own) and not each.removesuffix(own).strip() for each in back)
        gone += len((gap if kept else gap + own).encode("utf8"))
        lost += [] if kept else range(first, last)
    gone += len(text[end:].encode("utf8"))
    return RoundTrip(tuple(lost), size - gone, gone)


@dataclass
class Losses:
    """Counts what a tokenizer loses of many texts, in bytes, and of which it loses most."""

    tokenizer: Tokenizer
    bytes: int = 0  # of all texts
    lost: int = 0
    _most: tuple[int, str] = (0, "")

    def add(self, name: str, text: str) -> None:
        found = round_trip(self.tokenizer, text, *self.tokenizer.encode(text))
        self.bytes += found.bytes + found.bytes_lost
        self.lost += found.bytes_lost
        self._most = max(self._most, (found.bytes_lost, name), key=lambda pair: pair[0])

    def check(self) -> None:
        """Raise BadInput where more than MOST_LOST of all bytes is lost."""
        if self.lost > MOST_LOST * self.bytes:
            raise BadInput(
                f"the tokenizer does not give back {self.lost:,} of {self.bytes:,} bytes, most of "
                f"{self._most[1]!r}: more than {100 * MOST_LOST:g} % cannot be left out of a score; use a "
                "model whose tokenizer is lossless, such as one over bytes"
            )


def _groups(spans: Spans) -> Iterator[tuple[int, int, int, int]]:
    """Yield runs of tokens that share characters: first token, last token + 1, first character, last + 1."""
    first, start, end = 0, 0, 0
    for place, (begin, stop) in enumerate(spans):
        # A token of no character belongs to those that follow it.
        if place > first and begin >= end and end > start:
            yield first, place, start, end
            first, start, end = place, begin, stop
        else:
            start, end = (begin, stop) if place == first else (min(start, begin), max(end, stop))
    if spans:
        yield first, len(spans), start, end


def _given_back(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> list[str]:
    """Return what tokens add to those before them; at the beginning of a text, also what they are alone."""
    context = [*(before or tokenizer.anchor)]
    known, whole = tokenizer.decode(context), tokenizer.decode([*context, *ids])
    alone = [] if before else [tokenizer.decode([*ids])]
    return alone + ([whole[len(known) :]] if whole.startswith(known) else [])
