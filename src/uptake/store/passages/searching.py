"""How a store is searched: by vectors, by words, by both; the queries' own encoder, if they have one.

None of it changes what a store holds: the same store may be opened in each of these ways.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from uptake.errors import BadInput
from uptake.store.passages.index import Ranked
from uptake.store.passages.index_cache import Floats, distances, faiss_metric
from uptake.store.passages.table import Table

SEARCHES = ("hybrid", "dense", "lexical", "sum")
VECTOR_WEIGHT = 20.0  # what a cosine of 1 counts for in BM25 points: its softmax at temperature 0.05
_FUSION = 60  # the customary constant of reciprocal rank fusion


@dataclass(frozen=True, slots=True)
class Searching:
    """How passages are ranked: `by` vectors ("dense"), words ("lexical"), or both.

    Both are joined by their ranks ("hybrid"), or as the BM25 score plus `vector_weight` times the vectors'
    score ("sum", as Karpukhin et al. 2020 do). `query_encoder` is the fingerprint of the queries' own, or "".
    """

    by: str
    vector_weight: float = VECTOR_WEIGHT
    query_encoder: str = ""

    def __post_init__(self) -> None:
        if self.by not in SEARCHES:
            raise BadInput(f"search by {self.by!r}: use {', '.join(SEARCHES)}")
        if not 0 < self.vector_weight < float("inf"):
            raise BadInput(f"vector weight {self.vector_weight}: use a positive number such as 20")

    @classmethod
    def of(
        cls, store: object, retriever: str, by: str | None, weight: float, query_encoder: str
    ) -> "Searching":
        """Return how to search a store that was built for `retriever`; raises BadInput where it cannot be."""
        made = cls(by or retriever, weight, query_encoder)
        if retriever != "hybrid" and made.by != retriever:
            lacking = "vectors" if retriever == "lexical" else "words"
            raise BadInput(
                f"{store}: search by {made.by!r} needs {lacking}, and the store is {retriever}; "
                "build it with --retriever hybrid"
            )
        if query_encoder and made.by == "lexical":
            raise BadInput(f"{store}: a search by words uses no query encoder; leave it out or search by sum")
        return made

    def contents(self, store: str, retriever: str) -> str:
        """Name what a store of these contents gives when it is searched so."""
        if self == Searching(retriever):
            return store
        named = json.dumps([store, self.by, self.vector_weight, self.query_encoder])
        return hashlib.sha256(named.encode()).hexdigest()[:32]


def fused(lists: tuple[Ranked, Ranked], depth: int) -> Ranked:
    """Merge rankings by the sum of 1 / (60 + rank), rank counting from 1."""
    totals: dict[int, float] = {}
    for ranked in lists:
        for rank, key in enumerate(ranked.ids.tolist(), start=1):
            totals[key] = totals.get(key, 0.0) + 1 / (_FUSION + rank)
    return _best(totals, depth, min(ranked.coverage for ranked in lists))


def summed(
    table: Table,
    metric: str,
    text: str,
    vector: Floats,
    lists: tuple[Ranked, Ranked],
    weight: float,
    depth: int,
) -> Ranked:
    """Merge what vectors and words found by the sum of the words' score and `weight` times the vectors'.

    Each candidate has both its scores exactly, whichever of the two found it.
    """
    dense, lexical = (dict(zip(r.ids.tolist(), r.scores.tolist(), strict=True)) for r in lists)
    unmeasured = [key for key in lexical if key not in dense]
    if unmeasured:
        rows = np.ascontiguousarray(table.vectors(unmeasured))
        found = distances(np.asarray(vector, np.float32), rows, np.arange(len(rows)), faiss_metric(metric))
        dense |= dict(zip(unmeasured, (-found if metric == "l2" else found).tolist(), strict=True))
    if unread := [key for key in dense if key not in lexical]:
        ids, scores = table.match(text, len(unread), among=unread)
        lexical |= dict(zip(ids.tolist(), scores.tolist(), strict=True))
    totals = {key: lexical.get(key, 0.0) + weight * score for key, score in dense.items()}
    return _best(totals, depth, min(ranked.coverage for ranked in lists))


def _best(totals: dict[int, float], depth: int, coverage: float) -> Ranked:
    order = sorted(totals, key=lambda key: (-totals[key], key))[:depth]
    scores = np.array([totals[key] for key in order], np.float32)
    return Ranked(np.array(order, np.int64), scores, coverage)
