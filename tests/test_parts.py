"""Parts of a table, each with an index of its own, together find what one index finds; and what is told
where some are missing. All without Ray: test_cluster.py has the real one."""

import sys

import hypothesis.strategies as some
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import toys
from stubs import StubEncoder
from test_evaluate import DOCUMENTS, SMALL, sentence
from test_index import DIMENSIONS, QUERIES, UID, exact, grow, vectors_of
from test_store import make
from uptake import api
from uptake.errors import BadInput, Missing
from uptake.store import Datastore
from uptake.store.cluster import Cluster
from uptake.store.cluster.index import merge
from uptake.store.passages.index import VectorIndex, open_index
from uptake.store.passages.index_cache import IndexCache, check_base_indexes, delete_base_indexes
from uptake.store.passages.table import Table
from uptake.text.types import Document


def parts(table, rows):
    return [table.part(first, first + rows) for first in range(0, table.slots, rows)]


def searched(table, rows, queries, k, **how):
    found = [open_index(part, UID, **how).search(queries, k) for part in parts(table, rows)]
    stacked = [[np.stack([getattr(each, of) for each in one]) for one in found] for of in ("ids", "scores")]
    return merge(*stacked, k, 1.0)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    pieces=some.lists(some.integers(1, 20), min_size=1, max_size=5),
    gone=some.sets(some.integers(0, 60)),
    rows=some.integers(1, 30),
)
def test_every_row_lies_in_one_part_and_only_a_piece_that_goes_moves_any(
    tmp_path_factory, pieces, gone, rows
):
    table = Table.create(tmp_path_factory.mktemp("t") / "t", DIMENSIONS)
    written = []
    for count in pieces:
        piece = range(table.slots, table.slots + count)
        table = grow(table, piece)
        written += piece if set(piece) - gone else []
    total = table.slots
    gone = {key for key in gone if key < total}
    later = grow(table.delete(gone), range(total, total + 5))
    written += range(total, total + 5)
    for number, part in enumerate(parts(later, rows)):
        left = [key for key in written[number * rows : (number + 1) * rows] if key not in gone]
        assert part.ids.tolist() == left and part.count == len(left)
        assert [passage.id for passage in part.rows(left[::-1])] == left[::-1]
        np.testing.assert_array_equal(part.vectors(left), vectors_of(left))
        streamed = np.concatenate([np.empty((0, DIMENSIONS), np.float32), *part.stream_vectors(3)])
        np.testing.assert_array_equal(streamed, vectors_of(left))
    assert sum(part.count for part in parts(later, rows)) == later.count


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_merged_they_find_what_one_finds_bit_for_bit(tmp_path, metric):
    table = grow(Table.create(tmp_path / "t", DIMENSIONS), range(300))
    changed = grow(table.delete(range(5, 12)), range(300, 320))
    for version in (table, changed):  # the second stands on the first one's bases
        whole = open_index(version, UID, metric=metric).search(QUERIES, 12)
        together = searched(version, 128, QUERIES, 12, metric=metric)
        for one, other in zip(whole, together, strict=True):
            np.testing.assert_array_equal(one.ids, other.ids)
            np.testing.assert_array_equal(one.scores, other.scores)
    # 320 rows make three shards: the two full ones keep their bases, the third has grown by too much.
    assert [len(cache.folders()) for cache in IndexCache.of(UID)] == [1, 1, 2, 1]


def test_equal_scores_come_in_the_order_of_their_ids():
    ids, scores = np.array([[7, 3]]), np.array([[1.0, 0.5]], np.float32)
    (found,) = merge([ids, ids - 1], [scores, scores], 3, 0.5)
    assert found.ids.tolist() == [6, 7, 2] and found.coverage == 0.5


def test_inverted_files_of_parts_recall_as_much(tmp_path):
    table = grow(Table.create(tmp_path / "large", DIMENSIONS), range(12_000))
    best, _ = exact(range(12_000), QUERIES, 10)

    def recall(found):
        return np.mean(
            [len(set(a) & set(b.ids.tolist())) / 10 for a, b in zip(best.tolist(), found, strict=True)]
        )

    whole = recall(open_index(table, UID, metric="cosine", kind="ivf", threads=1).search(QUERIES, 10))
    together = recall(searched(table, 5000, QUERIES, 10, metric="cosine", kind="ivf", threads=1))
    assert together >= whole >= 0.95


def test_the_bases_of_parts_are_looked_after(tmp_path):
    table = grow(Table.create(tmp_path / "t", DIMENSIONS), range(50))
    searched(table, 20, QUERIES, 3, metric="cosine")
    (home,) = IndexCache(UID, {}, "rows-20-40").folders()
    assert check_base_indexes(UID) == []
    (home / "ids").write_bytes(b"other")
    assert any(str(home) in line for line in check_base_indexes(UID))
    delete_base_indexes(UID)
    assert not home.parent.parent.exists()


@pytest.mark.parametrize("retriever", ["dense", "hybrid"])
def test_a_report_says_what_share_was_searched(tmp_path, monkeypatch, retriever):
    store = make(tmp_path / "s", retriever=retriever)
    store.add([Document(f"train/{number}", sentence(100 + number)) for number in range(12)])
    whole = VectorIndex.search
    monkeypatch.setattr(
        VectorIndex, "search", lambda *asked: [found._replace(coverage=0.5) for found in whole(*asked)]
    )
    assert [found.coverage for found in store.search(["one", "two"], 3)] == [0.5, 0.5]
    found = store.source("one").search(5)
    assert found.coverage == found.part(0, 2).coverage == found.behind(found.passages).coverage == 0.5
    results = api.compare(toys.lm(), DOCUMENTS, ["random", "in-context"], store=store, k=2, protocol=SMALL)
    assert {row.method: row.coverage for row in results.rows} == {"random": 1.0, "in-context": 0.5}
    assert any(
        "4 of 8 rows searched less than the whole store, 50.0%" in note for note in results.header.notes
    )


def test_what_a_cluster_is_not_is_told(tmp_path, monkeypatch):
    for wrong in ({"rows": 0}, {"replicas": 0}, {"missing": "ignore"}, {"patience": 0}, {"cpus": -1}):
        with pytest.raises(BadInput, match=next(iter(wrong))):
            Cluster(**wrong)
    store = make(tmp_path / "s")
    store.add([Document("a", "some text")])
    far = Datastore.open(tmp_path / "s", encoder=StubEncoder(), cluster=Cluster())
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    with pytest.raises(Missing, match=r"uptake\[ray\]"):
        far.search(["some"], 1)
