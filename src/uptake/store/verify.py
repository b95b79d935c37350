"""Checks a store for damage, and says how to mend each fault."""

from pathlib import Path

import numpy as np

from uptake.errors import UptakeError
from uptake.store.inventory import MISSING, NAME, TABLE, Inventory
from uptake.store.layout import Layout
from uptake.store.passages.index_cache import check_base_indexes
from uptake.store.passages.table import Table
from uptake.store.remote.objects import Location, locate
from uptake.store.unfinished import said, unfinished
from uptake.store.views.view_files import check_view
from uptake.store.views.views import KINDS
from uptake.text.types import passage_id, stable_hash

_CHECKED = ("id", "document", "start", "text", "document_key")
_SHOWN = 5  # examples of one kind of fault


def verify_store(path: str | Location) -> list[str]:
    """Return one line for each fault of the store at `path`; none where all is well.

    Reads everything once: files against their sums, rows against their own ids, vectors, and the
    cached index. Raises BadInput where there is no store at all.
    """
    store = locate(path)
    faults, listed = _listed_faults(store)
    try:
        layout = Layout.read(store)
    except UptakeError as error:
        if not (store / TABLE).is_dir():
            raise
        return [str(error), *faults]
    if listed and listed.uid != layout.uid:
        faults.append(f"{NAME}: of another store; put it back from a copy, or build the store again")
    # What is known to be damaged is not given to Lance, which trusts it.
    elif listed and not any(line.startswith(TABLE) for line in faults):
        try:
            table = Table.open(store / TABLE, uid=layout.uid)
            faults += row_faults(table)
            if layout.retriever != "dense":
                table.match("the words of any text, 文字", 1)
        except UptakeError as error:
            faults.append(str(error))
    views = [line for kind in KINDS for line in check_view(kind, store)] if isinstance(store, Path) else []
    views = [line for line in views if line not in faults]
    begun = [said(unfinished(store))] if unfinished(store) else []
    return begun + faults + views + check_base_indexes(layout.uid)


def _listed_faults(store: Location) -> tuple[list[str], Inventory | None]:
    """Return a line for each file that is not as the store's list says, and the list where it can be read."""
    try:
        listed = Inventory.read(store)
    except UptakeError as error:
        return [str(error)], None
    faults = listed.faults(store, listed.sums, everything=True)
    if listed.state == "deleting":  # it was killed at that: what a reader needs is missed when it is read
        faults = {name: fault for name, fault in faults.items() if fault != MISSING}
    if listed.state == "complete":
        faults |= dict.fromkeys(listed.strays(store), f"not in {NAME}")
    return [f"{name}: {fault}; {listed.cure(name)}" for name, fault in faults.items()], listed


def row_faults(table: Table) -> list[str]:
    """Return a line for each row that cannot be what was written; a few examples of each kind of fault."""
    faults = []
    ids, counts = np.unique(table.ids, return_counts=True)
    for key in ids[counts > 1][:_SHOWN].tolist():
        faults.append(f"passage {key}: stored more than once; remove it and add its document again")
    wrong = []
    for batch in table.stream(1024):
        columns = {
            name: batch[name].to_pylist() for name in ("id", "document", "start", "text", "document_key")
        }
        for key, document, start, text, document_key in zip(*columns.values(), strict=True):
            if passage_id(document, start, text) != key or stable_hash(document) != document_key:
                wrong.append(f"passage {key} of {document!r}: text does not fit its id")
        if table.dimensions:
            finite = np.isfinite(batch["vector"].flatten().to_numpy(zero_copy_only=False))
            for place in np.flatnonzero(~finite.reshape(-1, table.dimensions).all(axis=1)):
                wrong.append(
                    f"passage {columns['id'][place]} of {columns['document'][place]!r}: vector not finite"
                )
    return faults + [f"{line}; remove it and add its document again" for line in wrong[:_SHOWN]]
