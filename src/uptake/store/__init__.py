"""The datastore: passages in a Lance table, and a FAISS index derived from it.

Names are imported when first used, so that `import uptake.store` loads neither Lance nor FAISS.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uptake.store.datastore import Added, Datastore
    from uptake.store.passages.index import Ranked
    from uptake.store.passages.source import BoundSource, QueryText

__all__ = [
    "Added",
    "BoundSource",
    "Datastore",
    "QueryText",
    "Ranked",
]

_HOMES = {
    "Added": "datastore",
    "Datastore": "datastore",
    "BoundSource": "passages.source",
    "QueryText": "passages.source",
    "Ranked": "passages.index",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'uptake.store' has no attribute {name!r}")
    return getattr(import_module(f"uptake.store.{_HOMES[name]}"), name)
