"""The format of what a searching process and the shards exchange: plain bytes, which Ray sends unchanged.

Arrays would be pickled and, when large, put into Ray's object store, from which each actor fetches
them: several milliseconds where a call takes one. Bytes in pieces of at most 100 KiB go along with
the call. Numbers are little-endian.
"""

import struct
from typing import NamedTuple

import numpy as np

from uptake.store.passages.columns import Ids
from uptake.store.passages.index_cache import Floats

PIECE = 98_304  # bytes: Ray sends up to 100 KiB of each argument with the call

_HEAD = struct.Struct("<qqqd")  # rows, queries, results a query, seconds


class Answer(NamedTuple):
    """What one shard found: ids and scores are [queries, at most k]; `rows` is how many it searched.

    `seconds` is how long the search took.
    """

    rows: int
    ids: Ids
    scores: Floats
    seconds: float


def to_pieces(queries: Floats) -> list[bytes]:
    """Return the rows as bytes, in pieces that are sent with a call."""
    whole = np.ascontiguousarray(queries, "<f4").reshape(-1).view(np.uint8)
    return [whole[start : start + PIECE].tobytes() for start in range(0, len(whole), PIECE)]


def from_pieces(pieces: tuple[bytes, ...], dimensions: int) -> Floats:
    """Return the rows again, as an array of one's own."""
    return np.frombuffer(bytearray().join(pieces), "<f4").reshape(-1, dimensions)


def to_bytes(answer: Answer) -> bytes:
    """Return an answer as it is sent: what it counts, ids, scores."""
    head = _HEAD.pack(answer.rows, *answer.ids.shape, answer.seconds)
    return b"".join((head, answer.ids.astype("<i8").tobytes(), answer.scores.astype("<f4").tobytes()))


def from_bytes(sent: bytes) -> Answer:
    """Return the answer again; its arrays are views of what was sent."""
    rows, queries, results, seconds = _HEAD.unpack_from(sent)
    ids = np.frombuffer(sent, "<i8", queries * results, _HEAD.size)
    scores = np.frombuffer(sent, "<f4", queries * results, _HEAD.size + ids.nbytes)
    return Answer(rows, ids.reshape(queries, results), scores.reshape(queries, results), seconds)
