"""Writes a store's passages as plain Parquet."""

import secrets
from pathlib import Path

from uptake.errors import BadInput
from uptake.store.files import plain_errors
from uptake.store.passages.table import Table


def write_parquet(table: Table, path: Path) -> int:
    """Write every column of a table to `path`, which must not be there yet; return the rows.

    Raises BadInput, UptakeError where the disk is full.
    """
    import pyarrow.parquet as parquet

    if path.exists():
        raise BadInput(f"{path}: already there; give a new file name")
    draft = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with plain_errors(path):
            with parquet.ParquetWriter(draft, table.schema) as writer:
                for batch in table.stream():
                    writer.write_batch(batch)
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return table.count
