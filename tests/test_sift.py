"""SIFT's choice against one that inverts matrices, and against the published code where it is installed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stubs import StubEncoder
from uptake import api, methods
from uptake.errors import BadInput
from uptake.store.datastore import Datastore
from uptake.text.overlap import LeakFilter
from uptake.text.select import Nearest, Sift, sift
from uptake.text.types import Document, Found, Passage


def left(points: NDArray, query: NDArray, chosen: Sequence[int], noise: float) -> float:
    """The variance at the query once the chosen rows were seen, by inverting their matrix."""
    seen = points[list(chosen)]
    kernel = seen @ seen.T + noise * np.eye(len(seen))
    return float(query @ query - (seen @ query) @ np.linalg.inv(kernel) @ (seen @ query))


def check(points: NDArray, query: NDArray, chosen: Sequence[int], noise: float, repeats: bool) -> None:
    """Every choice leaves as little variance as any other could."""
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    query = query / np.linalg.norm(query)
    for n, best in enumerate(chosen):
        free = [i for i in range(len(points)) if repeats or i not in chosen[:n]]
        after = {i: left(points, query, [*chosen[:n], i], noise) for i in free}
        lowest = min(after.values())
        assert after[best] <= lowest + 1e-9


@settings(max_examples=60)
@given(
    st.integers(0, 10_000),
    st.integers(1, 30),
    st.integers(2, 12),
    st.integers(1, 12),
    st.sampled_from([1e-3, 0.01, 1.0]),
    st.booleans(),
)
def test_each_choice_is_the_best_one(
    seed: int, rows: int, dimensions: int, count: int, noise: float, repeats: bool
) -> None:
    draw = np.random.default_rng(seed)
    points, query = draw.standard_normal((rows, dimensions)), draw.standard_normal(dimensions)
    points[rows // 2 :] += query  # some near, some far
    chosen = sift(points, query, count, noise, repeats=repeats)
    assert len(chosen) == (count if repeats else min(count, rows))
    assert repeats or len(set(chosen)) == len(chosen)
    check(points, query, chosen, noise, repeats)
    # Fewer are the first of more, whatever their lengths.
    assert (
        sift(3 * points.astype(np.float64), query / 7, max(1, count // 2), noise, repeats=repeats)
        == (chosen[: max(1, count // 2)])
    )


def test_the_same_fact_is_not_read_twice() -> None:
    query = np.array([1.0, 0.9, 0.0])
    same, other, apart = [1.0, 0.2, 0.0], [0.2, 1.0, 0.0], [0.0, 0.0, 1.0]
    points = np.array([same, same, same, other, apart])
    assert sift(points, query, 2) == [0, 3]
    nearness = points @ query / np.linalg.norm(points, axis=1)
    assert nearness[:3].min() > nearness[3:].max(), "the three copies are the nearest"
    # Forbidden a second look, it takes the copies before what tells nothing, and ends there.
    assert sift(points, query, 9, repeats=False) == [0, 3, 1, 2]


def test_a_text_is_chosen_again_where_that_tells_most() -> None:
    points = np.array([[1.0, 0.0], [0.1, 1.0]])
    query = np.array([1.0, 0.0])
    assert sift(points, query, 3, regularisation=1.0) == [0, 0, 0]
    assert sift(points, query, 3, regularisation=1.0, repeats=False) == [0, 1]


def test_nothing_to_choose_from() -> None:
    assert sift(np.zeros((0, 4)), np.ones(4), 3) == []
    assert sift(np.ones((3, 4)), np.zeros(4), 3) == []
    assert sift(np.zeros((3, 4)), np.ones(4), 3) == []


def test_alpha_ends_where_uncertainty_stays_above_its_bound() -> None:
    draw = np.random.default_rng(3)
    points, query = draw.standard_normal((50, 8)), draw.standard_normal(8)
    whole = sift(points, query, 30)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    goal = query / np.linalg.norm(query)
    for alpha in (0.1, 1.0, 3.0):
        stops = [n for n in range(1, 31) if left(unit, goal, whole[:n], 0.01) ** 0.5 > 1 / (alpha * n)]
        assert sift(points, query, 30, alpha=alpha) == whole[: stops[0] if stops else 30]


def test_the_choice_is_the_published_codes() -> None:
    published = pytest.importorskip("activeft.sift", reason="needs activeft")
    import faiss

    for seed in range(5):
        draw = np.random.default_rng(seed)
        points = draw.standard_normal((80, 24)).astype(np.float32)
        query = (points[:5].sum(0) + draw.standard_normal(24)).astype(np.float32)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        query /= np.linalg.norm(query)
        index = faiss.IndexFlatIP(24)
        index.add(points)
        retriever = published.Retriever(index, llambda=0.01, also_query_opposite=False)
        _, expected, _, _ = retriever.search(query[None], N=40, K=60)
        candidates = np.argsort(-(points @ query), kind="stable")[:60]
        ours = candidates[sift(points[candidates], query, 40)]
        assert ours.tolist() == expected.tolist()


class Two:
    """A source of copies of one text, nearest first, and another text behind them."""

    found = Found(
        tuple(Passage(i, f"text {i}") for i in range(4)),
        (4.0, 3.0, 2.0, 1.0),
        (0.1, 0.2, 0.3, 0.4),
        (0.5, 0.6, 0.7, 0.8),
        5,
    )

    def search(self, k: int) -> Found:
        return self.found.part(0, k)

    def sample(self, k: int, generator: np.random.Generator) -> Found:
        return self.found.part(0, k)

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float32]:
        every = [[1.0, 0.2], [1.0, 0.2], [1.0, 0.2], [0.2, 1.0]]
        return np.array([every[i] for i in ids], np.float32)

    def query_vector(self) -> NDArray[np.float32]:
        return np.array([1.0, 1.0], np.float32)


def test_passages_come_in_the_order_of_choice_with_their_own_scores() -> None:
    found = Sift(repeats=False).choose(Two(), 3, np.random.default_rng(0))
    assert [passage.id for passage in found.passages] == [0, 3, 1]
    assert (found.scores, found.overlaps, found.withheld) == ((4.0, 1.0, 3.0), (0.1, 0.4, 0.2), 5)
    assert found.letters == (0.5, 0.8, 0.6)
    # What the candidates leave out is not chosen.
    few = Sift(candidates=3, repeats=False).choose(Two(), 3, np.random.default_rng(0))
    assert [passage.id for passage in few.passages] == [0, 1, 2]


@pytest.mark.parametrize(
    ("words", "make"),
    [
        ("candidates 0", lambda: Sift(candidates=0)),
        ("regularisation 0", lambda: Sift(regularisation=0)),
        ("regularisation nan", lambda: Sift(regularisation=float("nan"))),
        ("alpha -1", lambda: Sift(alpha=-1)),
        ("set candidates to 300", lambda: Sift().choose(Two(), 300, np.random.default_rng(0))),
        ("k is 0", lambda: Sift().choose(Two(), 0, np.random.default_rng(0))),
    ],
)
def test_what_cannot_be_is_refused(words: str, make) -> None:
    with pytest.raises(BadInput, match=words):
        make()


def test_on_a_store_the_copies_of_a_neighbour_wait(tmp_path: Path) -> None:
    store = Datastore.create(tmp_path / "s", retriever="dense", encoder=StubEncoder(32))
    texts = [" ".join(f"w{word}" for word in np.random.default_rng(i).integers(0, 40, 12)) for i in range(60)]
    store.add([Document(str(i), text) for i, text in enumerate(texts) if i])
    store.add([Document(f"copy {i}", f"{texts[0]} x{i}") for i in range(5)])
    source = store.source(texts[0], leak=LeakFilter.off())
    near = Nearest().choose(source, 5, np.random.default_rng(0))
    sifted = Sift(candidates=40, repeats=False).choose(source, 5, np.random.default_rng(0))
    told = [sum("copy" in passage.document for passage in found.passages) for found in (near, sifted)]
    assert told[0] == 5 > told[1] >= 1
    vectors = store.vectors([passage.id for passage in source.search(40).passages])
    order = sift(vectors, source.query_vector(), 5, repeats=False)
    assert [p.id for p in sifted.passages] == [source.search(40).passages[i].id for i in order]


def test_a_lexical_store_is_refused(tmp_path: Path) -> None:
    store = Datastore.create(tmp_path / "s", retriever="lexical")
    store.add([Document("1", "amber birch")])
    with pytest.raises(BadInput, match=r"SIFT needs vectors.*--retriever dense or hybrid"):
        Sift().choose(store.source("amber"), 1, np.random.default_rng(0))


def test_settings_reach_the_selection() -> None:
    chosen = api.method_specs(
        ["ttt-nn", "sift"], ["candidates=100", "learning_rate=1e-3", "sift.alpha=2", "select.repeats=false"]
    )
    assert chosen["sift"].select == Sift(100, 0.01, 2.0, False) and chosen["ttt-nn"].select == Nearest()
    assert all(way.method.optimizer.learning_rate == 1e-3 for way in chosen.values())
    assert methods.find("sift").select == Sift()
    assert api.method_specs(["sift"], ["sift.select.candidates=70"])["sift"].select == Sift(70)
    with pytest.raises(BadInput, match="did you mean 'candidates'"):
        api.method_specs(["base", "sift"], ["candidate=100"])
    with pytest.raises(BadInput, match="did you mean 'candidates'"):
        api.method_specs(["sift"], ["sift.candidate=100"])
    with pytest.raises(BadInput, match="candidates 0"):
        api.method_specs(["sift"], ["candidates=0"])
