"""Writes a store's passages as plain Parquet."""

from pathlib import Path

from uptake.errors import BadInput
from uptake.sealed import clear_drafts, draft_beside
from uptake.store.files import plain_errors
from uptake.store.passages.table import Table


def write_parquet(table: Table, path: Path) -> int:
    """Write every column of a table to `path`, which must not be there yet; return the rows.

    Raises BadInput, UptakeError where the disk is full.
    """
    import pyarrow.parquet as parquet

    if path.exists():
        raise BadInput(f"{path}: already there; give a new file name")
    with plain_errors(path):
        clear_drafts(path.parent)
        with draft_beside(path) as file, parquet.ParquetWriter(file, table.schema) as writer:
            for batch in table.stream():
                writer.write_batch(batch)
    return table.count
