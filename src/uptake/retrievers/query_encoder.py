"""A query encoder: what turns the vector that a store's own encoder gives a query, and its file.

The store, its vectors and its index stay as they are. Turning vectors rather than training the encoder again
has few weights, so that a thousand questions are enough, and costs a query nothing.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from uptake.adaptation.tensors import digest, from_metadata, read_tensors, to_metadata, write_tensors
from uptake.errors import Damaged
from uptake.text.types import Embedder, QueryEncoder

KIND = "query-encoder"


@dataclass(frozen=True)
class About:
    """What the file of a query encoder holds besides its weights."""

    encoder: str  # fingerprint of the encoder whose vectors it turns
    trained: str  # by which loss and settings, in words
    format: str = f"uptake-{KIND}-1"


@dataclass(frozen=True)
class QueryMap:
    """Turns a vector q into q + q M, of length one; M is [dimensions, dimensions], zeros for no change."""

    encoder: str
    matrix: NDArray[np.float32] = field(repr=False, compare=False)
    trained: str = ""

    @property
    def fingerprint(self) -> str:
        """Names encoder and weights, 16 hexadecimal digits."""
        weights = digest([("matrix", torch.from_numpy(np.ascontiguousarray(self.matrix)))])
        return hashlib.sha256(f"{self.encoder} {weights}".encode()).hexdigest()[:16]

    @property
    def dimensions(self) -> int:
        """The width of the vectors."""
        return int(self.matrix.shape[0])

    def embed(self, texts: Sequence[str], encoder: Embedder) -> NDArray[np.float32]:
        """Return one row of length one a query; see `uptake.text.types.QueryEncoder`."""
        return self.turned(encoder.embed(texts))

    def turned(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return these vectors of queries, [queries, dimensions], as they search."""
        plain = np.asarray(vectors, np.float32)
        moved = plain + plain @ self.matrix
        lengths = np.linalg.norm(moved, axis=1, keepdims=True)
        return np.asarray(np.divide(moved, lengths, out=np.zeros_like(moved), where=lengths > 0), np.float32)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all, under a sum over every byte."""
        weights = {"matrix": torch.from_numpy(np.ascontiguousarray(self.matrix))}
        write_tensors(path, weights, to_metadata(About(self.encoder, self.trained)))

    @classmethod
    def load(cls, path: str | Path) -> "QueryMap":
        """Read it. Raises BadInput where there is no such file or it is another, Damaged."""
        path = Path(path).expanduser()
        metadata, tensors = read_tensors(path, KIND)
        about = from_metadata(About, metadata, path, KIND)
        matrix = tensors.get("matrix")
        if matrix is None or matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise Damaged(f"{path} is no readable {KIND} (no square matrix): make it anew")
        return cls(about.encoder, matrix.float().numpy(), about.trained)


def load_query_encoder(path: str | Path, device: str = "cpu") -> QueryEncoder:
    """Read a query encoder: a file of this kind, or a folder that encodes queries by itself.

    Raises BadInput where there is none or it is for something else, Damaged.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return QueryMap.load(path)
    from uptake.retrievers.encoder_folder import QueryFolder

    return QueryFolder.load(path, device)
