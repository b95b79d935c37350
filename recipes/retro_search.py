"""Neighbours of every chunk of a stream of tokens at once: BM25 over token ids by products of matrices.

What a search engine does with postings, a GPU does for half a million chunks in seconds without them.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pretraining import Stream
from torch import Tensor

SATURATION = 0.9  # BM25's k1; all chunks are as long, so that b plays no part
GRAM = 13  # tokens
BLOCK = 1 << 28  # scores held at once


@dataclass(frozen=True)
class Chunks:
    """Chunks of `size` tokens of every document, each with the chunk that continues it.

    `tokens` is [chunks, 2 * size], -1 beyond a document's end; `owner` is each chunk's document.
    """

    tokens: NDArray[np.int32]
    owner: NDArray[np.int32]
    size: int

    @classmethod
    def of(cls, text: Stream, size: int) -> "Chunks":
        first = np.flatnonzero(np.diff(text.owner, prepend=-1))
        ends = np.append(first[1:], len(text.owner))
        starts = np.concatenate([np.arange(a, b, size) for a, b in zip(first, ends, strict=True)])
        owner = text.owner[starts]
        places = starts[:, None] + np.arange(2 * size)
        inside = places < ends[owner][:, None]
        tokens = np.where(inside, text.tokens[np.minimum(places, len(text.tokens) - 1)], -1)
        return cls(tokens, owner, size)


class Search:
    """BM25 over chunks' own tokens, without those that continue them."""

    def __init__(self, chunks: Chunks, vocabulary: int, device: str) -> None:
        self.chunks, self.vocabulary, self.device = chunks, vocabulary, device
        # Whole numbers up to 2,048 are exact in float16, and order needs no more than three digits.
        self.dtype = torch.float16 if device.startswith("cuda") else torch.float32
        self.weights = self._counts(chunks.tokens[:, : chunks.size])
        # Some rows at a time: the whole is most of what the search needs.
        parts = self.weights.split(max(1, (BLOCK >> 2) // vocabulary))
        held = torch.zeros(vocabulary, dtype=torch.float64, device=device)
        for part in parts:
            held += (part > 0).sum(0)
        rarity = torch.log1p((len(self.weights) - held + 0.5) / (held + 0.5)).to(self.dtype)
        for part in parts:
            part.copy_(part * (1 + SATURATION) / (part + SATURATION) * rarity)
        self.owner = torch.tensor(chunks.owner, device=device)

    def _counts(self, tokens: NDArray[np.int32]) -> Tensor:
        """Return how often each token stands in each row, [rows, vocabulary]."""
        ids = torch.tensor(tokens, device=self.device, dtype=torch.int64)
        made = torch.zeros(len(ids), self.vocabulary, dtype=self.dtype, device=self.device)
        return made.scatter_add_(1, ids.clamp(min=0), (ids >= 0).to(self.dtype))

    def nearest(
        self, queries: NDArray[np.int32], k: int, barred: NDArray[np.int32] | None = None
    ) -> NDArray[np.int64]:
        """Return the k best chunks for each row of tokens, [rows, k], -1 where fewer share a token with it.

        `barred`, [rows, 2], are the first and last document in which row i may find nothing.
        """
        size, found = max(1, BLOCK // len(self.weights)), []
        k = min(k, len(self.weights))
        for at in range(0, len(queries), size):
            asked = self._counts(queries[at : at + size]).clamp_(max=1)
            scores = asked @ self.weights.T
            if barred is not None:
                low, high = torch.tensor(barred[at : at + size], device=self.device).T[:, :, None]
                scores.masked_fill_((self.owner >= low) & (self.owner <= high), 0)
            best = scores.topk(k)
            found.append(best.indices.masked_fill(best.values <= 0, -1).cpu())
        return torch.cat(found).numpy()


def grams(tokens: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Return a number for each run of 13 tokens of each row, [rows, length - 12]; 0 where one is -1."""
    powers = np.array([pow(1_000_003, place, 1 << 64) for place in range(GRAM)], np.uint64)
    runs = np.lib.stride_tricks.sliding_window_view(tokens, GRAM, axis=-1)
    numbers = ((runs.astype(np.uint64) + 1) * powers).sum(-1, dtype=np.uint64) | np.uint64(1)
    return np.where((runs >= 0).all(-1), numbers, np.uint64(0))


def shared(text: Stream, found: NDArray[np.int32], barred: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return what part of each candidate's runs stands in the documents its query is of, [rows, k].

    `found`, [rows, k, tokens], are the candidates, `barred`, [rows, 2], those documents of `text`.
    """
    whole = grams(text.tokens[None])[0]
    inside = text.owner[: len(whole)] == text.owner[GRAM - 1 :]
    salt = np.uint64(0x9E3779B97F4A7C15)
    known = np.unique((whole ^ (text.owner[: len(whole)].astype(np.uint64) * salt))[inside])
    own = grams(found)
    there = np.zeros(own.shape, bool)
    for step in range(int((barred[:, 1] - barred[:, 0]).max(initial=0)) + 1):
        document = np.minimum(barred[:, 0] + step, barred[:, 1]).astype(np.uint64)
        there |= np.isin(own ^ (document * salt)[:, None, None], known)
    valid = own != 0
    return (there & valid).sum(-1) / np.maximum(valid.sum(-1), 1)


def longest(coming: NDArray[np.int32], found: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the longest run of each row of `coming`, [rows, m], that is in one of `found`, [rows, k, r]."""
    runs = np.zeros(found.shape, np.int64)
    best = np.zeros(len(found), np.int64)
    for place in range(coming.shape[1]):
        before = np.zeros_like(runs)
        before[..., 1:] = runs[..., :-1]
        runs = np.where(found == coming[:, None, None, place], before + 1, 0)
        best = np.maximum(best, runs.max((1, 2), initial=0))
    return best
