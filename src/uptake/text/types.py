"""What text is here: documents, the passages cut from them, and who finds or embeds them.

This file knows nothing of files, models or stores: readers.py makes documents, store/ keeps
passages, and anything that searches or embeds meets the two protocols below.
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput
from uptake.text.breaks import unspaced_break
from uptake.text.near import Near

if TYPE_CHECKING:
    from torch import Tensor

    from uptake.text.activations import Activations


@dataclass(frozen=True, slots=True)
class Document:
    """One text as it was read: `id` names it, `group` names a family that leaks into itself.

    `places` say where in its source the text stands: from which character on it is "page 2" or "row 17".
    """

    id: str
    text: str
    group: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)
    places: tuple[tuple[int, str], ...] = field(default=(), compare=False)

    def place(self, start: int, stop: int) -> str:
        """Return where the characters from `start` up to `stop` stand: "page 2" or "page 2 to page 3"."""
        first = bisect_right(self.places, start, key=_character) - 1
        last = bisect_left(self.places, stop, key=_character) - 1
        names = [self.places[at][1] for at in (first, last) if at >= 0]
        return " to ".join(dict.fromkeys(names))

    def meta_at(self, start: int, stop: int) -> Mapping[str, str]:
        """Return `meta`, and the place of these characters as `place` unless it holds another."""
        place = self.place(start, stop)
        return {"place": place, **self.meta} if place else self.meta


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, the unit that is stored, found and read.

    `id` is derived from document, place and text, so the same passage has the same id in every
    store. `prompt` is read by a model but not learnt from. `start` counts characters into the
    document.
    """

    id: int
    text: str
    prompt: str = ""
    document: str = ""
    group: str = ""
    start: int = 0
    meta: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def whole(cls, document: Document) -> "Passage":
        """Return a document as one passage."""
        key = passage_id(document.id, 0, document.text)
        meta = document.meta_at(0, len(document.text))
        return cls(key, document.text, "", document.id, document.group, 0, meta)


@dataclass(frozen=True, slots=True)
class Chunking:
    """How documents become passages: at most `characters` each, cut at a line or a space if one is near.

    Where none is, they are cut after a sentence or a clause, and never within a character and its marks.
    """

    characters: int = 1024

    def __post_init__(self) -> None:
        if not 16 <= self.characters <= 1_000_000:
            raise BadInput(f"chunk size {self.characters} characters: use 16 to 1000000")

    def split(self, text: str) -> Iterator[tuple[int, str]]:
        """Yield (start, piece); the pieces join to `text`, but those of white space alone are left out."""
        start = 0
        while start < len(text):
            end = min(start + self.characters, len(text))
            if end < len(text):
                # Breaking late keeps passages full; a break in the first half would make slivers.
                floor = start + self.characters // 2
                at = next((at for mark in "\n " if (at := text.rfind(mark, floor, end)) > 0), -1)
                end = at + 1 if at > 0 else unspaced_break(text, floor, end)
            piece = text[start:end]
            if piece.strip():
                yield start, piece
            start = end

    def passages(self, document: Document) -> Iterator[Passage]:
        """Cut one document into its passages."""
        for start, piece in self.split(document.text):
            key = passage_id(document.id, start, piece)
            meta = document.meta_at(start, start + len(piece))
            yield Passage(key, piece, "", document.id, document.group, start, meta)


def _character(place: tuple[int, str]) -> int:
    return place[0]


def stable_hash(*parts: str) -> int:
    """Return a 63-bit hash of strings, the same on every machine and in every process."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        raw = part.encode("utf8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    # 63 bits, because FAISS ids are signed.
    return int.from_bytes(digest.digest(), "little") >> 1


def passage_id(document: str, start: int, text: str) -> int:
    """Return the id of the passage `text` that begins at character `start` of `document`."""
    return stable_hash(document, str(start), text)


class Embedder(Protocol):
    """Turns texts into vectors; `fingerprint` changes whenever the vectors would."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row of `dimensions` float32 a text."""
        ...


class QueryEncoder(Protocol):
    """Turns queries into vectors for passages that another encoder has embedded, which stay as they are.

    It belongs to the encoder whose fingerprint is `encoder`; its own `fingerprint` changes whenever its
    vectors would.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def encoder(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    def embed(self, texts: Sequence[str], encoder: Embedder) -> NDArray[np.float32]:
        """Return one row of `dimensions` float32 a query; `encoder` is the passages'."""
        ...


@dataclass(frozen=True, slots=True)
class Keyed:
    """A text as a language model reads it: its tokens, and for each the key of the place before it.

    `starts[i]` is the character at which token i begins; `keys` is [tokens, width].
    """

    values: NDArray[np.int32]
    starts: NDArray[np.int64]
    keys: NDArray[np.float16]


class Keyer(Protocol):
    """Turns texts into tokens with keys; `fingerprint` changes whenever either would."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def dimensions(self) -> int: ...

    def read(self, texts: Sequence[str]) -> list[Keyed]:
        """Return each text's tokens and their keys."""
        ...


class Tokens(Protocol):
    """Tokens that one query may read, each found by the key of the place before it."""

    def search(self, keys: NDArray[np.floating], k: int) -> Near:
        """Return for each row of `keys` its k nearest tokens."""
        ...

    def search_each(self, keys: NDArray[np.floating], k: int) -> Near:
        """As `search` of each key by itself, bit for bit, in one call."""
        ...

    @property
    def reads(self) -> Hashable:
        """Names what may be read: what bears one name may be searched together."""
        ...

    def measure(self, keys: NDArray[np.floating], places: NDArray[np.int64]) -> Near:
        """Return for each key the tokens at its row of `places`, nearest first; -1 stands for none."""
        ...

    def after(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the place that follows each in its own text, -1 where none does or it may not be read."""
        ...

    def sample(self, k: int, generator: np.random.Generator) -> "Tokens":
        """Return k of these tokens, drawn uniformly, as all there are."""
        ...

    def without(self, passages: Sequence[int]) -> "Tokens":
        """Return these tokens but for those of the passages with these ids."""
        ...


class Encodes(Protocol):
    """Cuts texts into tokens; `fingerprint` changes whenever the tokens of some text might."""

    @property
    def fingerprint(self) -> str: ...

    def encode(self, text: str) -> tuple[list[int], tuple[tuple[int, int], ...]]:
        """Return the tokens of `text`, and for each the characters it covers."""
        ...


class Chunks(Protocol):
    """Chunks of `length` tokens that one query may read, each with the chunk that continues it.

    A chunk's id is derived from its document, place, text and tokenizer: it stays the same while other
    documents come and go. Where one is not here, or may not be read, or is -1, it is masked.
    """

    @property
    def length(self) -> int:
        """How many tokens a chunk has; the last of a document may have fewer."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names the corpus at this version, the tokenizer, the length and what finds chunks."""
        ...

    def search(self, queries: Sequence[str], k: int) -> "Tensor":
        """Return for each query the ids of its k nearest chunks, nearest first: int64 [queries, k].

        -1 stands where there are fewer.
        """
        ...

    def sample(self, rows: int, k: int, generator: np.random.Generator) -> "Tensor":
        """Return ids of chunks drawn uniformly, none twice in a row: int64 [rows, k], padded with -1."""
        ...

    def tokens(self, ids: "Tensor") -> "tuple[Tensor, Tensor]":
        """Return for each id, of any shape [..], the chunk's tokens and then its continuation's.

        Both int64 [.., 2 * length] and a mask, which is False beyond the end of the document and all
        along the row of an id that is -1, unknown, or that the query may not read.
        """
        ...

    def without(self, passages: Sequence[int]) -> "Chunks":
        """Return these chunks but for those that hold, or lead into, text of the passages with these ids."""
        ...


class Source(Protocol):
    """Where a query's passages come from: one view, one version, this query's leak filter."""

    def search(self, k: int) -> "Found":
        """Return at most k passages, best first, none of which leaks."""
        ...

    def sample(self, k: int, generator: np.random.Generator) -> "Found":
        """Return at most k passages drawn uniformly, none twice, from the whole store; none leaks."""
        ...

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return one row a passage id."""
        ...

    def query_vector(self) -> NDArray[np.float32]:
        """Return the query's own vector, of the passages' encoder. Raises BadInput where there is none."""
        ...

    def query_text(self) -> str:
        """Return the text that searches."""
        ...

    def again(self, text: str) -> "Source":
        """Return the source of another text, under the same leak filter."""
        ...

    def tokens(self, fingerprint: str) -> Tokens:
        """Return the store's tokens as the `Keyer` of this fingerprint read them.

        Raises BadInput where the store holds none or not all of them, Mismatch for another keyer's.
        """
        ...

    def chunks(self, fingerprint: str) -> Chunks:
        """Return the store's chunks as the tokenizer of this fingerprint cut them.

        Raises BadInput where the store holds none or not all of them, Mismatch for another tokenizer's.
        """
        ...

    def activations(self, fingerprint: str) -> "Activations":
        """Return what enters the blocks that this fingerprint names, of the passages that were read for it.

        Raises BadInput where the store holds nothing, Mismatch where it enters others.
        """
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """Passages best first, with their scores (higher is nearer) and overlap with the query's document.

    `overlaps` are shares of a passage by words, `letters` by its runs of letters (see text/overlap.py).

    What was found for several methods that each choose for themselves has a part for each; its own passages
    are all of theirs, none twice.
    """

    passages: tuple[Passage, ...] = ()
    scores: tuple[float, ...] = ()
    overlaps: tuple[float, ...] = ()
    letters: tuple[float, ...] = ()
    withheld: int = 0  # how many nearer ones the leak filter withheld
    coverage: float = 1.0  # share of the store that was searched: less where a shard of a cluster was missing
    parts: tuple["Found", ...] = ()

    @classmethod
    def of_each(cls, parts: Sequence["Found"]) -> "Found":
        """Return what was found for several methods, one part each."""
        rows = {
            row[0].id: row
            for part in parts
            for row in zip(part.passages, part.scores, part.overlaps, part.letters, strict=True)
        }
        passages, scores, overlaps, letters = zip(*rows.values(), strict=True) if rows else ((), (), (), ())
        withheld = max((part.withheld for part in parts), default=0)
        coverage = min((part.coverage for part in parts), default=1.0)
        return cls(passages, scores, overlaps, letters, withheld, coverage, tuple(parts))

    def of(self, place: int) -> "Found":
        """Return what the method at this place of several reads: its part, or the whole where all do."""
        return self.parts[place] if self.parts else self

    def part(self, start: int, stop: int) -> "Found":
        """Return the passages from place `start` up to place `stop`."""
        if self.parts:
            return self.of_each([part.part(start, stop) for part in self.parts])
        return self.at(range(len(self.passages))[start:stop])

    def at(self, places: Sequence[int]) -> "Found":
        """Return the passages at these places, in this order."""
        return replace(
            self,
            passages=tuple(self.passages[place] for place in places),
            scores=tuple(self.scores[place] for place in places),
            overlaps=tuple(self.overlaps[place] for place in places if self.overlaps),
            letters=tuple(self.letters[place] for place in places if self.letters),
        )

    def behind(self, passages: Sequence[Passage]) -> "Found":
        """Return the same after passages that nobody had to search for; their scores are 0."""
        if self.parts:
            return self.of_each([part.behind(passages) for part in self.parts])
        zeros = (0.0,) * len(passages)
        return replace(
            self,
            passages=(*passages, *self.passages),
            scores=zeros + self.scores,
            overlaps=zeros + self.overlaps,
            letters=zeros + self.letters,
        )
