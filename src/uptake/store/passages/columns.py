"""The columns of a table of passages, as Arrow has them, and what may stand in them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from uptake.errors import BadInput

Ids = NDArray[np.int64]

PRECISIONS = ("float32", "float16")  # what numbers a vector is stored in
FIELDS = ["id", "text", "prompt", "document", "group", "start", "meta"]


def schema_of(dimensions: int, with_pieces: bool = False, precision: str = "float32") -> Any:
    """Return the schema of a table with vectors of `dimensions` numbers, without where it is 0.

    `precision` is one of PRECISIONS. With pieces it has a column of what its text is found by where no
    spaces are between words.
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
        number = pa.float16() if precision == "float16" else pa.float32()
        fields.append(pa.field("vector", pa.list_(number, dimensions), nullable=False))
    return pa.schema(fields)


def matrix_of(column: Any, dimensions: int) -> NDArray[np.float32]:
    """Return a column of vectors as [rows, dimensions] of float32, however they are stored."""
    chunks = column.chunks if hasattr(column, "chunks") else [column]
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions) for chunk in chunks]
    whole = np.concatenate(parts) if parts else np.empty((0, dimensions), np.float32)
    return whole.astype(np.float32, copy=False)


def rounded(vectors: NDArray[np.float32], precision: str) -> NDArray[Any]:
    """Return vectors as a table of this precision stores them; raises BadInput for what it cannot hold."""
    given = np.ascontiguousarray(vectors, dtype=np.float32)
    if precision == "float32":
        return given
    with np.errstate(over="ignore"):
        stored = given.astype(np.float16)
    if (beyond := np.isinf(stored) & np.isfinite(given)).any():
        raise BadInput(
            f"a vector holds {given[beyond][0]:g}, float16 at most 65504: store vectors as float32"
        )
    return stored


def as_ids(numbers: Sequence[int] | Ids) -> Ids:
    """Return ids as an array; raises BadInput for what cannot be one."""
    try:
        return np.asarray(numbers, dtype=np.int64)
    except (OverflowError, TypeError, ValueError) as error:
        raise BadInput(f"passage ids {str(numbers)[:80]}: give whole numbers below 2**63") from error
