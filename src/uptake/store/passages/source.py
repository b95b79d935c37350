"""The source of a query's passages: one version of the store, ranked for the query, leaks withheld.

A ranking is deepened in fixed steps and only ever grows at its end, so the first k passages are
the same whatever k was asked for before.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from uptake import arguments
from uptake.errors import BadInput
from uptake.preparation import preparing
from uptake.store.passages.columns import Ids
from uptake.store.passages.index import Index, Ranked, VectorIndex
from uptake.store.passages.index_cache import BaseIndex
from uptake.store.passages.searching import Searching, fused, summed
from uptake.store.passages.table import Table
from uptake.store.views.activations import StoredActivations
from uptake.store.views.token_source import TokenView
from uptake.store.views.views import Views
from uptake.text.activations import Activations
from uptake.text.chunks.view import Chunked
from uptake.text.overlap import LeakFilter, Overlap, Verdict
from uptake.text.types import Chunks, Found, Passage, Tokens
from uptake.text.utf8 import storable

FIRST_DEPTH = 128  # candidates ranked at first; doubled whenever the leak filter leaves too few
_READ_AHEAD = 32  # passages read at a time, and in advance for every query of a batch

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class QueryText:
    """The text to search for, and the evaluated document it comes from, which must not leak.

    `whole_text` is the whole of that document; the query itself where it is empty.
    """

    text: str
    document_id: str = ""
    group: str = ""
    whole_text: str = ""


class Snapshot:
    """One version of the store, ready to be searched: by vectors, by words, or by both."""

    def __init__(
        self,
        table: Table,
        searching: Searching,
        metric: str,
        make_index: Callable[[Table], Index],
        embed: Callable[[Sequence[str]], Floats | None],
        views: Views,
    ) -> None:
        self.table = table
        self.searching = searching
        self.metric = metric
        self.embed = embed
        self._make_index = make_index
        self._views = views
        self._activations: dict[str, StoredActivations] = {}
        self._tokens: dict[str, TokenView] = {}
        self._chunks: dict[str, Chunked] = {}

    def tokens(self, fingerprint: str) -> TokenView:
        """Return the tokens of this version as the keyer of this fingerprint read them."""
        if fingerprint not in self._tokens:
            with preparing():
                self._tokens[fingerprint] = self._views.tokens(self.table, fingerprint)
        return self._tokens[fingerprint]

    def chunks(self, fingerprint: str) -> Chunked:
        """Return the chunks of this version as the tokenizer of this fingerprint cut them."""
        if fingerprint not in self._chunks:
            with preparing():
                self._chunks[fingerprint] = self._views.chunks(self.table, fingerprint)
        return self._chunks[fingerprint]

    def activations(self, fingerprint: str) -> StoredActivations:
        """Return what enters the blocks that this fingerprint names."""
        if fingerprint not in self._activations:
            with preparing():
                self._activations[fingerprint] = self._views.activations(fingerprint)
        return self._activations[fingerprint]

    @cached_property
    def index(self) -> Index:
        """The vector index of this version, opened or made when first needed."""
        with preparing():
            made = self._make_index(self.table)
            made.prepare()
        return made

    def share_index(self, other: "Snapshot") -> None:
        """Search with the index of another snapshot of this version, if it has opened it."""
        if "index" in vars(other):
            vars(self)["index"] = other.index

    @property
    def base(self) -> BaseIndex | None:
        """The base index, if one was used in this process: the next version can use it too."""
        made = vars(self).get("index")
        return made.base if isinstance(made, VectorIndex) else None

    @cached_property
    def sorted_ids(self) -> Ids:
        """All ids in an order that does not depend on how they were added."""
        with preparing():
            return np.sort(self.table.ids)

    def rank(self, texts: Sequence[str], vectors: Floats | None, depth: int) -> list[Ranked]:
        """Return for each query its `depth` best passages; `vectors` is None in a search by words alone."""
        by, wanted = self.searching.by, depth
        # What neither finds among its best few may yet have the largest sum.
        depth = max(depth, FIRST_DEPTH) if by == "sum" else depth
        dense = self.index.search(vectors, depth) if vectors is not None and by != "lexical" else []
        if by == "dense":
            return dense
        lexical = [Ranked(*self.table.match(text, depth)) for text in texts]
        if by == "lexical":
            return lexical
        pairs = zip(dense, lexical, strict=True)
        if by == "hybrid" or vectors is None:
            return [fused(both, depth) for both in pairs]
        weight = self.searching.vector_weight
        return [
            summed(self.table, self.metric, text, vector, both, weight, wanted)
            for text, vector, both in zip(texts, vectors, pairs, strict=True)
        ]


@dataclass
class _Ranking:
    """One query's ranking so far. `exhausted` once the store holds no more for it."""

    snapshot: Snapshot
    text: str
    vector: Floats | None
    ids: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    depth: int = 0
    exhausted: bool = False
    coverage: float = 1.0  # the least of any search

    def deepen(self) -> None:
        depth = 2 * self.depth or FIRST_DEPTH
        vectors = None if self.vector is None else self.vector[None]
        self.extend(self.snapshot.rank([self.text], vectors, depth)[0], depth)

    def extend(self, ranked: Ranked, depth: int) -> None:
        known = set(self.ids)
        for key, score in zip(ranked.ids.tolist(), ranked.scores.tolist(), strict=True):
            if key not in known:
                self.ids.append(key)
                self.scores.append(score)
        # Words find only passages that share one with the query: a list that stayed short is at its end.
        self.exhausted = len(ranked.ids) < depth or depth >= self.snapshot.table.count
        self.depth = depth
        self.coverage = min(self.coverage, ranked.coverage)


class BoundSource:
    """A Source (see uptake.text.types) bound to one version of a store and one query's leak filter."""

    def __init__(self, ranking: _Ranking, query: QueryText, overlap: Overlap, leak: LeakFilter) -> None:
        self._ranking = ranking
        self._query = query
        self._overlap = overlap
        self._leak = leak
        self._table = ranking.snapshot.table
        self._passages: dict[int, Passage] = {}
        self._judged: dict[int, Verdict] = {}
        self._change_chunks: Callable[[Chunks], Chunks] = lambda chunks: chunks

    def with_chunks(self, change: Callable[[Chunks], Chunks]) -> "BoundSource":
        """Return this source with its chunks replaced by what `change` makes of them."""
        other = copy.copy(self)
        other._change_chunks = change
        return other

    def search(self, k: int) -> Found:
        """Return the k nearest passages that do not leak, best first; fewer where the store has no more."""
        check_count(k)
        found = self._select(k, self._candidates())
        return replace(found, coverage=self._ranking.coverage)

    def sample(self, k: int, generator: np.random.Generator) -> Found:
        """Return k passages drawn evenly without replacement from all that do not leak; scores are 0."""
        check_count(k)
        ids = self._ranking.snapshot.sorted_ids
        return self._select(k, ((int(ids[place]), 0.0) for place in _shuffled(len(ids), generator)))

    def vectors(self, ids: Sequence[int]) -> Floats:
        """Return one row a passage id; raises BadInput for an unknown id or a lexical store."""
        return self._table.vectors(ids)

    def query_vector(self) -> Floats:
        """Return the vector that searches, [dimensions]; raises BadInput in a search by words alone."""
        if self._ranking.vector is None:
            raise BadInput(
                "SIFT needs vectors and this store is searched by words alone: build it with --retriever "
                "dense or hybrid"
            )
        return self._ranking.vector

    def query_text(self) -> str:
        """Return the text that searches."""
        return self._query.text

    def again(self, text: str) -> "BoundSource":
        """Return the source of another text of the same evaluated document."""
        query = replace(self._query, text=storable(text))
        vectors = self._ranking.snapshot.embed([query.text])
        return self._of(query, None if vectors is None else vectors[0])

    def with_vector(self, vector: Floats) -> "BoundSource":
        """Return the source of the same query, searched for with another vector under the same leak filter.

        `vector` is [dimensions], of length one where the store's metric is cosine. Raises BadInput in a
        search by words alone, or for another shape.
        """
        given = np.asarray(vector, np.float32)
        if given.shape != self.query_vector().shape:
            raise BadInput(
                f"a query vector of shape {given.shape}: this store's have "
                f"{len(self.query_vector())} dimensions"
            )
        return self._of(self._query, given)

    def _of(self, query: QueryText, vector: Floats | None) -> "BoundSource":
        ranking = _Ranking(self._ranking.snapshot, query.text, vector)
        return BoundSource(ranking, query, self._overlap, self._leak)

    def tokens(self, fingerprint: str) -> Tokens:
        """Return the tokens this query may read; raises BadInput, Mismatch, Damaged (see TokenView)."""
        view = self._ranking.snapshot.tokens(fingerprint)
        return view.bound(self._query.document_id, self._query.group, self._overlap, self._leak)

    def chunks(self, fingerprint: str) -> Chunks:
        """Return the chunks this query may read; raises BadInput, Mismatch, Damaged (see open_chunks)."""
        view = self._ranking.snapshot.chunks(fingerprint)
        query = self._query
        return self._change_chunks(view.bound(query.document_id, query.group, self._overlap, self._leak))

    def activations(self, fingerprint: str) -> Activations:
        """Return what enters the blocks that this fingerprint names; raises BadInput, Mismatch, Damaged."""
        return self._ranking.snapshot.activations(fingerprint)

    def read_ahead(self, passages: dict[int, Passage]) -> None:
        """Store passages that were read for a whole batch."""
        self._passages.update(
            {key: passages[key] for key in self._ranking.ids[:_READ_AHEAD] if key in passages}
        )

    def _select(self, k: int, candidates: Iterator[tuple[int, float]]) -> Found:
        found: list[tuple[Passage, float, float, float]] = []
        withheld = 0
        while len(found) < k:
            some = list(islice(candidates, max(k - len(found), 8)))
            if not some:
                break
            self._read([key for key, _ in some])
            for key, score in some:
                if len(found) == k:
                    break
                verdict = self._judge(key)
                withheld += verdict.leaks
                if not verdict.leaks:
                    found.append((self._passages[key], score, verdict.share, verdict.letters))
        passages, scores, overlaps, letters = zip(*found, strict=True) if found else ((), (), (), ())
        return Found(passages, scores, overlaps, letters, withheld)

    def _candidates(self) -> Iterator[tuple[int, float]]:
        ranking, place = self._ranking, 0
        while True:
            while place == len(ranking.ids) and not ranking.exhausted:
                ranking.deepen()
            if place == len(ranking.ids):
                return
            yield ranking.ids[place], ranking.scores[place]
            place += 1

    def _read(self, ids: list[int]) -> None:
        unread = [key for key in ids if key not in self._passages]
        self._passages.update(zip(unread, self._table.rows(unread), strict=True))

    def _judge(self, key: int) -> Verdict:
        if key not in self._judged:
            self._judged[key] = self._leak.judge(
                self._overlap, self._query.document_id, self._query.group, self._passages[key]
            )
        return self._judged[key]


def bind(
    snapshot: Snapshot, queries: Sequence[QueryText], vectors: Floats | None, leak: LeakFilter
) -> list[BoundSource]:
    """Return one source a query, all of them searched and read in one go."""
    overlaps: dict[str, Overlap] = {}
    sources = []
    rankings = [
        _Ranking(snapshot, query.text, None if vectors is None else vectors[row])
        for row, query in enumerate(queries)
    ]
    for ranking, ranked in zip(
        rankings, snapshot.rank([query.text for query in queries], vectors, FIRST_DEPTH), strict=True
    ):
        ranking.extend(ranked, FIRST_DEPTH)
    near = list(dict.fromkeys(key for ranking in rankings for key in ranking.ids[:_READ_AHEAD]))
    passages = dict(zip(near, snapshot.table.rows(near), strict=True))
    for query, ranking in zip(queries, rankings, strict=True):
        whole = query.whole_text or query.text
        source = BoundSource(ranking, query, overlaps.setdefault(whole, Overlap(whole)), leak)
        source.read_ahead(passages)
        sources.append(source)
    return sources


def _shuffled(count: int, generator: np.random.Generator) -> Iterator[int]:
    """Yield 0 .. count - 1 in random order, doing work only for what is taken."""
    swapped: dict[int, int] = {}
    for place in range(count):
        other = int(generator.integers(place, count))
        yield swapped.get(other, other)
        swapped[other] = swapped.get(place, place)


def check_count(k: int) -> None:
    """Raise BadInput for a negative number of passages, and for what is none."""
    arguments.count("k", k)
    if k < 0:
        raise BadInput(f"k = {k}: give 0 or more passages")
