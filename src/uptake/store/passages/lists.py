"""Inverted lists of quantised vectors: how many, trained on what, and filled.

Up to 4,096 lists every centroid is compared with every vector, in training and in filling, which costs
lists times vectors. More are trained in two steps, groups first and the lists of each group within it,
and a vector is compared with those of the few groups nearest to it: with 10 million vectors in 12,649
lists a twelfth of the work. The nearest centroid is then missed now and then, so a few vectors lie
in their second nearest list; what is found is ranked by exact scores either way.
"""

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

GROUPED = 4096  # lists beyond which they are trained and filled by groups
_NEAR = 4  # groups whose lists a vector is compared with
_BLOCK = 65_536  # vectors made float32 at a time
_ROUNDS = 10  # of k-means


def make_lists(vectors: NDArray[Any], metric: int, threads: int | None) -> Any:
    """Return FAISS's inverted lists of these rows, numbered from 0; float16 or float32."""
    if threads:
        faiss.omp_set_num_threads(threads)
    count, dimensions = vectors.shape
    lists = max(1, min(int(4 * count**0.5), count // 40))
    # Four bits for every two dimensions are trained in seconds and scanned fastest; few dimensions
    # bear less, and cost little at eight bits each. The re-rank is exact either way.
    fast = dimensions > 128 and dimensions % 2 == 0 and count >= 1000
    fine = f"PQ{dimensions // 2}x4fs" if fast else "SQ8"
    index: Any = faiss.index_factory(dimensions, f"IVF{lists},{fine}", metric)
    index.cp.niter, index.cp.max_points_per_centroid = _ROUNDS, 64
    index.cp.min_points_per_centroid = 1
    index.nprobe = max(1, min(lists, max(64, lists // 32)))
    sample = np.random.default_rng(0).permutation(count)[: (64 if lists <= GROUPED else 32) * lists + 4096]
    some = np.ascontiguousarray(vectors[np.sort(sample)], np.float32)
    if lists <= GROUPED:
        index.train(some)
        for _, block in _blocks(vectors):
            index.add(block)
        return index
    groups = Groups(some, lists, metric)
    index.quantizer.add(groups.centroids)
    index.train(some)  # the codes alone: there are as many centroids as lists
    plain = _plain(index, dimensions, lists, metric) if fast else index
    for _, block in _blocks(vectors):
        nearest = groups.assign(block)
        plain.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(nearest))
    if not fast:
        return index
    library: Any = faiss
    filled = library.IndexIVFPQFastScan(plain)
    filled.nprobe = index.nprobe
    filled.referenced_objects = [index]  # which owns the centroids
    return filled


def _plain(index: Any, dimensions: int, lists: int, metric: int) -> Any:
    """Return lists of the same codes in the layout to which a vector is added by the number of its list."""
    library: Any = faiss
    plain = library.IndexIVFPQ(index.quantizer, dimensions, lists, index.pq.M, index.pq.nbits, metric)
    plain.by_residual, plain.pq, plain.is_trained = False, index.pq, True
    return plain


class Groups:
    """Centroids in groups; those of one lie side by side."""

    def __init__(self, some: Floats, lists: int, metric: int) -> None:
        self._metric = metric
        count = int(lists**0.5)
        self._middles = self._means(some, count)
        own = faiss.knn(some, self._middles, 1, metric=metric)[1][:, 0]
        held = np.bincount(own, minlength=count)
        # As many lists as there are vectors in it, in proportion, but one for each group at least.
        shares = np.maximum(held * (lists / len(some)), 1.0)
        ends = np.round(np.cumsum(shares) * (lists / shares.sum())).astype(int)
        self._ends = np.maximum(ends, np.arange(1, count + 1))
        starts = np.concatenate([[0], self._ends[:-1]])
        self.centroids = np.concatenate(
            [
                self._means(some[own == group], end - start, self._middles[group])
                for group, (start, end) in enumerate(zip(starts, self._ends, strict=True))
            ]
        )

    def _means(self, rows: Floats, count: int, middle: Floats | None = None) -> Floats:
        """Return the means of a k-means; where there are too few rows, the middle as often as is missing."""
        if count >= len(rows) and middle is not None:
            return np.concatenate([rows, np.repeat(middle[None], count - len(rows), axis=0)])
        spherical = self._metric == faiss.METRIC_INNER_PRODUCT
        means: Any = faiss.Kmeans(
            rows.shape[1],
            count,
            niter=_ROUNDS,
            spherical=spherical,
            min_points_per_centroid=1,
            max_points_per_centroid=64,
        )
        means.train(rows)
        return np.asarray(means.centroids, np.float32)

    def assign(self, rows: Floats) -> NDArray[np.int64]:
        """Return the list of each row: the nearest of those of the groups nearest to it."""
        near = min(_NEAR, len(self._middles))
        _, groups = faiss.knn(rows, self._middles, near, metric=self._metric)
        larger = self._metric == faiss.METRIC_INNER_PRODUCT
        best = np.full(len(rows), -np.inf if larger else np.inf, np.float32)
        chosen = np.empty(len(rows), np.int64)
        order = np.argsort(groups.ravel(), kind="stable")
        bounds = np.searchsorted(groups.ravel()[order], np.arange(len(self._middles) + 1))
        for group, end in enumerate(self._ends):
            start = self._ends[group - 1] if group else 0
            places = order[bounds[group] : bounds[group + 1]] // near
            if not len(places) or end == start:
                continue
            off, found = faiss.knn(rows[places], self.centroids[start:end], 1, metric=self._metric)
            better = off[:, 0] > best[places] if larger else off[:, 0] < best[places]
            best[places[better]] = off[better, 0]
            chosen[places[better]] = found[better, 0] + start
        return chosen


def _blocks(vectors: NDArray[Any]) -> Iterator[tuple[int, Floats]]:
    """Yield the rows as float32, so many at a time, with the number of the first."""
    for start in range(0, len(vectors), _BLOCK):
        yield start, np.ascontiguousarray(vectors[start : start + _BLOCK], np.float32)
