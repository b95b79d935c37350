"""Base indexes: the vectors of one version of a store, with their FAISS index, in a private cache.

FAISS parses its files in C++ that trusts them. So a base index lies in a folder that only this user can
write, beside the SHA-256 of its files. A missing or damaged one is made again from the table.
"""

import contextlib
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from uptake.cache import clear_drafts, discard, private
from uptake.codec import load
from uptake.errors import BadInput, Damaged, UptakeError
from uptake.store.cache import cache_folder, damaged, seal
from uptake.store.files import one_line, read_json, write_json
from uptake.store.passages.columns import Ids
from uptake.store.passages.lists import make_lists
from uptake.store.passages.table import Table

Floats = NDArray[np.float32]

_BLOCK = 65_536  # vectors made float32 at a time


@dataclass(frozen=True)
class BaseIndex:
    """The indexed rows of one version: ids and vectors in the same order, `ivf` numbering them from 0."""

    ids: Ids
    vectors: NDArray[Any]  # float32, or float16 as they are stored
    ivf: Any = None

    def candidates(self, queries: Floats, count: int, metric: int, exact: bool) -> Ids:
        """Return (queries, count) places, padded with -1."""
        count = min(count, len(self.ids))
        if self.ivf is None or exact:
            return nearest(queries, self.vectors, count, metric)
        _, places = self.ivf.search(queries, count)
        return np.asarray(places)


class IndexCache:
    """The base indexes of one store: CACHE/indexes/UID/v<version>-<kind>/, each a folder that never changes.

    Those of a part of its rows lie one folder deeper, which `label` names.
    """

    def __init__(self, uid: str, settings: dict[str, object], label: str = "") -> None:
        self._settings = settings
        self._numbers = np.dtype(str(settings.get("numbers", "float32")))
        self._folder = cache_folder(uid) / label

    @classmethod
    def of(cls, uid: str) -> "list[IndexCache]":
        """Return the caches of a store: those of its parts, and that of the whole."""
        labels = sorted(path.name for path in cache_folder(uid).glob("rows-*"))
        return [cls(uid, {}, label) for label in (*labels, "")]

    def folders(self) -> list[Path]:
        """Return the folders of base indexes, newest version first."""
        if not self._folder.is_dir():
            return []
        found = [path for path in self._folder.iterdir() if re.fullmatch(r"v\d+-\w+", path.name)]
        return sorted(found, key=_version, reverse=True)

    def clear(self) -> None:
        """Delete everything, drafts that a crash left included."""
        for folder in self.folders():
            discard(folder)
        shutil.rmtree(self._folder, ignore_errors=True)

    def bases(self, version: int) -> Iterator[BaseIndex]:
        """Yield the usable base indexes with these settings, the one nearest to `version` first."""
        if not private(self._folder):
            return
        for folder in sorted(self.folders(), key=lambda path: abs(_version(path) - version)):
            base = self._load(folder)
            if base is not None:
                yield base

    def make(self, table: Table, threads: int | None) -> BaseIndex:
        """Build a base index of this table and store it; without a usable cache it is in memory only."""
        try:
            if not private(self._folder, make=True):
                raise OSError("others may write there")
            return self._store(table, threads)
        except (BadInput, Damaged):
            raise  # the table's own fault, or it was purged: no other cache would mend that
        except (OSError, UptakeError) as error:
            warnings.warn(
                f"{self._folder}: index not stored ({one_line(error)}); set UPTAKE_CACHE to a private folder "
                "with room",
                RuntimeWarning,
                stacklevel=4,
            )
        vectors = np.empty((table.count, table.dimensions), self._numbers)
        _fill(vectors, table)
        return BaseIndex(table.ids, vectors, self._ivf(vectors, threads))

    def _store(self, table: Table, threads: int | None) -> BaseIndex:
        clear_drafts(self._folder)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=self._folder))
        try:
            with (draft / "vectors").open("wb") as file:
                for part in table.stream_vectors():
                    part.astype(self._numbers, copy=False).tofile(file)
            table.ids.astype("<i8").tofile(draft / "ids")
            vectors = _mapped(draft / "vectors", self._numbers, table.dimensions)
            ivf = self._ivf(vectors, threads)
            if ivf is not None:
                faiss.write_index(ivf, str(draft / "ivf"))
            write_json(draft / "about.json", self._settings | {"version": table.version})
            home = self._folder / f"v{table.version}-{self._settings['kind']}"
            seal(draft, home)
            discard(home)  # only ever damaged, or drifted under the same version
            with contextlib.suppress(OSError):  # another process was first
                draft.rename(home)
        except RuntimeError as error:  # FAISS tells of a full disk in its own way
            raise OSError(one_line(error)) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        for old in [folder for folder in self.folders() if folder != home][1:]:
            discard(old)  # whoever has it mapped keeps it
        # As it was made, not as it lies there: another process may have cleared it away by now.
        return BaseIndex(table.ids, vectors, ivf)

    def _ivf(self, vectors: NDArray[Any], threads: int | None) -> Any:
        if self._settings["kind"] != "ivf" or not len(vectors):
            return None
        return make_lists(vectors, faiss_metric(self._settings["metric"]), threads)

    def _load(self, folder: Path) -> BaseIndex | None:
        try:
            problem = ", ".join(damaged(folder))
            if not problem:
                about = load(dict[str, str | int], read_json(folder / "about.json"))
                if any(about.get(name) != value for name, value in self._settings.items()):
                    return None
                ids = np.fromfile(folder / "ids", "<i8").astype(np.int64)
                vectors = _mapped(folder / "vectors", self._numbers, int(about["dimensions"]))
                if len(ids) == len(vectors):
                    ivf = folder / "ivf"
                    return BaseIndex(ids, vectors, faiss.read_index(str(ivf)) if ivf.exists() else None)
                problem = "sizes do not agree"
        except (UptakeError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            problem = one_line(error)
        if not folder.is_dir():  # another process has put a newer one in its place
            return None
        warnings.warn(
            f"{folder}: damaged index ({problem}); making it again from the table",
            RuntimeWarning,
            stacklevel=5,
        )
        discard(folder)
        return None


def nearest(queries: Floats, vectors: NDArray[Any], count: int, metric: int) -> Ids:
    """Return (queries, count) places of the nearest vectors, best first, by exact search."""
    if not count:
        return np.empty((len(queries), 0), np.int64)
    if vectors.dtype == np.float32:
        _, places = faiss.knn(queries, vectors, count, metric=metric)
        return np.asarray(places)
    best = np.empty((len(queries), 0), np.int64)
    losses = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(vectors), _BLOCK):
        block = vectors[start : start + _BLOCK].astype(np.float32)
        found, places = faiss.knn(queries, block, min(count, len(block)), metric=metric)
        losses = np.concatenate([losses, found if metric == faiss.METRIC_L2 else -found], axis=1)
        best = np.concatenate([best, places + start], axis=1)
        order = np.argsort(losses, axis=1, kind="stable")[:, :count]
        losses, best = np.take_along_axis(losses, order, axis=1), np.take_along_axis(best, order, axis=1)
    return best


def distances(query: Floats, vectors: NDArray[Any], places: Ids, metric: int) -> Floats:
    """Return the inner products, or squared distances, of `query` and the vectors at `places`.

    Reads float32 where they lie, without a copy. `places` must be in range: nobody checks.
    """
    if vectors.dtype != np.float32:
        vectors, places = vectors[places].astype(np.float32), np.arange(len(places))
    found = np.empty(len(places), np.float32)
    if len(places):
        library: Any = faiss
        of = library.fvec_L2sqr_by_idx if metric == faiss.METRIC_L2 else library.fvec_inner_products_by_idx
        arrays = (found, *map(np.ascontiguousarray, (query, vectors, places.astype(np.int64, copy=False))))
        of(*map(faiss.swig_ptr, arrays), vectors.shape[1], 1, len(places))
    return found


def faiss_metric(metric: object) -> int:
    """Return FAISS's number for a store's metric; under "cosine" vectors have length one."""
    return int(faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)


def check_base_indexes(uid: str) -> list[str]:
    """Return a line for each damaged base index of this store."""
    try:
        folders = [folder for cache in IndexCache.of(uid) for folder in cache.folders()]
    except UptakeError as error:
        return [str(error)]
    return [
        f"{folder}: damaged index ({name}); delete the folder, it is made again when first needed"
        for folder in folders
        for name in damaged(folder, everything=True)
    ]


def delete_base_indexes(uid: str) -> None:
    """Delete every base index of this store, so that purged text leaves no vector behind."""
    for cache in IndexCache.of(uid):
        cache.clear()


def _fill(vectors: NDArray[Any], table: Table) -> None:
    start = 0
    for part in table.stream_vectors():
        vectors[start : start + len(part)] = part
        start += len(part)


def _mapped(path: Path, kind: Any, dimensions: int) -> NDArray[Any]:
    if not path.stat().st_size:  # nothing cannot be mapped
        return np.empty((0, dimensions), kind)
    return np.asarray(np.memmap(path, dtype=kind, mode="r").reshape(-1, dimensions))


def _version(folder: Path) -> int:
    return int(folder.name[1:].partition("-")[0])
