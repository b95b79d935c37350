"""What recipes on fresh text share: the queries, the store, what may be found, the order of documents."""

from pathlib import Path

import numpy as np

import uptake
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.queries import Query
from uptake.store import Datastore
from uptake.text.overlap import LeakFilter
from uptake.text.types import Document, Source, stable_hash

PROTOCOL = PerQuery(search=256)  # what retrieves is the end of the prefix


def drawn(data: Path, part: str) -> list[Document]:
    """Return a part's documents in the order of a hash, so that the first few are as good as any."""
    return sorted(uptake.read(data / f"{part}.jsonl"), key=lambda each: stable_hash("drawn", each.id))


def store_of(data: Path, path: Path | None = None) -> Datastore:
    """Return the lexical store of the data's `store.jsonl`, built if it is not there."""
    path = path or data / "lexical.store"
    if path.exists():
        return Datastore.open(path)
    store = Datastore.create(path, retriever="lexical")
    store.add(uptake.read(data / "store.jsonl"))
    return store


def source_of(store: Datastore, document: Document, query: Query) -> Source:
    """Return where the query may search: not in its own document, nor in what nearly is it."""
    return store.source(
        query.search,
        document_id=document.id,
        group=document.group,
        whole_text=document.text,
        leak=LeakFilter(),
    )


def choosing(document: Document) -> np.random.Generator:
    """Return the random numbers by which passages are drawn for a document."""
    return np.random.default_rng(stable_hash("choose", document.id))


def difference(found: tuple[float, tuple[float, float]] | None) -> str:
    """Return a difference of gains with its interval, in points; nothing of None."""
    if found is None:
        return ""
    value, (low, high) = found
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
