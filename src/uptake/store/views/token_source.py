"""The tokens of one version of a store as one query may read them: leaks and what is gone are masked."""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput
from uptake.preparation import preparing
from uptake.store.passages.columns import Ids
from uptake.store.passages.table import Table
from uptake.store.views.key_index import KeyIndex
from uptake.store.views.tokens import StoredTokens
from uptake.text.near import Near
from uptake.text.overlap import LeakFilter, Overlap
from uptake.text.types import Tokens, stable_hash

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
# FAISS looks for each of a few keys by itself. For 20 and more it multiplies matrices, whose last bits, and
# so the order of tokens that are equally near, depend on how many keys there are.
APART = 16


class TokenView:
    """The tokens of one version of a store. Raises BadInput where documents of it are not read yet."""

    def __init__(self, stored: StoredTokens, table: Table, index: KeyIndex) -> None:
        self.stored, self.table, self.index = stored, table, index
        self.live = stored.live(table)
        if left := len(stored.missing(self.live, table)):
            store = table.path.parent
            raise BadInput(
                f"{store}: {left} of its documents have no tokens yet; read them with "
                f"`uptake index tokens {store} --model {stored.metadata.name or 'M'}`"
            )

    @cached_property
    def ends(self) -> Mask:
        """Which tokens are the last of their run of text: no pointer leads beyond them."""
        with preparing():
            tokens = self.stored.passages["tokens"]
            starts = (np.cumsum(tokens) - tokens)[self.stored.passages["run"] == 1]
            ends = np.zeros(len(self.stored.values), bool)
            ends[starts[starts > 0] - 1] = True
            ends[-1:] = True
        return ends

    def bound(self, document_id: str, group: str, overlap: Overlap, leak: LeakFilter) -> "BoundTokens":
        """Return the tokens that a query from this document may read."""
        return BoundTokens(self, self._allowed(document_id, group, overlap, leak))

    def _allowed(self, document_id: str, group: str, overlap: Overlap, leak: LeakFilter) -> Mask:
        """Return which passages may be read: live ones that the filter, asked for each, lets through."""
        records, allowed = self.stored.passages, self.live.copy()
        if not leak.enabled:
            return allowed
        if leak.same_document:
            allowed &= records["document"] != stable_hash(document_id)
        if leak.same_group and group:
            allowed &= records["group"] != stable_hash(group)
        suspects = np.flatnonzero(allowed & self.stored.collection.suspects(overlap, leak))
        passages = self.table.rows(records["id"][suspects])
        verdicts = [leak.judge(overlap, document_id, group, passage).leaks for passage in passages]
        allowed[suspects[np.array(verdicts, bool)]] = False
        return allowed


@dataclass(frozen=True)
class BoundTokens:
    """A `Tokens` (see uptake.text.types): those of the passages in `passages`, or of them only `places`."""

    view: TokenView
    passages: Mask
    places: Ids | None = None

    @cached_property
    def allowed(self) -> Mask:
        """Which tokens may be read."""
        allowed = np.repeat(self.passages, self.view.stored.passages["tokens"])
        if self.places is None:
            return allowed
        chosen = np.zeros_like(allowed)
        chosen[self.places] = True
        return chosen & allowed

    @cached_property
    def count(self) -> int:
        return int(self.allowed.sum())

    def search(self, keys: NDArray[np.floating], k: int) -> Near:
        self._check(keys)
        wide = np.ascontiguousarray(keys, np.float32)
        return self._ranked(wide, self.view.index.candidates(wide, k, self.allowed, self.count), k)

    def search_each(self, keys: NDArray[np.floating], k: int) -> Near:
        some = [self.search(keys[start : start + APART], k) for start in range(0, len(keys), APART)]
        return some[0] if len(some) == 1 else Near.joined(some)

    @cached_property
    def reads(self) -> Hashable:
        places = None if self.places is None else _digest(self.places)
        return id(self.view), _digest(self.passages), places

    def measure(self, keys: NDArray[np.floating], places: Ids) -> Near:
        self._check(keys)
        return self._ranked(np.asarray(keys, np.float32), self._readable(places), places.shape[1])

    def after(self, places: Ids) -> Ids:
        known = (places >= 0) & (places < len(self.allowed))
        here = np.where(known, places, 0)
        follows = known if not len(self.allowed) else known & ~self.view.ends[here]
        return self._readable(np.where(follows, here + 1, -1))

    def sample(self, k: int, generator: np.random.Generator) -> Tokens:
        every = np.flatnonzero(self.allowed)
        chosen = generator.choice(every, min(k, len(every)), replace=False) if len(every) else every
        return BoundTokens(self.view, self.passages, np.sort(chosen))

    def without(self, passages: Sequence[int]) -> Tokens:
        left = self.passages & ~np.isin(self.view.stored.passages["id"], np.asarray(passages, np.int64))
        return BoundTokens(self.view, left, self.places)

    def _ranked(self, keys: Floats, places: Ids, k: int) -> Near:
        """Return the k nearest of each key's row of `places`, none of which leaks."""
        import torch

        every = torch.from_numpy(self.view.index.distances(keys, places))
        losses, order = every.topk(min(k, places.shape[1]), largest=False)
        distances = losses.numpy()
        places = np.take_along_axis(places, order.numpy(), 1)
        places = np.where(np.isfinite(distances), places, -1)
        values = np.where(places >= 0, self._values(places), 0)
        return Near(places, distances, values.astype(np.int64))

    def _readable(self, places: Ids) -> Ids:
        """Return the places with -1 for those that are none or may not be read."""
        if not len(self.allowed):
            return np.full_like(places, -1)
        known = (places >= 0) & (places < len(self.allowed))
        return np.where(known & self.allowed[np.where(known, places, 0)], places, -1)

    def _values(self, places: Ids) -> NDArray[np.int32]:
        values = self.view.stored.values
        return values[np.maximum(places, 0)] if len(values) else np.zeros(places.shape, np.int32)

    def _check(self, keys: NDArray[np.floating]) -> None:
        width = self.view.stored.metadata.dimensions
        if keys.ndim != 2 or keys.shape[1] != width:
            raise BadInput(f"keys of shape {keys.shape}: the store's tokens have keys of {width} numbers")


def _digest(array: NDArray[np.generic]) -> bytes:
    return hashlib.sha256(array.tobytes()).digest()
