"""A datastore: passages on disk that can be added, removed and found by vectors, by words or by both.

In a folder, or below a URI: STORE/store.json says what the store is, STORE/passages.lance holds the passages,
STORE/checksums.sha256 what each file must be, STORE/writer.lock the writer's name. One process writes
at a time; any number read, each bound to the version that was newest when it opened the store.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput, Mismatch
from uptake.store.cluster import Cluster
from uptake.store.facts import facts_of
from uptake.store.inventory import TABLE, Recorder
from uptake.store.layout import Layout, View
from uptake.store.making import make_store
from uptake.store.passages.drafts import clear_drafts
from uptake.store.passages.encoding import Encoding
from uptake.store.passages.index import IndexKind, Metric, Ranked, open_index
from uptake.store.passages.index_cache import delete_base_indexes
from uptake.store.passages.sampling import sample_documents
from uptake.store.passages.source import BoundSource, QueryText, Snapshot, bind, check_count
from uptake.store.passages.table import Table, storable
from uptake.store.passages.writing import Added, StoreWriter, lacks
from uptake.store.remote.lease import lease
from uptake.store.remote.objects import Location, locate
from uptake.store.unfinished import Adding, unfinished
from uptake.store.views.chunk_reading import read_chunks
from uptake.store.views.token_reading import read_tokens
from uptake.store.views.view_writer import ReadTokens
from uptake.store.views.views import Views
from uptake.text.chunks.cutting import LENGTH
from uptake.text.overlap import LeakFilter
from uptake.text.terms import unsearchable
from uptake.text.types import Chunking, Document, Embedder, Encodes, Keyer, Passage, stable_hash

if TYPE_CHECKING:
    from uptake.store.cluster.build import Piece
    from uptake.store.cluster.index import ClusterIndex

__all__ = ["Added", "Datastore", "ReadTokens"]

Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]

_LOCK = "writer.lock"
_FRAGMENTS = 64  # pieces on disk beyond which the table is made of fewer, larger ones


class Datastore:
    """A store opened at one version; `add` and `remove` move it to the version they make."""

    def __init__(
        self,
        path: Location,
        layout: Layout,
        table: Table,
        encoding: Encoding,
        threads: int | None,
        pinned: bool,
        cluster: Cluster | None = None,
    ) -> None:
        self.path = path
        self.layout = layout
        self.cluster = cluster
        self._encoding = encoding
        self._threads = threads
        self._pinned = pinned
        self._views = Views(path, layout, self._embed, threads)
        self._snapshot = self._bound(table)

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
        device: str = "cpu",
        dtype: str = "bfloat16",
        threads: int | None = None,
        storage_options: Mapping[str, str] | None = None,
    ) -> "Datastore":
        """Make an empty store at `path`, which must not exist or be an empty folder.

        `path` may be a URI in object storage such as s3://bucket/notes.store; `storage_options` are
        then what `lance` takes, in place of the environment's. `words` says what a search by words
        finds: those of "any-script" (where none is given), or "spaced", those between spaces alone.
        `encoder` is an Embedder, or what `make_encoder` takes; MiniLM where none is given. Raises
        BadInput, Missing where the encoder cannot be loaded.
        """
        path = locate(path, storage_options)
        layout, made = make_store(
            path, _LOCK, retriever, words, encoder, chunking or Chunking(), metric, index, (device, dtype)
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
    ) -> "Datastore":
        """Open a store at its newest version, or at an older one to read only.

        `path` and `storage_options` are as for `create`. Without `encoder` the one named in the
        store is loaded when first needed. With `cluster` its vectors are searched by the actors of a
        Ray cluster, whose machines must all see `path`. Raises BadInput where there is no store or
        version, Mismatch for another encoder, Damaged; any search on a cluster Incomplete where shards
        are missing.
        """
        path = locate(path, storage_options)
        clear_drafts(path, _LOCK)
        layout = Layout.read(path)
        wanted = layout.views["passages"]
        encoding = Encoding(path, wanted, encoder, device)
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
        return cls(path, layout, table, encoding, threads, version is not None, cluster)

    @property
    def view(self) -> View:
        """How the passages were made: encoder, chunking and metric."""
        return self.layout.views["passages"]

    @property
    def fingerprint(self) -> str:
        """Names encoder, chunking, metric and how words are cut, whatever the store holds."""
        return self.layout.fingerprint

    @property
    def contents(self) -> str:
        """Names what the store holds and how it is searched, 32 hexadecimal digits.

        Another one after every change, and never the same for two copies that were changed apart.
        """
        return self.layout.contents(self._table.contents)

    def view_contents(self, kind: str) -> str:
        """Name what one of the views, tokens or chunks, holds; empty where there is none. Raises Damaged."""
        return self._views.contents(kind)

    @property
    def version(self) -> int:
        """The version this store is bound to."""
        return self._table.version

    @property
    def count(self) -> int:
        """How many passages it holds."""
        return self._table.count

    @property
    def encoder_spec(self) -> str:
        """How another process can load the encoder; empty where it cannot, or there is none."""
        return self._encoding.spec

    def info(self) -> dict[str, str | int]:
        """Return the facts that `uptake index info` shows, as plain data."""
        return facts_of(self, self._table, self._views)

    @property
    def unfinished(self) -> tuple[str, ...]:
        """What was begun to be added and has not ended, as `add` was told; "" for documents of no name."""
        return unfinished(self.path)

    def lacks(self) -> Callable[[Document], bool]:
        """Return what says of a document whether this version does not hold all of it just as it is."""
        return lacks(self._table, self.view.chunking)

    def add(
        self, documents: Iterable[Document], *, progress: Progress | None = None, label: str = ""
    ) -> Added:
        """Cut, embed and store documents; what is stored already is neither embedded nor stored again.

        A document whose id is known but whose text has changed is replaced: its old passages go
        once its new ones are in. Passages are stored in batches, each whole or not at all, so an
        interrupted call is finished by calling again; until then `unfinished` has its `label`.
        `progress(done, known)` counts passages; for a list of documents `known` is the whole from the
        start. Lone surrogates become U+FFFD.

        Raises Busy where another process writes, BadInput, UptakeError where the disk is full.
        """
        if self.view.dimensions:
            _ = self._encoding.encoder  # loaded, or found missing, before the lease is taken
        with self._writing() as writing:
            writing.adding = Adding(self.path, label)
            return writing.add(documents, self._embed, self.view.chunking, progress)

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

    def passages(self, ids: Sequence[int]) -> list[Passage]:
        """Return the passages of these ids, in their order; raises BadInput for one that is not here."""
        return self._table.rows(ids)

    def sample(self, count: int, characters: int, generator: np.random.Generator) -> list[Document]:
        """Return at most `count` documents drawn at random, or parts of so many characters of long ones."""
        return sample_documents(self._table, count, characters, generator)

    def vectors(self, ids: Sequence[int]) -> Floats:
        """Return one row an id, in their order; raises BadInput for one that is not here."""
        return self._table.vectors(ids)

    def search(self, queries: Sequence[str], k: int) -> list[Ranked]:
        """Return for each query the k best passages' ids and scores; no leak filter. Raises BadInput."""
        check_count(k)
        texts = [storable(query) for query in queries]
        return self._snapshot.rank(texts, self._embed(texts), k) if texts else []

    def unsearchable(self, query: str) -> list[str]:
        """Name the scripts of a query that this store's words do not find; none where all are found."""
        return unsearchable(storable(query)) if self.layout.words == "spaced" else []

    def sources(self, queries: Sequence[QueryText], leak: LeakFilter | None = None) -> list[BoundSource]:
        """Return one Source a query, all embedded and searched in one batch, bound to this version."""
        clean = [
            QueryText(storable(q.text), storable(q.document_id), storable(q.group), storable(q.whole_text))
            for q in queries
        ]
        vectors = self._embed([query.text for query in clean])
        return bind(self._snapshot, clean, vectors, leak or LeakFilter())

    def source(
        self,
        query_text: str,
        *,
        document_id: str = "",
        group: str = "",
        whole_text: str = "",
        leak: LeakFilter | None = None,
    ) -> BoundSource:
        """Return the Source of one query; `whole_text` is all of the evaluated document."""
        return self.sources([QueryText(query_text, document_id, group, whole_text)], leak)[0]

    def verify(self) -> list[str]:
        """Return one line for each fault found, saying how to mend it; none where all is well."""
        from uptake.store.verify import verify_store

        return verify_store(self.path)

    def export(self, path: str | Path) -> int:
        """Write every column as one plain Parquet file, which must not be there yet; return the rows."""
        from uptake.store.export import write_parquet

        return write_parquet(self._table, Path(path).absolute())

    @property
    def _table(self) -> Table:
        return self._snapshot.table

    def prepare(self) -> None:
        """Open the vector index now, or make it: without this the first search does."""
        if self.view.dimensions:
            self._snapshot.index.prepare()

    def _bound(self, table: Table) -> Snapshot:
        before: Snapshot | None = getattr(self, "_snapshot", None)
        make = functools.partial(
            open_index,
            uid=self.layout.uid,
            metric=self.view.metric,
            kind=self.layout.index,
            threads=self._threads,
            base=before.base if before else None,
        )
        make_index = self._on_cluster if self.cluster else make
        return Snapshot(table, self.layout.retriever, make_index, self._embed, self._views)

    def _on_cluster(self, table: Table) -> "ClusterIndex":
        from uptake.store.cluster.index import ClusterIndex

        assert self.cluster
        return ClusterIndex(table, self.path, self.layout.uid, self.cluster)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[StoreWriter]:
        if self._pinned:
            raise BadInput(
                f"{self.path}: opened at version {self.version} to read; open it without a version"
            )
        with lease(self.path / _LOCK) as held, Recorder.at_work(self.path, self.layout.uid) as recorder:
            before = Table.open(self.path / TABLE, uid=self.layout.uid)
            writing = StoreWriter(before, recorder, held.check, text_index=self.layout.retriever != "dense")
            try:
                yield writing
                writing.tidy(_FRAGMENTS)
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

    def _embed(self, texts: Sequence[str]) -> Floats | None:
        return self._encoding.embed(texts) if texts and self.view.dimensions else None
