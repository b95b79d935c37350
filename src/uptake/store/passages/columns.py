"""The columns of a table of passages, as Arrow has them, and what may stand in them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from uptake.errors import BadInput

Ids = NDArray[np.int64]

FIELDS = ["id", "text", "prompt", "document", "group", "start", "meta"]


def schema_of(dimensions: int, with_pieces: bool = False) -> Any:
    """Return the schema of a table with vectors of `dimensions` float32, without where it is 0.

    With pieces it has a column of what its text is found by where no spaces are between words.
    """
    fields = [
        pa.field("id", pa.int64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in FIELDS[1:5]),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("meta", pa.string(), nullable=False),
        pa.field("document_key", pa.int64(), nullable=False),
    ]
    if with_pieces:
        fields.append(pa.field("pieces", pa.string(), nullable=False))
    if dimensions:
        fields.append(pa.field("vector", pa.list_(pa.float32(), dimensions), nullable=False))
    return pa.schema(fields)


def matrix_of(column: Any, dimensions: int) -> NDArray[np.float32]:
    """Return a column of vectors as [rows, dimensions]."""
    chunks = column.chunks if hasattr(column, "chunks") else [column]
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions) for chunk in chunks]
    return np.concatenate(parts) if parts else np.empty((0, dimensions), np.float32)


def as_ids(numbers: Sequence[int] | Ids) -> Ids:
    """Return ids as an array; raises BadInput for what cannot be one."""
    try:
        return np.asarray(numbers, dtype=np.int64)
    except (OverflowError, TypeError, ValueError) as error:
        raise BadInput(f"passage ids {str(numbers)[:80]}: give whole numbers below 2**63") from error
