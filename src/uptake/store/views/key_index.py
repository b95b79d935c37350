"""Search of nearest keys: exact search of a few, quantised inverted lists with an exact re-rank of many.

The inverted lists (Khandelwal et al. 2020 search theirs in the same way) cover the vectors of a store's
tokens, or of its chunks, from the first on, live or not. They lie in the private cache beside their
SHA-256, as a store's other indexes do, grow with the view, and are made again where missing or damaged.
"""

import contextlib
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
from uptake.codec import load, plain
from uptake.errors import UptakeError
from uptake.preparation import preparing
from uptake.store.cache import cache_folder, damaged, seal
from uptake.store.files import one_line, read_json, write_json
from uptake.store.passages.columns import Ids
from uptake.store.passages.index_cache import Floats
from uptake.store.views.view_files import StoredView

LARGE = 65_536  # keys from which "auto" takes inverted lists: below, an exact search is as fast
_BLOCK = 65_536  # keys made float32 at a time
_SLACK = 16  # candidates beyond those asked for, so that rounding in FAISS cannot decide who is among them
_RERANK = 1.5  # candidates a result, where they come from quantised keys
_LISTS, _PROBED = 4096, 32  # the most inverted lists, and how many are searched: the paper's
_PARTS = 128  # the most parts a key is quantised in, four bits each: 64 bytes, as in the paper
_GROWN = 4  # lists trained on so many times fewer keys are trained anew
_SAMPLE = 64  # keys a list is trained on


@dataclass(frozen=True)
class _ListsMetadata:
    """The content of the lists' about.json."""

    trained: int  # how many keys the lists were trained on


class KeyIndex:
    """The vectors of a view. `kind` is flat, ivf or auto; `threads` is how many FAISS may use."""

    def __init__(self, view: StoredView, uid: str, kind: str, threads: int | None) -> None:
        self.keys = view.vectors
        self._threads = threads
        self._uid, self._family, self._metadata = uid, view.metadata.kind.name, view.metadata
        self.lists = kind == "ivf" or (kind == "auto" and len(self.keys) >= LARGE)
        self._ivf: Any = None
        self._wide: Floats | None = None

    def candidates(self, keys: Floats, k: int, allowed: NDArray[np.bool_], count: int) -> Ids:
        """Return (keys, at most k and some) places among the `count` allowed, padded with -1.

        The k nearest are among them: surely in an exact search, nearly always in one of lists.
        """
        if self._threads:
            faiss.omp_set_num_threads(self._threads)
        keys = np.ascontiguousarray(keys, np.float32)
        if not self.lists or count < LARGE:
            return self._exact(keys, min(k + _SLACK, count), allowed, count)
        library: Any = faiss
        ivf = self._lists()
        bits = np.packbits(allowed, bitorder="little")  # the selector keeps no copy
        chosen = library.IDSelectorBitmap(bits) if count < len(allowed) else None
        how = library.SearchParametersIVF(sel=chosen, nprobe=min(_PROBED, ivf.nlist))
        _, places = ivf.search(keys, min(int(k * _RERANK) + _SLACK, count), params=how)
        return np.asarray(places)

    def distances(self, keys: Floats, places: Ids) -> Floats:
        """Return each key's squared distance to the stored ones at its row of `places`; infinity for -1."""
        import torch

        stored, rows = torch.from_numpy(self.keys), torch.from_numpy(places)
        wide = torch.from_numpy(np.ascontiguousarray(keys, np.float32))
        found_distances = torch.full(places.shape, torch.inf)
        there = rows >= 0
        full = bool(there.all())
        # One query at a time, into the same memory: what is worked on stays in the processor's cache.
        narrow = torch.empty(places.shape[1], stored.shape[1], dtype=stored.dtype)
        off = torch.empty(narrow.shape)
        for row in range(len(wide)):
            found = rows[row] if full else rows[row][there[row]]
            count = len(found)
            torch.index_select(stored, 0, found, out=narrow[:count])
            some = off[:count].copy_(narrow[:count]).sub_(wide[row])
            losses = some.mul_(some).sum(-1)
            if full:
                found_distances[row] = losses
            else:
                found_distances[row][there[row]] = losses
        # A key that is no number, in a damaged file, is near to nothing.
        return np.asarray(found_distances.nan_to_num_(nan=torch.inf, posinf=torch.inf).numpy())

    def _exact(self, keys: Floats, k: int, allowed: NDArray[np.bool_], count: int) -> Ids:
        best = np.full((len(keys), 0), -1, np.int64)
        losses = np.empty((len(keys), 0), np.float32)
        if not k:
            return best
        for rows, block in self._blocks(allowed, count):
            near, places = faiss.knn(keys, block, min(k, len(block)), metric=faiss.METRIC_L2)
            # A key that is no number is found by nobody: FAISS then gives -1.
            places = np.where(places >= 0, rows[places], -1)
            best, losses = np.concatenate([best, places], 1), np.concatenate([losses, near], 1)
            if best.shape[1] > k:
                best_first = np.argsort(np.where(best >= 0, losses, np.inf), axis=1, kind="stable")[:, :k]
                best, losses = (
                    np.take_along_axis(best, best_first, 1),
                    np.take_along_axis(losses, best_first, 1),
                )
        return best

    def _blocks(self, allowed: NDArray[np.bool_], count: int) -> Iterator[tuple[Ids, Floats]]:
        rows = np.flatnonzero(allowed)
        if count == len(self.keys) <= _BLOCK:  # what small stores do over and over
            if self._wide is None:
                with preparing():
                    self._wide = self.keys.astype(np.float32)
            yield rows, self._wide
            return
        for start in range(0, count, _BLOCK):
            some = rows[start : start + _BLOCK]
            yield some, self.keys[some].astype(np.float32)

    def _lists(self) -> Any:
        if self._ivf is None:
            with preparing():
                self._ivf = self._cached() or self._extended(None)
        elif self._ivf.ntotal < len(self.keys):
            raise AssertionError("lists cover all keys of the tokens they were made for")
        return self._ivf

    def _cached(self) -> Any:
        """Return the lists from the cache, with newer keys added; None where there are no valid ones."""
        folder = cache_folder(self._uid)
        if not private(folder):
            return None
        for path in sorted(folder.glob(f"{self._family}-*"), key=_covered, reverse=True):
            # Those of a copy of the store that has grown otherwise are of other keys.
            if _covered(path) > len(self.keys) or path.name != self._name(_covered(path)):
                continue
            try:
                problem = ", ".join(damaged(path))
                if not problem:
                    trained = load(_ListsMetadata, read_json(path / "about.json")).trained
                    if trained * _GROWN < len(self.keys):
                        return None
                    ivf = faiss.read_index(str(path / "ivf"))
                    if (ivf.ntotal, ivf.d) == (_covered(path), self.keys.shape[1]):
                        return ivf if ivf.ntotal == len(self.keys) else self._extended(ivf, trained)
                    problem = "sizes do not agree"
            except (UptakeError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
                problem = one_line(error)
            if not path.is_dir():  # another process has cleared it away
                continue
            warnings.warn(f"{path}: damaged index ({problem}); making it again", RuntimeWarning, stacklevel=5)
            discard(path)
        return None

    def _extended(self, ivf: Any, trained: int = 0) -> Any:
        """Return lists of all keys, trained here where none are given, and store them in the cache."""
        if ivf is None:
            ivf, trained = self._trained(), len(self.keys)
        for start in range(ivf.ntotal, len(self.keys), _BLOCK):
            ivf.add(self.keys[start : start + _BLOCK].astype(np.float32))
        try:
            self._store(ivf, trained)
        except (OSError, UptakeError, RuntimeError) as error:
            warnings.warn(
                f"index of {self._family} not stored ({one_line(error)}); set UPTAKE_CACHE to a private "
                "folder with room",
                RuntimeWarning,
                stacklevel=5,
            )
        return ivf

    def _trained(self) -> Any:
        count, width = self.keys.shape
        lists = max(1, min(_LISTS, int(2 * count**0.5), count // 40))
        parts = next(n for n in range(min(_PARTS, width), 0, -1) if width % n == 0)
        # Four bits a part are scanned many times faster than eight; the re-rank is exact either way.
        ivf: Any = faiss.index_factory(
            width, f"IVF{lists},PQ{parts}x4fs" if count >= 1000 else f"IVF{lists},SQ8"
        )
        ivf.cp.niter, ivf.cp.max_points_per_centroid, ivf.cp.min_points_per_centroid = 10, _SAMPLE, 1
        sample = np.random.default_rng(0).permutation(count)[: _SAMPLE * lists + 4096]
        ivf.train(self.keys[np.sort(sample)].astype(np.float32))
        return ivf

    def _store(self, ivf: Any, trained: int) -> None:
        folder = cache_folder(self._uid)
        if not private(folder, make=True):
            raise OSError("others may write there")
        clear_drafts(folder)
        draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder))
        try:
            faiss.write_index(ivf, str(draft / "ivf"))
            write_json(draft / "about.json", plain(_ListsMetadata(trained)))
            home = folder / self._name(ivf.ntotal)
            seal(draft, home)
            discard(home)
            with contextlib.suppress(OSError):  # another process was first
                draft.rename(home)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        for old in folder.glob(f"{self._family}-*"):
            mine = old.name.startswith(f"{self._family}-{self._metadata.id}-")
            if old != home and (not mine or _covered(old) < ivf.ntotal):
                discard(old)

    def _name(self, count: int) -> str:
        """Return the name of the lists' folder: of the view, of its first `count` keys, and that number."""
        return f"{self._family}-{self._metadata.id}-{self._metadata.vectors_named(count)}-{count}"


def _covered(path: Path) -> int:
    tail = path.name.rpartition("-")[2]
    return int(tail) if tail.isdecimal() else -1
