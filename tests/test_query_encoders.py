"""Query encoders over a store that stays as it is, and searches by the sum of words and vectors."""

import numpy as np
import pytest

from tests.stubs import StubEncoder
from uptake.errors import BadInput, Damaged, Mismatch
from uptake.retrievers.candidates import candidates
from uptake.retrievers.query_encoder import QueryMap
from uptake.retrievers.training import Asked, Tuning, train
from uptake.store import Datastore, QueryText
from uptake.tasks.questions import Question
from uptake.text.overlap import LeakFilter
from uptake.text.types import Chunking, Document

WORDS = [
    "pump",
    "valve",
    "motor",
    "sensor",
    "filter",
    "blade",
    "drum",
    "belt",
    "gear",
    "shaft",
    "rotor",
    "fan",
    "coil",
    "lamp",
    "fuse",
    "plug",
]


def documents(count=40, seed=0):
    draw = np.random.default_rng(seed)
    return [Document(f"d{n}", " ".join(draw.choice(WORDS, 12)) + f" part{n}") for n in range(count)]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    made = Datastore.create(tmp_path / "s.store", encoder=StubEncoder(), chunking=Chunking(4096))
    made.add(documents())
    return made


def a_map(store, seed=0, size=0.5):
    width = store.view.dimensions
    matrix = np.random.default_rng(seed).standard_normal((width, width)).astype(np.float32) * size
    return QueryMap(store.view.encoder_fingerprint, matrix, "by hand")


def files(path):
    return {each.name: each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


def test_the_sum_is_bm25_and_the_weighed_cosine_of_every_passage(store):
    query = "pump valve part7"
    found = store.searched("sum", 3.0).search([query], 10)[0]
    ids = sorted(key for some in store.passages_of([f"d{n}" for n in range(40)]).values() for key in some)
    dense = store.vectors(ids).astype(np.float64) @ store.query_vectors([query])[0]
    words = dict(
        zip(
            *(values.tolist() for values in store.searched("lexical").search([query], 40)[0][:2]), strict=True
        )
    )
    totals = {key: words.get(key, 0.0) + 3 * score for key, score in zip(ids, dense.tolist(), strict=True)}
    best = sorted(totals, key=lambda key: -totals[key])[:10]
    assert found.ids.tolist() == best
    np.testing.assert_allclose(found.scores, [totals[key] for key in best], rtol=1e-5)
    assert len(words) < 40, "some passages are found by vectors alone"


def test_a_passage_s_words_count_the_same_among_few_as_among_all(store):
    every = store.searched("lexical").search(["valve part3 gear"], 40)[0]
    some = every.ids.tolist()[::3]
    np.testing.assert_allclose(store.word_scores("valve part3 gear", some), every.scores[::3], rtol=1e-6)
    assert store.word_scores("nothing here", some).tolist() == [0.0] * len(some)


def test_a_map_of_zeros_changes_nothing(store):
    still = QueryMap(store.view.encoder_fingerprint, np.zeros((16, 16), np.float32))
    plain, same = (s.search(["pump motor"], 8)[0] for s in (store, store.searched(query_encoder=still)))
    assert plain.ids.tolist() == same.ids.tolist()


def test_a_query_encoder_turns_queries_and_leaves_the_store_alone(store, tmp_path):
    path = tmp_path / "s.store"
    before, vectors = files(path), store.vectors(store.search(["pump"], 5)[0].ids.tolist())
    own = a_map(store, size=2.0)
    turned = Datastore.open(path, encoder=StubEncoder(), search_by="dense", query_encoder=own)
    found = turned.search(["pump motor"], 40)[0]
    expected = own.turned(StubEncoder().embed(["pump motor"]))[0] @ turned.vectors(found.ids.tolist()).T
    np.testing.assert_allclose(found.scores, expected, atol=1e-5)
    assert found.ids.tolist() != store.searched("dense").search(["pump motor"], 40)[0].ids.tolist()
    assert files(path) == before
    assert np.array_equal(vectors, turned.vectors(store.search(["pump"], 5)[0].ids.tolist()))


def test_every_way_of_searching_has_its_own_contents(store):
    ways = [
        store,
        store.searched("dense"),
        store.searched("sum"),
        store.searched("sum", 3.0),
        store.searched(query_encoder=a_map(store)),
        store.searched(query_encoder=a_map(store, 1)),
    ]
    assert len({way.contents for way in ways}) == len(ways)
    assert store.searched().contents == store.contents
    assert ways[4].info()["query_encoder"] == a_map(store).fingerprint
    assert ways[3].info()["vector_weight"] == "3"


def test_a_given_vector_searches_under_the_same_leak_filter(store):
    text = documents()[5].text
    leak = LeakFilter()
    (source,) = store.searched("dense").sources([QueryText(text, "d5", "", text)], leak)
    vector = store.vectors(store.passages_of(["d5"])["d5"])[0]
    found = source.with_vector(vector).search(40)
    assert "d5" not in {p.document for p in found.passages}
    assert found.withheld >= 1
    other = store.vectors(store.passages_of(["d9"])["d9"])[0]
    assert source.with_vector(other).search(1).passages[0].document == "d9"
    with pytest.raises(BadInput, match="shape"):
        source.with_vector(vector[:3])


def test_an_encoder_of_another_width_or_kind_is_refused_in_a_line(store, tmp_path):
    narrow = QueryMap(store.view.encoder_fingerprint, np.zeros((8, 8), np.float32))
    with pytest.raises(Mismatch, match="16 dimensions") as caught:
        store.searched(query_encoder=narrow)
    assert "\n" not in str(caught.value)
    with pytest.raises(Mismatch, match="was trained for another"):
        store.searched(query_encoder=QueryMap("another", np.zeros((16, 16), np.float32)))
    lexical = Datastore.create(tmp_path / "l.store", retriever="lexical")
    with pytest.raises(BadInput, match="lexical"):
        Datastore.open(tmp_path / "l.store", query_encoder=a_map(store))
    with pytest.raises(BadInput, match="needs vectors"):
        lexical.searched("sum")
    with pytest.raises(BadInput, match="search by 'near'"):
        store.searched("near")


def test_its_file_gives_it_back_and_is_checked(store, tmp_path):
    own, path = a_map(store), tmp_path / "q.safetensors"
    own.save(path)
    again = QueryMap.load(path)
    assert (again.fingerprint, again.trained, again.dimensions) == (own.fingerprint, "by hand", 16)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(Damaged):
        QueryMap.load(path)
    with pytest.raises(BadInput, match="no query-encoder at"):
        QueryMap.load(tmp_path / "none")


def test_training_finds_a_turn_that_the_questions_share():
    """Questions are passages under one rotation: supervised tuning learns to turn them back."""
    draw = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(draw.standard_normal((12, 12)))
    passages = draw.standard_normal((60, 12))
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    asked = [
        Asked(
            (passages[n] @ rotation).astype(np.float32),
            passages.astype(np.float32),
            np.zeros(60, np.float32),
            np.arange(60) == n,
        )
        for n in range(60)
    ]
    tuning = Tuning("contrastive", learning_rate=0.03, passes=30, batch=10)
    trained = train(asked[:45], "e", tuning, asked[45:])
    assert trained.training[-1] < trained.training[0] / 3

    def right(encoder):
        found = encoder.turned(np.stack([one.vector for one in asked[45:]])) @ passages.T
        return (found.argmax(1) == np.arange(45, 60)).mean()

    still = QueryMap("e", np.zeros((12, 12), np.float32))
    assert right(trained.encoder) > right(still) + 0.4
    again = train(asked[:45], "e", tuning, asked[45:])
    assert again.encoder.fingerprint == trained.encoder.fingerprint, "the same seed, the same encoder"


def test_what_a_loss_lacks_is_said(store):
    questions = [Question("q", "pump part3", ("part3",), "d3"), Question("r", "gear", ("none",), "no such")]
    found = candidates(store, questions, each=3, with_right=True)
    assert found[0].gold.sum() == 1 and not found[1].gold.any()
    asked = [one.asked() for one in found]
    with pytest.raises(BadInput, match="no reader's word"):
        train(asked, store.view.encoder_fingerprint, Tuning("pdist"))
    with pytest.raises(BadInput, match="attention"):
        train(asked, store.view.encoder_fingerprint, Tuning("adist"))
    with pytest.raises(BadInput, match="right passage among them"):
        train(asked[1:], store.view.encoder_fingerprint, Tuning("contrastive"))
    with pytest.raises(BadInput, match="use emdr2"):
        Tuning("adhoc")
