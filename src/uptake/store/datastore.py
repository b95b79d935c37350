"""A datastore: passages on disk that can be added, removed and found by vectors, by words or by both.

In a folder, or below a URI: STORE/store.json says what the store is, STORE/passages.lance holds the passages,
STORE/checksums.sha256 what each file must be, STORE/writer.lock the writer's name. One process writes
at a time; any number read, each bound to the version that was newest when it opened the store.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uptake import arguments
from uptake.errors import BadInput, Mismatch
from uptake.store.cluster import Cluster
from uptake.store.inventory import TABLE, Recorder
from uptake.store.layout import Layout
from uptake.store.making import make_store
from uptake.store.opened import OpenStore
from uptake.store.passages.drafts import clear_drafts
from uptake.store.passages.encoding import Encoding
from uptake.store.passages.index import IndexKind, Metric
from uptake.store.passages.index_cache import delete_base_indexes
from uptake.store.passages.searching import VECTOR_WEIGHT, Searching
from uptake.store.passages.table import Table
from uptake.store.passages.writing import Added, StoreWriter
from uptake.store.remote.lease import lease
from uptake.store.remote.objects import Location, locate
from uptake.store.unfinished import Adding
from uptake.store.views.activation_reading import read_activations
from uptake.store.views.chunk_reading import read_chunks
from uptake.store.views.token_reading import read_tokens
from uptake.store.views.view_writer import ReadTokens
from uptake.text.activations import ActivationReads
from uptake.text.chunks.cutting import LENGTH
from uptake.text.types import Chunking, Document, Embedder, Encodes, Keyer, QueryEncoder, stable_hash
from uptake.text.utf8 import storable

if TYPE_CHECKING:
    from uptake.store.cluster.build import Piece

__all__ = ["Added", "Datastore", "ReadTokens"]

Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]

LOCK = "writer.lock"
FRAGMENTS = 64  # pieces on disk beyond which the table is made of fewer, larger ones


class Datastore(OpenStore):
    """A store opened at one version; `add` and `remove` move it to the version they make."""

    @classmethod
    def create(
        cls,
        path: str | Location,
        *,
        retriever: str = "hybrid",
        words: str | None = None,
        encoder: Embedder | str | None = None,
        chunking: Chunking | None = None,
        metric: Metric = "cosine",
        index: IndexKind = "auto",
        vectors: str = "float32",
        device: str = "cpu",
        dtype: str = "bfloat16",
        threads: int | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> "Datastore":
        """Make an empty store at `path`, which must not exist or be an empty folder.

        `path` may be a URI in object storage such as s3://bucket/notes.store; `storage_options` are
        then what `lance` takes, in place of the environment's. `words` says what a search by words
        finds: those of "any-script" (where none is given), or "spaced", those between spaces alone.
        `vectors` of "float16" take half the room, on the disk and in the index, and are rounded once.
        `encoder` is an Embedder, or what `make_encoder` takes; MiniLM where none is given. Raises
        BadInput, Missing where the encoder cannot be loaded.
        """
        path = locate(path, storage_options)
        layout, made = make_store(
            path,
            LOCK,
            retriever,
            words,
            encoder,
            chunking or Chunking(),
            metric,
            index,
            (device, dtype),
            vectors,
        )
        encoding = Encoding(path, layout.views["passages"], made, device)
        return cls(path, layout, Table.open(path / TABLE, uid=layout.uid), encoding, threads, pinned=False)

    @classmethod
    def open(
        cls,
        path: str | Location,
        *,
        encoder: Embedder | str | None = None,
        version: int | None = None,
        device: str = "cpu",
        threads: int | None = None,
        cluster: Cluster | None = None,
        storage_options: Mapping[str, str] | None = None,
        search_by: str | None = None,
        vector_weight: float = VECTOR_WEIGHT,
        query_encoder: QueryEncoder | None = None,
    ) -> "Datastore":
        """Open a store at its newest version, or at an older one to read only.

        `path` and `storage_options` are as for `create`. Without `encoder` the one named in the
        store is loaded when first needed. With `cluster` its vectors are searched by the actors of a
        Ray cluster, whose machines must all see `path`. Raises BadInput where there is no store or
        version, Mismatch for another encoder, Damaged; any search on a cluster Incomplete where shards
        are missing. A hybrid store may be searched by "dense", "lexical", or the "sum" of the words' score
        and `vector_weight` times the vectors'; queries may have an encoder of their own. `contents` says so.
        """
        path = locate(path, storage_options)
        clear_drafts(path, LOCK)
        layout = Layout.read(path)
        wanted = layout.views["passages"]
        encoding = Encoding(path, wanted, encoder, device, query_encoder)
        own = query_encoder.fingerprint if query_encoder else ""
        searching = Searching.of(path, layout.retriever, search_by, vector_weight, own)
        table = Table.open(path / TABLE, version, layout.uid)
        if table.has_pieces != (layout.words == "any-script"):
            raise Mismatch(
                f"{path}: store.json says words {layout.words!r}, the table is not made so; put both back "
                "from one copy"
            )
        if table.dimensions != wanted.dimensions:
            raise Mismatch(
                f"{path}: store.json names {wanted.dimensions} dimensions, the table has "
                f"{table.dimensions}; put both back from one copy"
            )
        return cls(path, layout, table, encoding, threads, version is not None, cluster, searching)

    def searched(
        self,
        search_by: str | None = None,
        vector_weight: float = VECTOR_WEIGHT,
        query_encoder: QueryEncoder | None = None,
    ) -> "Datastore":
        """Return this store at this version, searched in another way; see `open`. Nothing is read again."""
        own = query_encoder.fingerprint if query_encoder else ""
        way = Searching.of(self.path, self.layout.retriever, search_by, vector_weight, own)
        encoding = self._encoding.with_query_encoder(query_encoder)
        other = Datastore(
            self.path, self.layout, self._table, encoding, self._threads, self._pinned, self.cluster, way
        )
        other._snapshot.share_index(self._snapshot)
        return other

    def add(
        self,
        documents: Iterable[Document],
        *,
        progress: Progress | None = None,
        label: str = "",
        whole: bool = False,
    ) -> Added:
        """Cut, embed and store documents; what is stored already is neither embedded nor stored again.

        A document whose id is known but whose text has changed is replaced: its old passages go
        once its new ones are in. Passages are stored in batches, each whole or not at all, so an
        interrupted call is finished by calling again; until then `unfinished` has its `label`.
        With `whole` all of them come in one commit: no reader sees a part of them, and of an interrupted
        call nothing is there. `progress(done, known)` counts passages; for a list of documents `known` is
        the whole from the start. Lone surrogates become U+FFFD.

        Raises Busy where another process writes, BadInput, UptakeError where the disk is full.
        """
        if self.view.dimensions:
            _ = self._encoding.encoder  # loaded, or found missing, before the lease is taken
        with self._writing() as writing:
            writing.adding = Adding(self.path, label)
            return writing.add(documents, self._embed, self.view.chunking, progress, whole)

    def build(
        self,
        pieces: "Sequence[Piece]",
        address: str,
        workers: int,
        *,
        progress: Progress = lambda done, known: None,
        left_out: Callable[[str, str], object] = lambda reason, where: None,
    ) -> Added:
        """Do as `add` does, by so many workers of the Ray cluster at `address`, who read the `pieces`.

        Pieces are as `readers.pieces` makes them, and every machine must see their files and the
        store. Nothing is stored before all is done, in one commit; an interrupted call is finished by
        calling again, which embeds nothing twice. `left_out(reason, where)` gets what was no
        document. Raises as `add` does, and Incomplete where workers keep dying or there is no room.
        """
        from uptake.store.cluster.build import Builder, add
        from uptake.store.cluster.pool import Pool

        if self.view.dimensions:
            _ = self._encoding.encoder
        worker = (self.path, self.view, *self._encoding.elsewhere)
        gpu = self._encoding.device.startswith("cuda")
        with self._writing() as writing, Pool(address, Builder, worker, workers, gpu) as pool:
            return add(writing, self.path, pieces, pool, progress, left_out)

    def remove(
        self, documents: Sequence[str] = (), passages: Sequence[int] = (), *, purge: bool = False
    ) -> int:
        """Remove documents by id and passages by id; return how many passages went.

        Removed text stays on the disk for readers of older versions, at least a week, until `purge`:
        that rewrites what is left, makes the text index anew and drops all older versions. Raises
        Busy, UptakeError.
        """
        arguments.several("documents", documents)
        arguments.several("passages", passages)
        keys = [stable_hash(storable(document)) for document in documents]
        with self._writing() as writing:
            return writing.remove(keys, passages, purge)

    def read_tokens(
        self, keyer: Keyer, *, fresh: bool = False, progress: Progress | None = None
    ) -> ReadTokens:
        """Give every document that has none the tokens and keys that `source.tokens` searches.

        An interrupted call is finished by calling again; after `add` another call reads what is new.
        `progress(done, all)` counts passages. Raises Busy, Mismatch where another model has read the
        store (`fresh` begins anew), BadInput, Damaged.
        """
        with self._writing() as writing:
            return read_tokens(
                self._views.store, writing.table, keyer, progress or (lambda done, every: None), fresh
            )

    def read_chunks(
        self,
        encode: Encodes,
        *,
        length: int = LENGTH,
        name: str = "",
        fresh: bool = False,
        progress: Progress | None = None,
    ) -> ReadTokens:
        """Give every document that has none the chunks of `length` tokens that `source.chunks` finds.

        `encode` cuts text into tokens and is the tokenizer of the model `name`. Otherwise as
        `read_tokens`; raises Mismatch also for another length than that of the chunks there are.
        """
        if self.view.dimensions:
            _ = self._encoding.encoder  # loaded, or found missing, before the lease is taken
        with self._writing() as writing:
            every = progress or (lambda done, every: None)
            return read_chunks(
                self._views.store, writing.table, self.layout, self._embed, encode, name, every, length, fresh
            )

    def read_activations(
        self,
        reader: ActivationReads,
        *,
        passages: Sequence[int] | None = None,
        most_bytes: int | None = None,
        fresh: bool = False,
        progress: Progress | None = None,
    ) -> ReadTokens:
        """Keep what enters a model's upper blocks for every passage that was not read yet.

        With `passages` of those of these ids alone, and of as many as `most_bytes` on the disk hold: what was
        not kept is computed when it is needed. An interrupted call is finished by calling again. Raises Busy,
        Mismatch for another reader than that of what there is (`fresh` begins anew), BadInput, Damaged.
        """
        with self._writing() as writing:
            every = progress or (lambda done, every: None)
            return read_activations(
                self._views.store, writing.table, reader, every, passages, most_bytes, fresh
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[StoreWriter]:
        if self._pinned:
            raise BadInput(
                f"{self.path}: opened at version {self.version} to read; open it without a version"
            )
        with lease(self.path / LOCK) as held, Recorder.at_work(self.path, self.layout.uid) as recorder:
            before = Table.open(self.path / TABLE, uid=self.layout.uid)
            writing = StoreWriter(before, recorder, held.check, text_index=self.layout.retriever != "dense")
            try:
                yield writing
                writing.tidy(FRAGMENTS)
                writing.adding.end()
            finally:
                if writing.table.version == before.version:
                    writing.adding.withdraw()
                if writing.purged:
                    self._views.purge(writing.table)
                    delete_base_indexes(self.layout.uid)
                # What was stored before an interruption is stored: go on from there.
                self._snapshot = self._bound(writing.table)
                if writing.purged and self.cluster and self.view.dimensions:
                    self._on_cluster(before).forget()
