"""A model reads the passages of a store one by one, and what enters its upper blocks is kept."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uptake.errors import Mismatch
from uptake.store.passages.columns import Ids
from uptake.store.passages.table import Table
from uptake.store.views.activations import ACTIVATIONS, PIECE, check_fingerprint
from uptake.store.views.view_files import PASSAGE, ViewMetadata
from uptake.store.views.view_writer import ReadTokens, ViewFull, ViewWriter, delete_view, extend_view
from uptake.text.activations import Activation, ActivationReads
from uptake.text.types import Passage, stable_hash


def read_activations(
    store: Path,
    table: Table,
    reader: ActivationReads,
    progress: Callable[[int, int], None],
    passages: Sequence[int] | None = None,
    most_bytes: int | None = None,
    fresh: bool = False,
) -> ReadTokens:
    """Read every passage of the table that was not read yet, or those of these ids; with the store's lease.

    Ends before the files would have more than `most_bytes`. `progress(done, all)` counts passages. Raises
    Mismatch where another reader made the activations there are, unless `fresh` says to begin anew, and
    Damaged.
    """
    if fresh:
        delete_view(ACTIVATIONS, store)
    settings = dict(reader.settings)
    metadata = ViewMetadata.read(ACTIVATIONS, store)
    if metadata is not None:
        check_fingerprint(store, metadata, reader.fingerprint)
        if metadata.settings != settings:
            raise Mismatch(
                f"{store}: its activations are kept as {metadata.settings['dtype']}, asked for is "
                f"{settings['dtype']}; ask for the same, or give --fresh to make them anew"
            )
    empty = ViewMetadata("", reader.name, reader.fingerprint, reader.dimensions, settings, kind=ACTIVATIONS)
    wanted: Ids | None = None if passages is None else np.array(passages, np.int64)

    def append(writer: ViewWriter, batch: list[list[Passage]]) -> None:
        for (passage,) in batch:
            read = reader.read(passage)
            rows = _rows(passage, read, writer.metadata.dimensions)
            size = writer.bytes + sum(each.nbytes for each in rows.values())
            if most_bytes is not None and size > most_bytes:
                raise ViewFull
            writer.append(rows)

    return extend_view(store, table, empty, append, progress, wanted)


def _rows(passage: Passage, read: Sequence[Activation], width: int) -> dict[str, NDArray[Any]]:
    record = np.zeros(1, PASSAGE)
    record["id"], record["document"] = passage.id, stable_hash(passage.document)
    record["group"] = stable_hash(passage.group) if passage.group else 0
    record["tokens"] = sum(len(piece.targets) for piece in read)
    record["run"] = record["first"] = 1
    pieces = np.array([(piece.first, len(piece.targets)) for piece in read], PIECE)
    return {
        "hidden": np.concatenate([np.empty((0, width), np.uint16), *(piece.hidden for piece in read)]),
        "values": np.concatenate([np.empty(0, np.int32), *(piece.targets for piece in read)]),
        "losses": np.concatenate([np.empty(0, np.float32), *(piece.losses for piece in read)]),
        "pieces": pieces,
        "passages": record,
    }
