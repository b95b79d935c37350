"""Writes a store's passages, with the vectors of another encoder, to a new store: no document is read again.

The new store is there whole or not at all, and the old one stays as it is for whoever reads it.
"""

from collections.abc import Callable
from pathlib import Path

from uptake.errors import BadInput
from uptake.store.datastore import FRAGMENTS, LOCK, Datastore
from uptake.store.layout import View
from uptake.store.making import make_store
from uptake.store.passages.encoding import Encoding
from uptake.store.passages.table import Table
from uptake.store.passages.writing import BATCH, embedded
from uptake.store.remote.objects import locate
from uptake.store.unfinished import said
from uptake.text.types import Embedder


def encode_anew(
    store: Datastore,
    path: str | Path,
    encoder: Embedder | str,
    *,
    device: str = "cpu",
    dtype: str = "bfloat16",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Datastore:
    """Write all passages of a store to a new one at `path`, a folder, embedded by `encoder`; return it.

    All else is as in the old store: ids, words, chunks' length, metric, precision. Views (tokens, chunks,
    activations) are not taken along. `encoder`, `device` and `dtype` are as for `Datastore.create`. An
    interrupted call leaves nothing at `path`. Raises BadInput, also for a store without vectors or one that
    is unfinished, Missing where the encoder cannot be loaded.
    """
    place, old = locate(path), store.layout
    if not isinstance(place, Path):
        raise BadInput(f"{path}: encode to a folder; objects cannot be moved into place whole")
    if not store.view.dimensions:
        raise BadInput(f"{store.path}: a lexical store has no vectors to make anew")
    if begun := store.unfinished:
        raise BadInput(f"{store.path} is {said(begun)}, before it is encoded anew")
    ids = store.ids

    def filled(table: Table, view: View, given: Embedder | None) -> Table:
        encoding = Encoding(place, view, given, device)
        # In batches as `add` makes them: the vectors are, bit for bit, those of a store built anew.
        for start in range(0, len(ids), BATCH):
            passages = store.passages(ids[start : start + BATCH])
            vectors = embedded(
                [passage.text for passage in passages],
                encoding.embed,
                lambda done, start=start: progress(start + done, len(ids)),  # type: ignore[misc]
            )
            table = table.append(passages, vectors)
        return table.compact() if table.fragments > FRAGMENTS else table

    _, made = make_store(
        place,
        LOCK,
        old.retriever,
        old.words or None,
        encoder,
        store.view.chunking,
        store.view.metric,
        old.index,
        (device, dtype),
        str(store.info()["vectors"]),
        filled,
    )
    return Datastore.open(place, encoder=made, device=device)
