"""What a store is, in the facts that `uptake index info` shows."""

from typing import TYPE_CHECKING

import numpy as np

from uptake.store.files import sizes
from uptake.store.passages.table import Table
from uptake.store.unfinished import said
from uptake.store.views.views import Views

if TYPE_CHECKING:
    from uptake.store.opened import OpenStore


def facts_of(store: "OpenStore", table: Table, views: Views) -> dict[str, str | int]:
    """Return the facts of a store at the version of `table`, as plain data."""
    return {
        "path": str(store.path),
        "uid": store.layout.uid,
        "version": store.version,
        "passages": store.count,
        "documents": len(np.unique(table.document_keys)),
        "retriever": store.layout.retriever,
        "words": store.layout.words or "none",
        "search_by": store.searching.by,
        **({"vector_weight": f"{store.searching.vector_weight:g}"} if store.searching.by == "sum" else {}),
        **({"query_encoder": own} if (own := store.searching.query_encoder) else {}),
        "encoder": store.view.encoder or ("given from Python" if store.view.dimensions else "none"),
        "encoder_fingerprint": store.view.encoder_fingerprint,
        "dimensions": store.view.dimensions,
        "vectors": table.precision if store.view.dimensions else "none",
        "metric": store.view.metric,
        "index": store.layout.index,
        "chunk_characters": store.view.characters,
        "bytes": sum(size for _, size in sizes(store.path)),
        **views.info(),
        "fingerprint": store.fingerprint,
        "contents": store.contents,
        **({"state": begun} if (begun := said(store.unfinished)) else {}),
    }
