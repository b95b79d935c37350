"""The views of a store that lie in files beside its table."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput
from uptake.store.layout import Layout
from uptake.store.passages.table import Table
from uptake.store.remote.objects import Location
from uptake.store.views.activations import ACTIVATIONS, StoredActivations
from uptake.store.views.chunk_source import open_chunks
from uptake.store.views.chunks import CHUNKS
from uptake.store.views.key_index import KeyIndex
from uptake.store.views.token_source import TokenView
from uptake.store.views.tokens import TOKENS, StoredTokens
from uptake.store.views.view_files import ViewMetadata
from uptake.store.views.view_writer import purge_view
from uptake.text.chunks.view import Chunked

KINDS = (TOKENS, CHUNKS, ACTIVATIONS)

Embed = Callable[[Sequence[str]], NDArray[np.float32] | None]


class Views:
    """The tokens, the chunks and the activations of the store at `path`; `embed` is the store's encoder."""

    def __init__(self, path: Location, layout: Layout, embed: Embed, threads: int | None) -> None:
        self._path, self._layout, self._embed, self._threads = path, layout, embed, threads

    @property
    def store(self) -> Path:
        """The store's folder; raises BadInput where the store lies in object storage."""
        if isinstance(self._path, Path):
            return self._path
        raise BadInput(
            f"{self._path}: tokens, chunks and activations are mapped from files; build the store in a "
            "folder to read them"
        )

    def tokens(self, table: Table, fingerprint: str) -> TokenView:
        """Return the tokens of a version as the keyer of this fingerprint read them."""
        stored = StoredTokens.of(self.store, fingerprint)
        index = KeyIndex(stored, self._layout.uid, self._layout.index, self._threads)
        return TokenView(stored, table, index)

    def chunks(self, table: Table, fingerprint: str) -> Chunked:
        """Return the chunks of a version as the tokenizer of this fingerprint cut them."""
        return open_chunks(self.store, table, self._layout, self._embed, self._threads, fingerprint)

    def activations(self, fingerprint: str) -> StoredActivations:
        """Return what enters the blocks that this fingerprint names, whatever the version: texts find it."""
        return StoredActivations.of(self.store, fingerprint)

    def contents(self, name: str) -> str:
        """Name what a view holds: how it was made, and the sums of its files. Empty where there is none."""
        (kind,) = (kind for kind in KINDS if kind.name == name)
        found = ViewMetadata.read(kind, self._path) if isinstance(self._path, Path) else None
        return found.contents if found else ""

    def info(self) -> dict[str, str | int]:
        """Return what `uptake index info` shows of the views there are."""
        facts: dict[str, str | int] = {}
        if not isinstance(self._path, Path):
            return facts
        if tokens := ViewMetadata.read(TOKENS, self._path):
            facts |= {"tokens": tokens.tokens, "tokens_read_by": tokens.name}
        if chunks := ViewMetadata.read(CHUNKS, self._path):
            facts |= {"chunks": chunks.count("chunks"), "chunk_tokens": chunks.settings["length"]}
        if kept := ViewMetadata.read(ACTIVATIONS, self._path):
            facts |= {
                "activations": kept.tokens,
                "activations_enter_top": kept.settings["layers"],
                "activations_dtype": kept.settings["dtype"],
                "activations_read_by": kept.name,
            }
        return facts

    def purge(self, table: Table) -> None:
        """Erase from the views whatever the table no longer holds."""
        if isinstance(self._path, Path):
            for kind in KINDS:
                purge_view(kind, self._path, table)
