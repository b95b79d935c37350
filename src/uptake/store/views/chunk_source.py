"""The chunks of one version of a store, found as its passages are: by words, by vectors, or by both."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput, Mismatch
from uptake.store.layout import Layout
from uptake.store.passages.table import Table
from uptake.store.views.chunks import CHUNKS, columns_of
from uptake.store.views.key_index import KeyIndex
from uptake.store.views.view_files import StoredView
from uptake.text.chunks.cutting import Ids, Mask
from uptake.text.chunks.finding import ByBoth, ByWords, Finder, stacked
from uptake.text.chunks.view import Chunked

Floats = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Floats | None]


class ByIndex:
    """Chunks by the squared distance of their vectors to the query's; equally near ones by their ids."""

    def __init__(self, index: KeyIndex, ids: Ids, embed: Embed) -> None:
        self._index, self._ids, self._embed = index, ids, embed

    def read(self, queries: Sequence[str]) -> Sequence[Floats]:
        vectors = self._embed(queries)
        return () if vectors is None else list(vectors)

    def near(self, queries: Sequence[Floats], k: int, allowed: Mask) -> Ids:
        if not queries:
            return stacked([], k)
        vectors = np.stack(queries)
        places = self._index.candidates(vectors, k, allowed, int(allowed.sum()))
        losses = self._index.distances(vectors, places)
        found = []
        for row, loss in zip(places, losses, strict=True):
            there = np.isfinite(loss)
            order = np.lexsort((self._ids[row[there]], loss[there]))[:k]
            found.append(row[there][order])
        return stacked(found, k)


def open_chunks(
    store: Path, table: Table, layout: Layout, embed: Embed, threads: int | None, fingerprint: str
) -> Chunked:
    """Return the chunks of this version as the tokenizer of this fingerprint cut them.

    Raises BadInput where there are none, or none of some documents yet, Damaged, and Mismatch for
    another tokenizer or encoder.
    """
    stored, command = StoredView.open(CHUNKS, store), f"`uptake index chunks {store} --model M`"
    if stored is None:
        raise BadInput(f"{store}: holds no chunks; cut them with {command}")
    metadata, view = stored.metadata, layout.views["passages"]
    if fingerprint != metadata.fingerprint:
        raise Mismatch(
            f"{store}: its chunks were cut by the tokenizer of {metadata.name or 'a model'} "
            f"({metadata.fingerprint}), not by this one ({fingerprint}); give that model, or "
            "`uptake index chunks --fresh` with this one"
        )
    if metadata.settings["encoder"] != view.encoder_fingerprint:
        raise Mismatch(
            f"{store}: its chunks were embedded by {metadata.settings['encoder']}, the store has "
            f"{view.encoder_fingerprint}; {CHUNKS.rebuild_hint(store)}"
        )
    live = stored.live(table)
    if left := len(stored.missing(live, table)):
        raise BadInput(f"{store}: {left} of its documents have no chunks yet; cut them with {command}")
    columns, passages = columns_of(stored), stored.passages
    whose = np.searchsorted(np.cumsum(passages["tokens"]), columns.tokens_at[:-1], side="right")
    alive = live[whose]
    named = [metadata.fingerprint, dict(metadata.settings), layout.retriever, table.contents]
    finders: list[Finder] = []
    if layout.retriever != "dense":
        finders.append(ByWords(columns, alive))
    if layout.retriever != "lexical":
        finders.append(
            ByIndex(KeyIndex(stored, layout.uid, layout.index, threads), columns.records["id"], embed)
        )
    return Chunked(
        columns,
        alive,
        finders[0] if len(finders) == 1 else ByBoth(finders[0], finders[1], columns),
        (passages["id"], passages["tokens"]),
        int(metadata.settings["length"]),
        hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16],
    )
