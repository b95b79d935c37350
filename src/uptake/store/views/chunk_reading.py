"""A store's documents are cut into chunks and embedded, in commits that survive a crash."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput, Mismatch
from uptake.store.layout import Layout
from uptake.store.passages.table import Table
from uptake.store.views.chunks import CHUNKS
from uptake.store.views.token_reading import passage_records, runs
from uptake.store.views.view_files import ViewMetadata
from uptake.store.views.view_writer import ReadTokens, ViewWriter, delete_view, extend_view
from uptake.text.chunks.cutting import LENGTH, Columns, check_length, cut, joined
from uptake.text.types import Encodes, Passage

Embed = Callable[[Sequence[str]], NDArray[np.float32] | None]

_EMBEDDED = 2048  # chunks handed to the encoder at a time, so that a huge document needs no huge memory


def read_chunks(
    store: Path,
    table: Table,
    layout: Layout,
    embed: Embed,
    encode: Encodes,
    name: str,
    progress: Callable[[int, int], None],
    length: int = LENGTH,
    fresh: bool = False,
) -> ReadTokens:
    """Cut every document of the table that has no chunks yet; to be called with the store's lease.

    `embed` gives None where the store searches by words alone; `name` is of the model whose tokenizer
    `encode` is. `progress(done, all)` counts passages. Raises BadInput, Damaged, and Mismatch where
    another tokenizer, length or encoder made the chunks there are, unless `fresh` says to begin anew.
    """
    check_length(length)
    if fresh:
        delete_view(CHUNKS, store)
    view = layout.views["passages"]
    settings: dict[str, str | int] = {"length": length, "encoder": view.encoder_fingerprint}
    metadata = ViewMetadata.read(CHUNKS, store)
    empty = ViewMetadata("", name, encode.fingerprint, view.dimensions, settings, kind=CHUNKS)
    if metadata is not None and _made(metadata) != _made(empty):
        raise Mismatch(
            f"{store}: its chunks are {_made(metadata)}, asked for are {_made(empty)}; ask for the same, "
            "or give --fresh to cut them anew"
        )
    cutting = _Cutting(encode, length, embed if view.dimensions else None, layout.retriever != "dense")
    return extend_view(store, table, empty, cutting.append, progress)


def _made(metadata: ViewMetadata) -> str:
    settings = metadata.settings
    encoder = f", embedded by {settings['encoder']}" if settings["encoder"] else ""
    return f"of {settings['length']} tokens, cut by tokenizer {metadata.fingerprint}{encoder}"


class _Cutting:
    """How documents become rows of the files. `words` is False where nobody will search by them."""

    def __init__(self, encode: Encodes, length: int, embed: Embed | None, words: bool) -> None:
        self._encode, self._length, self._embed, self._words = encode, length, embed, words

    def append(self, writer: ViewWriter, documents: Sequence[list[Passage]]) -> None:
        found, records = [], []
        for document in documents:
            pieces = [(run[0].start, "".join(passage.text for passage in run)) for run in runs(document)]
            columns, starts = cut(self._encode, document[0].document, document[0].group, pieces, self._length)
            found.append(columns)
            records.append(passage_records(document, starts, first=True))
        columns = joined(found)
        if not self._words:
            columns.records["words"] = 0
        writer.append(
            {
                "values": columns.values,
                "passages": np.concatenate(records),
                "chunks": columns.records,
                "texts": columns.texts,
                "words": columns.words if self._words else columns.words[:0],
                "vectors": self._vectors(columns),
            }
        )

    def _vectors(self, columns: Columns) -> NDArray[np.float16]:
        texts = [columns.text(place) for place in range(len(columns.records))]
        parts = [np.empty(0, np.float16)]
        for start in range(0, len(texts) if self._embed else 0, _EMBEDDED):
            assert self._embed is not None
            vectors = self._embed(texts[start : start + _EMBEDDED])
            assert vectors is not None
            with np.errstate(over="ignore"):
                narrow = vectors.astype(np.float16)
            if not np.isfinite(narrow).all():
                raise BadInput(
                    "the encoder's vectors are too large for float16: build the store with metric cosine"
                )
            parts.append(narrow.ravel())
        return np.concatenate(parts)
