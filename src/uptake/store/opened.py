"""A store opened at one version, to be read: what it holds, what it finds, and whether all of it is sound."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uptake import arguments
from uptake.errors import BadInput
from uptake.store.cluster import Cluster
from uptake.store.facts import facts_of
from uptake.store.layout import Layout, View
from uptake.store.passages.encoding import Encoding
from uptake.store.passages.index import Ranked, open_index
from uptake.store.passages.sampling import sample_documents
from uptake.store.passages.searching import Searching
from uptake.store.passages.source import BoundSource, QueryText, Snapshot, bind, check_count
from uptake.store.passages.table import Table
from uptake.store.passages.writing import DocumentPassages, lacks
from uptake.store.remote.objects import Location
from uptake.store.unfinished import unfinished
from uptake.store.views.views import Views
from uptake.text.overlap import LeakFilter
from uptake.text.terms import unsearchable
from uptake.text.types import Document, Embedder, Passage, QueryEncoder, stable_hash
from uptake.text.utf8 import storable

if TYPE_CHECKING:
    from uptake.store.cluster.index import ClusterIndex

Floats = NDArray[np.float32]


class OpenStore:
    """A store as it was at the version it is bound to."""

    def __init__(
        self,
        path: Location,
        layout: Layout,
        table: Table,
        encoding: Encoding,
        threads: int | None,
        pinned: bool,
        cluster: Cluster | None = None,
        searching: Searching | None = None,
    ) -> None:
        self.path = path
        self.layout = layout
        self.cluster = cluster
        self.searching = searching or Searching(layout.retriever)
        self._encoding = encoding
        self._threads = threads
        self._pinned = pinned
        self._views = Views(path, layout, self._embed, threads)
        self._snapshot = self._bound(table)

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
        return self.searching.contents(self.layout.contents(self._table.contents), self.layout.retriever)

    def view_contents(self, kind: str) -> str:
        """Name what one of the views, tokens or chunks, holds; empty where there is none. Raises Damaged."""
        return self._views.contents(kind)

    @property
    def version(self) -> int:
        """The version this store is bound to."""
        return self._table.version

    @property
    def encoder(self) -> Embedder:
        """What its passages are embedded with; raises BadInput, Mismatch, Missing where it is not there."""
        return self._encoding.encoder

    @property
    def ids(self) -> list[int]:
        """The ids of all passages, in the order in which they are stored."""
        found: list[int] = self._table.ids.tolist()
        return found

    @property
    def count(self) -> int:
        """How many passages it holds."""
        return self._table.count

    @property
    def query_encoder(self) -> QueryEncoder | None:
        """The queries' own encoder; None where they have that of the passages."""
        return self._encoding.query_encoder

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
        arguments.several("queries", queries)
        for query in queries:
            arguments.text("query", query)
        texts = [storable(query) for query in queries]
        return self._snapshot.rank(texts, self._embed_queries(texts), k) if texts else []

    def query_vectors(self, queries: Sequence[str]) -> Floats:
        """Return one row a query, as it searches by vectors. Raises BadInput in a lexical store."""
        found = self._embed_queries([storable(query) for query in queries])
        if found is None:
            raise BadInput(f"{self.path}: searched by words alone, so queries have no vectors")
        return found

    def passages_of(self, documents: Sequence[str]) -> dict[str, list[int]]:
        """Return the ids of the passages of each of these documents; of one that is not here none."""
        here = DocumentPassages(self._table)
        return {name: sorted(here.passages(stable_hash(storable(name)))) for name in set(documents)}

    def word_scores(self, query: str, ids: Sequence[int]) -> Floats:
        """Return the BM25 score of each of these passages, 0 where it shares no term with the query."""
        known = dict(zip(*self._table.match(storable(query), len(ids), among=ids), strict=True))
        return np.array([known.get(key, 0.0) for key in ids], np.float32)

    def unsearchable(self, query: str) -> list[str]:
        """Name the scripts of a query that this store's words do not find; none where all are found."""
        return unsearchable(storable(query)) if self.layout.words == "spaced" else []

    def sources(self, queries: Sequence[QueryText], leak: LeakFilter | None = None) -> list[BoundSource]:
        """Return one Source a query, all embedded and searched in one batch, bound to this version."""
        clean = [
            QueryText(storable(q.text), storable(q.document_id), storable(q.group), storable(q.whole_text))
            for q in queries
        ]
        vectors = self._embed_queries([query.text for query in clean])
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
        return Snapshot(table, self.searching, self.view.metric, make_index, self._embed_queries, self._views)

    def _on_cluster(self, table: Table) -> "ClusterIndex":
        from uptake.store.cluster.index import ClusterIndex

        assert self.cluster
        return ClusterIndex(table, self.path, self.layout.uid, self.cluster)

    def _embed_queries(self, texts: Sequence[str]) -> Floats | None:
        wanted = texts and self.view.dimensions and self.searching.by != "lexical"
        return self._encoding.embed_queries(texts) if wanted else None

    def _embed(self, texts: Sequence[str]) -> Floats | None:
        return self._encoding.embed(texts) if texts and self.view.dimensions else None
