"""The views of a store that are kept beside its table."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput
from uptake.store.layout import Layout
from uptake.store.passages.table import Table
from uptake.store.remote.objects import Location
from uptake.store.views.chunk_source import open_chunks
from uptake.store.views.chunks import CHUNKS
from uptake.store.views.growing import purge
from uptake.store.views.key_index import KeyIndex
from uptake.store.views.stored import About
from uptake.store.views.token_source import TokenView
from uptake.store.views.tokens import TOKENS, Stored
from uptake.text.chunks.view import Chunked

KINDS = (TOKENS, CHUNKS)

Embed = Callable[[Sequence[str]], NDArray[np.float32] | None]


class Views:
    """The tokens and the chunks of the store at `path`; `embed` is its own way of embedding."""

    def __init__(self, path: Location, layout: Layout, embed: Embed, threads: int | None) -> None:
        self._path, self._layout, self._embed, self._threads = path, layout, embed, threads

    @property
    def store(self) -> Path:
        """The folder that the views lie in; raises BadInput where the store is none."""
        if isinstance(self._path, Path):
            return self._path
        raise BadInput(
            f"{self._path}: tokens and chunks are mapped from files; build the store in a folder to read them"
        )

    def tokens(self, table: Table, fingerprint: str) -> TokenView:
        """Return the tokens of a version as the keyer of this fingerprint read them."""
        stored = Stored.of(self.store, fingerprint)
        index = KeyIndex(stored, self._layout.uid, self._layout.index, self._threads)
        return TokenView(stored, table, index)

    def chunks(self, table: Table, fingerprint: str) -> Chunked:
        """Return the chunks of a version as the tokenizer of this fingerprint cut them."""
        return open_chunks(self.store, table, self._layout, self._embed, self._threads, fingerprint)

    def info(self) -> dict[str, str | int]:
        """Return what a person wants to know of those that are there."""
        told: dict[str, str | int] = {}
        if not isinstance(self._path, Path):
            return told
        if tokens := About.read(TOKENS, self._path):
            told |= {"tokens": tokens.tokens, "tokens_read_by": tokens.name}
        if chunks := About.read(CHUNKS, self._path):
            told |= {"chunks": chunks.count("chunks"), "chunk_tokens": chunks.settings["length"]}
        return told

    def purge(self, table: Table) -> None:
        """Leave no byte of what is gone from the table."""
        if isinstance(self._path, Path):
            for kind in KINDS:
                purge(kind, self._path, table)
