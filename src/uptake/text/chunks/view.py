"""The chunks of one corpus as one query may read them: what leaks and what is gone is masked."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from uptake.errors import BadInput
from uptake.preparation import preparing
from uptake.text.chunks.cutting import LENGTH, Columns, Ids, Mask, check_length, cut, edges_of, joined
from uptake.text.chunks.finding import ByVectors, ByWords, Finder
from uptake.text.overlap import LeakFilter, Overlap
from uptake.text.types import Document, Embedder, Encodes, Passage, passage_id, stable_hash

if TYPE_CHECKING:
    from torch import Tensor


class Chunked:
    """All chunks of one corpus. `passages` are the ids of its passages and how many tokens each has."""

    def __init__(
        self,
        columns: Columns,
        live: Mask,
        finder: Finder,
        passages: tuple[Ids, Ids],
        length: int,
        fingerprint: str,
    ) -> None:
        self.columns, self.live, self.finder, self.passages = columns, live, finder, passages
        self.length, self.fingerprint = length, fingerprint

    def bound(self, document_id: str, group: str, overlap: Overlap, leak: LeakFilter) -> "BoundChunks":
        """Return the chunks that a query from this document may read."""
        free = self.live.copy()
        if leak.enabled and leak.same_document:
            free &= self.columns.records["document"] != stable_hash(document_id)
        if leak.enabled and leak.same_group and group:
            free &= self.columns.records["group"] != stable_hash(group)
        # By whose they are is decided here; what is left to judge is the text of those that are found.
        return BoundChunks(
            self, free, overlap, dataclasses.replace(leak, same_document=False, same_group=False)
        )

    def places(self, ids: Ids) -> Ids:
        """Return where each id stands, -1 for one that is not here or not live."""
        known = self._sorted[0]
        if not len(known):
            return np.full(ids.shape, -1, np.int64)
        at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.where(known[at] == ids, self._sorted[1][at], -1)

    @cached_property
    def _sorted(self) -> tuple[Ids, Ids]:
        with preparing():
            places = np.flatnonzero(self.live)
            ids = self.columns.records["id"][places]
            order = np.argsort(ids, kind="stable")
        return ids[order], places[order]

    def holding(self, passages: Sequence[int]) -> Mask:
        """Return which chunks hold a token of these passages."""
        ids, sizes = self.passages
        whose = np.repeat(np.isin(ids, np.asarray(passages, np.int64)), sizes)
        at = edges_of(whose)[self.columns.tokens_at]
        return at[1:] > at[:-1]


class BoundChunks:
    """A `Chunks` of text/types.py. A chunk is withheld where it, or the one that continues it, leaks."""

    def __init__(self, view: Chunked, free: Mask, overlap: Overlap, leak: LeakFilter) -> None:
        self._view, self._free, self._overlap, self._leak = view, free, overlap, leak
        follows = np.append(free[1:], True)[: len(free)] | ~view.columns.continued
        self._allowed = free & follows  # of those judged, only what does not leak
        self._judged = np.zeros(len(free), bool)
        self._leaks: dict[int, bool] = {}

    @property
    def length(self) -> int:
        return self._view.length

    @property
    def fingerprint(self) -> str:
        return self._view.fingerprint

    def search(self, queries: Sequence[str], k: int) -> "Tensor":
        _check(k)
        found = np.full((len(queries), k), -1, np.int64)
        rows = np.arange(len(queries))
        read = self._view.finder.read(queries)
        while k and len(rows):
            found[rows] = self._view.finder.near([read[row] for row in rows.tolist()], k, self._allowed)
            # What leaks is masked and its queries are searched again, until nothing that was found leaks.
            self._judge(found[rows])
            rows = rows[(~self._readable(found[rows])).any(1)]
        return self._tensor(found)

    def sample(self, rows: int, k: int, generator: np.random.Generator) -> "Tensor":
        _check(k)
        found = np.full((rows, k), -1, np.int64)
        for row in found:
            while True:
                free = np.flatnonzero(self._allowed)
                some = generator.choice(free, min(k, len(free)), replace=False) if len(free) else free
                self._judge(some)
                if self._allowed[some].all():
                    row[: len(some)] = some
                    break
        return self._tensor(found)

    def tokens(self, ids: "Tensor") -> "tuple[Tensor, Tensor]":
        import torch

        columns, length = self._view.columns, self.length
        places = self._view.places(ids.cpu().numpy())
        self._judge(places)
        here = (places >= 0) & self._readable(places)
        place = np.where(here, places, 0)
        found = np.zeros((*place.shape, 2 * length), np.int64)
        mask = np.zeros(found.shape, bool)
        if len(columns.records):
            parts = (
                (place, here),
                (np.minimum(place + 1, len(self._free) - 1), here & columns.continued[place]),
            )
            for half, (part, there) in enumerate(parts):
                own = there[..., None] & (np.arange(length) < columns.records["tokens"][part][..., None])
                at = np.where(own, columns.tokens_at[part][..., None] + np.arange(length), 0)
                cut = slice(half * length, (half + 1) * length)
                found[..., cut], mask[..., cut] = np.where(own, columns.values[at], 0), own
        return torch.from_numpy(found).to(ids.device), torch.from_numpy(mask).to(ids.device)

    def without(self, passages: Sequence[int]) -> "BoundChunks":
        free = self._free & ~self._view.holding(passages)
        return BoundChunks(self._view, free, self._overlap, self._leak)

    def _readable(self, places: Ids) -> Mask:
        """Return which places, judged before, may be read; -1 is nobody's and harms nobody."""
        if not len(self._allowed):
            return np.ones(places.shape, bool)
        return (places < 0) | self._allowed[places]

    def _judge(self, places: Ids) -> None:
        """Mask those of these places that leak."""
        if not self._leak.enabled or not len(self._judged):
            return
        places = np.unique(places[places >= 0])
        for place in places[self._allowed[places] & ~self._judged[places]].tolist():
            self._judged[place] = True
            parts = [place, place + 1] if self._view.columns.continued[place] else [place]
            self._allowed[place] = not any(map(self._leaks_itself, parts))

    def _leaks_itself(self, place: int) -> bool:
        if place not in self._leaks:
            passage = Passage(place, self._view.columns.text(place))
            self._leaks[place] = self._leak.judge(self._overlap, "", "", passage).leaks
        return self._leaks[place]

    def _tensor(self, places: Ids) -> "Tensor":
        import torch

        ids = self._view.columns.records["id"]
        known = ids[np.maximum(places, 0)] if len(ids) else places
        return torch.from_numpy(np.where(places >= 0, known, -1))


def listed(
    documents: Sequence[Document], encode: Encodes, length: int = LENGTH, embedder: Embedder | None = None
) -> Chunked:
    """Return the chunks of these documents, in memory: found by words, or by vectors of `embedder`.

    Each document is one passage, of id `passage_id(document.id, 0, document.text)`.
    """
    check_length(length)
    each = [cut(encode, d.id, d.group, [(0, d.text)], length)[0] for d in documents]
    columns = joined(each)
    ids = np.array([passage_id(d.id, 0, d.text) for d in documents], np.int64)
    sizes = np.array([len(part.values) for part in each], np.int64)
    live = np.ones(len(columns.records), bool)
    finder = ByVectors(columns, embedder) if embedder else ByWords(columns, live)
    described = [encode.fingerprint, length, embedder.fingerprint if embedder else "words", ids.tolist()]
    fingerprint = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    return Chunked(columns, live, finder, (ids, sizes), length, fingerprint)


def _check(k: int) -> None:
    if k < 0:
        raise BadInput(f"k = {k}: use 0 or more chunks")
