"""Documents cut into chunks of so many tokens, side by side in plain arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput
from uptake.text.overlap import Hashes
from uptake.text.terms import hashes
from uptake.text.types import Encodes, stable_hash

LENGTH = 64  # tokens of a chunk: the paper's

# One chunk: its id, its document and group (0 for none) as stable hashes, the character of its document
# it begins at, how many tokens, words and bytes of text it has, and whether its document begins with it.
RECORD = np.dtype(
    [
        ("id", "<i8"), ("document", "<i8"), ("group", "<i8"), ("start", "<i8"), ("tokens", "<i4"),
        ("words", "<i4"), ("bytes", "<i4"), ("first", "<i4"),
    ]
)  # fmt: skip

Ids = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Columns:
    """Chunks side by side, those of a document in order; tokens, texts and words one after another."""

    records: NDArray[np.void]  # [chunks] of RECORD
    values: NDArray[np.int32]  # tokens
    texts: NDArray[np.uint8]  # UTF-8
    words: Hashes = field(repr=False)

    @cached_property
    def tokens_at(self) -> Ids:
        """Where each chunk's tokens begin, and where the last's end: [chunks + 1]."""
        return edges_of(self.records["tokens"])

    @cached_property
    def bytes_at(self) -> Ids:
        return edges_of(self.records["bytes"])

    @cached_property
    def continued(self) -> Mask:
        """Which chunks the next one continues."""
        return np.append(self.records["first"][1:] == 0, np.zeros(len(self.records[:1]), bool))

    def text(self, place: int) -> str:
        """Return the text of one chunk; the texts of a document's chunks join to its own."""
        return bytes(self.texts[self.bytes_at[place] : self.bytes_at[place + 1]]).decode(
            "utf8", "surrogatepass"
        )


def cut(
    encode: Encodes, document: str, group: str, pieces: Sequence[tuple[int, str]], length: int
) -> tuple[Columns, Ids]:
    """Cut one document into chunks; also return the character of the whole that each token begins in.

    `pieces` are (character of the document, text), in order; the whole is their texts, joined. Every
    token is in one chunk, and all chunks but the last are full. A chunk's text begins with the
    character that its first token begins in and ends where the next one's begins.
    """
    values: list[int] = []
    at: list[int] = []
    bases = edges_of(np.array([len(text) for _, text in pieces], np.int64))
    for base, (_, text) in zip(bases.tolist(), pieces, strict=False):
        ids, spans = encode.encode(text)
        values += ids
        at += [base + start for start, _ in spans]
    begins = np.arange(0, len(values), length)
    starts = np.maximum.accumulate(np.array(at, np.int64))
    edges = np.append(starts[begins], bases[-1])
    edges[: len(begins[:1])] = 0
    whole = "".join(text for _, text in pieces)
    texts = [whole[start:end] for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
    raw = [text.encode("utf8", "surrogatepass") for text in texts]
    words = [hashes(text) for text in texts]
    records = np.zeros(len(texts), RECORD)
    piece = np.searchsorted(bases, edges[:-1], side="right") - 1
    records["start"] = np.array([start for start, _ in pieces], np.int64)[piece] + edges[:-1] - bases[piece]
    records["id"] = [
        stable_hash("chunk", encode.fingerprint, str(length), document, str(number), text)
        for number, text in enumerate(texts)
    ]
    records["document"] = stable_hash(document)
    records["group"] = stable_hash(group) if group else 0
    records["tokens"] = np.minimum(length, len(values) - begins)
    records["words"] = [len(each) for each in words]
    records["bytes"] = [len(each) for each in raw]
    records["first"][:1] = 1
    columns = Columns(
        records,
        np.array(values, np.int32),
        np.frombuffer(b"".join(raw), np.uint8),
        np.concatenate([np.empty(0, np.uint64), *words]),
    )
    return columns, starts


def joined(parts: Sequence[Columns]) -> Columns:
    """Return the chunks of several documents, one after another."""
    kinds: dict[str, Any] = {
        "records": RECORD,
        "values": np.int32,
        "texts": np.uint8,
        "words": np.uint64,
    }
    return Columns(
        *(
            np.concatenate([np.empty(0, kind), *(getattr(p, name) for p in parts)])
            for name, kind in kinds.items()
        )
    )


def check_length(length: int) -> None:
    """Raise BadInput for a number of tokens that no chunk can have."""
    if not 2 <= length <= 4096:
        raise BadInput(f"chunk length {length}: use 2 to 4096 tokens, such as {LENGTH}")


def edges_of(sizes: NDArray[np.generic]) -> Ids:
    """Return where each of these stretches begins, one after another, and where the last ends."""
    return np.append(0, np.cumsum(sizes, dtype=np.int64))
