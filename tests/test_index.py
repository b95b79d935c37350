"""The derived index: exact where it is flat, near exact where it is not, and made again when damaged."""

import shutil
import warnings

import faiss
import numpy as np
import pytest

from uptake.errors import BadInput, Damaged
from uptake.store.passages import index as module
from uptake.store.passages.index import open_index
from uptake.store.passages.index_cache import IndexCache, check_base_indexes
from uptake.store.passages.table import Table
from uptake.text.types import Passage

UID = "0123456789abcdef" * 2
DIMENSIONS = 144


def vectors_of(ids):
    """Clustered vectors of length one and of 12 real dimensions, decided by the ids alone."""
    basis = np.random.default_rng(0).standard_normal((12, DIMENSIONS))
    rows = np.empty((len(ids), 12))
    for place, key in enumerate(ids):
        centre = np.random.default_rng(int(key) % 20).standard_normal(12)
        rows[place] = centre + 0.5 * np.random.default_rng(int(key) + 1000).standard_normal(12)
    vectors = (rows @ basis).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def grow(table, ids):
    return table.append([Passage(int(key), f"text {key}") for key in ids], vectors_of(ids))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "indexes" / UID


@pytest.fixture
def table(tmp_path):
    return grow(Table.create(tmp_path / "t", DIMENSIONS), range(500))


def exact(ids, queries, k, metric="cosine"):
    vectors = vectors_of(ids)
    scores = queries @ vectors.T
    if metric == "l2":
        scores = -((queries[:, None] - vectors[None]) ** 2).sum(axis=2)
    best = np.argsort(-scores, axis=1)[:, :k]
    return np.asarray(ids)[best], np.take_along_axis(scores, best, axis=1)


QUERIES = vectors_of(range(10_000, 10_040))


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_it_finds_the_nearest(table, cache, metric, kind):
    index = open_index(table, UID, metric=metric, kind=kind)
    ids, scores = exact(range(500), QUERIES, 10, metric)
    found = index.search(QUERIES, 10)
    np.testing.assert_array_equal([row[0] for row in found], ids)
    np.testing.assert_allclose([row[1] for row in found], scores, atol=1e-5)
    everything = index.search(QUERIES[:2], 10_000)
    assert all(sorted(row[0].tolist()) == list(range(500)) for row in everything)
    assert index.search(QUERIES[:0], 5) == [] and len(index.search(QUERIES[:1], 0)[0][0]) == 0


def test_a_large_one_is_near_exact(tmp_path, cache):
    table = grow(Table.create(tmp_path / "large", DIMENSIONS), range(12_000))
    index = open_index(table, UID, metric="cosine", kind="ivf", threads=1)
    assert "PQFastScan" in type(index.base.ivf).__name__
    ids, _ = exact(range(12_000), QUERIES, 10)
    found = index.search(QUERIES, 10)
    recall = np.mean(
        [len(set(a) & set(row[0].tolist())) / 10 for a, row in zip(ids.tolist(), found, strict=True)]
    )
    assert recall >= 0.95
    alone = [index.search(query[None], 10)[0] for query in QUERIES]
    for one, other in zip(found, alone, strict=True):  # a batch changes no bit of a query
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    # More than the probed lists hold: searched exactly, and never a place FAISS filled with -1.
    deep = index.search(QUERIES[:1], 5000)[0][0]
    assert len(set(deep.tolist())) == 5000 and deep.min() >= 0


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_rows_come_and_go_without_a_rebuild(table, cache, kind):
    open_index(table, UID, metric="cosine", kind=kind)
    made = {path.name for path in cache.iterdir()}
    later = grow(table, range(500, 525)).delete(range(20))
    index = open_index(later, UID, metric="cosine", kind=kind)
    assert {path.name for path in cache.iterdir()} == made and 0 < index.drift <= module.FOLD
    ids, scores = exact(range(20, 525), QUERIES, 30)
    for row, expected, score in zip(index.search(QUERIES, 30), ids, scores, strict=True):
        np.testing.assert_array_equal(row[0], expected)
        np.testing.assert_allclose(row[1], score, atol=1e-5)
    assert len(index.search(QUERIES, 10_000)[0][0]) == 505
    more = grow(later, range(600, 640))
    folded = open_index(more, UID, metric="cosine", kind=kind)
    assert folded.drift == 0 and {path.name for path in cache.iterdir()} != made
    # The older version still has its own.
    before = open_index(table, UID, metric="cosine", kind=kind)
    assert before.drift == 0 and len(before.search(QUERIES, 10_000)[0][0]) == 500


def test_the_nearest_removed_are_passed_over(tmp_path, cache):
    table = grow(Table.create(tmp_path / "t2", DIMENSIONS), range(1000))
    open_index(table, UID, metric="cosine")
    (nearest,) = exact(range(1000), QUERIES[:1], 90)[0]
    index = open_index(table.delete(nearest), UID, metric="cosine")
    assert index.drift == 0.09
    rest = sorted(set(range(1000)) - set(nearest.tolist()))
    np.testing.assert_array_equal(index.search(QUERIES[:1], 5)[0][0], exact(rest, QUERIES[:1], 5)[0][0])


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_a_flipped_byte_is_found_and_mended(table, cache, kind):
    before = open_index(table, UID, metric="cosine", kind=kind).search(QUERIES, 10)
    (home,) = cache.iterdir()
    assert check_base_indexes(UID) == []
    for path in sorted(home.iterdir()):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        assert any(str(home) in line and "\n" not in line for line in check_base_indexes(UID))
        with pytest.warns(RuntimeWarning, match="damaged index"):
            index = open_index(table, UID, metric="cosine", kind=kind)
        for one, other in zip(before, index.search(QUERIES, 10), strict=True):
            np.testing.assert_array_equal(one[0], other[0])
        assert check_base_indexes(UID) == []
    for path in sorted(home.iterdir()):
        path.write_bytes(b"")
        with pytest.warns(RuntimeWarning, match="damaged index"):
            open_index(table, UID, metric="cosine", kind=kind)
    (home / "sums").unlink()
    with pytest.warns(RuntimeWarning, match="damaged index"):
        open_index(table, UID, metric="cosine", kind=kind)


def test_the_cache_is_private_and_small(table, cache):
    cache.mkdir(parents=True, mode=0o755)
    for more in range(4):
        table = grow(table, range(1000 * (more + 1), 1000 * (more + 1) + 300))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            open_index(table, UID, metric="cosine")
    assert cache.stat().st_mode & 0o777 == 0o700
    assert len(list(cache.iterdir())) == 2


def test_settings_do_not_mix(table, cache):
    open_index(table, UID, metric="cosine")
    l2 = open_index(table, UID, metric="l2")
    np.testing.assert_array_equal(l2.search(QUERIES, 3)[0][0], exact(range(500), QUERIES, 3, "l2")[0][0])


def test_without_a_usable_cache_it_lives_in_memory(table, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "file"))
    with pytest.warns(RuntimeWarning, match="index not stored"):
        index = open_index(table, UID, metric="cosine")
    np.testing.assert_array_equal(index.search(QUERIES, 3)[0][0], exact(range(500), QUERIES, 3)[0][0])


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_an_index_that_another_process_clears_at_once_is_used_all_the_same(table, cache, monkeypatch, kind):
    cleared = []

    def clear(own):
        """Do what another process does that has made a newer one: this one is old there."""
        cleared.extend(own._folder.glob("v*"))
        for folder in own._folder.glob("v*"):
            shutil.rmtree(folder)
        return []

    monkeypatch.setattr(IndexCache, "folders", clear)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        index = open_index(table, UID, metric="cosine", kind=kind)
        found = index.search(QUERIES, 3)
    assert cleared and not list(cache.glob("v*"))
    if kind == "flat":
        np.testing.assert_array_equal([each.ids for each in found], exact(range(500), QUERIES, 3)[0])
    monkeypatch.undo()


def test_an_empty_table_and_odd_names(tmp_path, cache):
    empty = Table.create(tmp_path / "e", DIMENSIONS)
    for kind in ("flat", "ivf"):
        assert len(open_index(empty, UID, metric="cosine", kind=kind).search(QUERIES[:1], 5)[0][0]) == 0
    with pytest.raises(BadInput, match="use auto, flat or ivf"):
        open_index(empty, UID, metric="cosine", kind="tree")
    with pytest.raises(Damaged, match="32 hexadecimal"):
        open_index(empty, "../../etc", metric="cosine")


def test_vectors_of_half_the_size_are_found_by_what_was_stored(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("uptake.store.passages.index_cache._BLOCK", 1000)
    stored = vectors_of(range(3000)).astype(np.float16).astype(np.float32)
    for metric in ("cosine", "l2"):
        table = grow(Table.create(tmp_path / metric, DIMENSIONS, precision="float16"), range(3000))
        np.testing.assert_array_equal(table.vectors(range(3000)), stored)
        scores = QUERIES.astype(np.float64) @ stored.T.astype(np.float64)
        if metric == "l2":
            scores = -((QUERIES[:, None].astype(np.float64) - stored[None]) ** 2).sum(axis=2)
        best = np.argsort(-scores, axis=1, kind="stable")
        flat = open_index(table, UID, metric=metric, kind="flat").search(QUERIES, 10)
        lists = open_index(table, UID, metric=metric, kind="ivf")
        assert lists.base.vectors.dtype == np.float16
        deep = lists.search(QUERIES, 400)  # a tenth and more of the rows: searched exactly, in blocks
        for found, k in ((flat, 10), (deep, 400)):
            for row, order, own in zip(found, best, scores, strict=True):
                assert len(set(row.ids.tolist())) == k  # near ties may change places
                np.testing.assert_allclose(row.scores, own[order[:k]], atol=1e-5)
                np.testing.assert_allclose(row.scores, own[row.ids], atol=1e-5)
        near = lists.search(QUERIES, 10)
        recall = np.mean([np.isin(row.ids, order[:10]).mean() for row, order in zip(near, best, strict=True)])
        assert recall >= 0.95
        for one, other in zip(near, flat, strict=True):  # the same scores, bit for bit, whatever found them
            known = dict(zip(other.ids.tolist(), other.scores.tolist(), strict=True))
            assert all(known.get(key, score) == score for key, score in zip(*one[:2], strict=True))


def test_what_half_the_size_cannot_hold_is_refused(tmp_path):
    table = Table.create(tmp_path / "t", 2, precision="float16")
    with pytest.raises(BadInput, match="70000, float16 at most 65504: store vectors as float32"):
        table.append([Passage(1, "text")], np.array([[70_000, 1]], np.float32))
    assert table.count == 0


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_many_lists_are_made_by_groups(tmp_path, cache, monkeypatch, metric):
    table = grow(Table.create(tmp_path / "large", DIMENSIONS), range(12_000))
    monkeypatch.setattr("uptake.store.passages.lists.GROUPED", 100)
    index = open_index(table, UID, metric=metric, kind="ivf", threads=1)
    ivf = index.base.ivf
    assert ivf.nlist == ivf.quantizer.ntotal == 300 and ivf.ntotal == 12_000
    rows = vectors_of(range(12_000))
    centroids = ivf.quantizer.reconstruct_n(0, 300)
    nearest = (
        np.argmax(rows @ centroids.T, 1)
        if metric == "cosine"
        else np.argmin(((rows**2).sum(1)[:, None] - 2 * rows @ centroids.T) + (centroids**2).sum(1), 1)
    )
    lists = np.empty(12_000, np.int64)
    for number in range(300):
        lists[faiss.rev_swig_ptr(ivf.invlists.get_ids(number), ivf.invlists.list_size(number))] = number
    assert (lists == nearest).mean() > 0.9  # the others lie in a list of another group
    ids, scores = exact(range(12_000), QUERIES, 10, metric)
    found = index.search(QUERIES, 10)
    recall = np.mean([np.isin(row.ids, best).mean() for row, best in zip(found, ids, strict=True)])
    assert recall >= 0.95
    for row, best, own in zip(found, ids, scores, strict=True):
        known = dict(zip(best.tolist(), own.tolist(), strict=True))
        for key, score in zip(row.ids.tolist(), row.scores.tolist(), strict=True):
            assert abs(known.get(key, score) - score) < 1e-5


def test_many_lists_of_few_dimensions_are_made_by_groups(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("uptake.store.passages.lists.GROUPED", 10)
    rows = np.random.default_rng(0).standard_normal((3000, 16), dtype=np.float32)
    table = Table.create(tmp_path / "few", 16).append([Passage(n, f"text {n}") for n in range(3000)], rows)
    index = open_index(table, UID, metric="l2", kind="ivf", threads=1)
    assert index.base.ivf.nlist == 75
    for row, (found, *_) in enumerate(index.search(rows[:50], 1)):
        assert found.tolist() == [row]


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_many_new_rows_are_found_by_their_codes(tmp_path, cache, monkeypatch, metric):
    table = grow(Table.create(tmp_path / "t", DIMENSIONS), range(11_500))
    base = open_index(table, UID, metric=metric, kind="ivf", threads=1).base
    later = grow(table, range(20_000, 21_100)).delete([3, 20_007])
    monkeypatch.setattr(module, "_LEAST", 100)
    exactly = open_index(later, UID, metric=metric, kind="ivf", threads=1, base=base)
    exactly.prepare()
    monkeypatch.setattr(module, "_CODED", 1000)
    coded = open_index(later, UID, metric=metric, kind="ivf", threads=1, base=base)
    assert coded.base is base and coded._fresh_codes.ntotal == 1099 and exactly._fresh_codes is None
    kept = [key for key in [*range(11_500), *range(20_000, 21_100)] if key not in (3, 20_007)]
    ids, _ = exact(kept, QUERIES, 5, metric)
    new = np.setdiff1d(ids, np.arange(11_500))
    assert len(new) > 5  # so that what is claimed of them is tried
    found, other = coded.search(QUERIES, 5), exactly.search(QUERIES, 5)
    for row, same, best in zip(found, other, ids, strict=True):
        known = dict(zip(same.ids.tolist(), same.scores.tolist(), strict=True))
        assert all(known.get(key, score) == score for key, score in zip(*row[:2], strict=True))
        assert np.isin(best[best >= 20_000], row.ids).all()
    own = coded.search(vectors_of(range(20_010, 20_050)), 1)  # each is found at once
    assert [row.ids[0] for row in own] == list(range(20_010, 20_050))
    deep = coded.search(QUERIES[:1], 12_000)[0].ids
    assert set(deep.tolist()) <= set(kept) and len(set(deep.tolist())) == 12_000
