"""Neighbours missing, not the model's, or gone: refused or masked by every method that reads them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import toys
from test_retro_method import ids_of, untrained
from uptake.errors import BadInput, Mismatch
from uptake.lm.base import LM, Segment
from uptake.methods.contract.composed import combine
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Evidence, Method, MethodSpec
from uptake.methods.finetune import Finetune
from uptake.methods.knn_lm import KnnLm
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.methods.knn_lm.weights import Constant
from uptake.store import Datastore
from uptake.text.types import Chunking, Document, Found

DOCUMENTS = [
    Document("a", "the cat sat on the mat and the dog sat on the cat"),
    Document("b", "one fish and one more fish swam in the red red sea"),
    Document("c", "the hen ran up the hill to fetch a pail of water"),
]
TEXT = "the dog and the cat sat on the hill and one fish sat too"
LENGTH = 4  # tokens of a chunk


def beside(**part: Method[Any]) -> Method[Any]:
    """Return what trains weights with another method beside it."""
    ((name, method),) = part.items()
    trains = MethodSpec(Finetune.example())
    return combine({"ttt-nn": trains, name.replace("_", "-"): MethodSpec(method)}).method


def reading(name: str, lm: LM) -> Method[Any]:
    memory = {"neighbours": 6, "temperature": 30.0, "weight": Constant(0.4)}
    made: dict[str, Method[Any]] = {
        "retro": untrained(lm),
        "retro-random": untrained(lm, draw="random"),
        "ttt-nn+retro": beside(retro=untrained(lm)),
        "knn-lm": KnnLm(**memory),  # type: ignore[arg-type]
        "knn-lm-random": KnnLm(**memory, draw="random"),  # type: ignore[arg-type]
        "retomaton": KnnLm(**memory, pointers=1),  # type: ignore[arg-type]
        "ttt-nn+knn-lm": beside(knn_lm=KnnLm(**memory)),  # type: ignore[arg-type]
    }
    return made[name]


METHODS = ("retro", "retro-random", "ttt-nn+retro", "knn-lm", "knn-lm-random", "retomaton",
           "ttt-nn+knn-lm")  # fmt: skip


def store_of(path: Path, lm: LM, documents: list[Document]) -> Datastore:
    store = Datastore.create(path, retriever="lexical", chunking=Chunking(64))
    store.add(documents)
    return read(store, lm)


def read(store: Datastore, lm: LM, **settings: Any) -> Datastore:
    store.read_tokens(TokenKeyer(lm), fresh=bool(settings))
    store.read_chunks(lm.tokenizer, **{"length": LENGTH, **settings})
    return store


def over(method: Method[Any], lm: LM, store: Datastore, document: str = "query") -> LM:
    evidence = Evidence(Found(), "so ", store.source("so ", document_id=document))
    (state,) = method.adapt([method.init(lm)], lm, [evidence], Context())
    return method.adapted([state], lm)


def told(model: LM, text: str = TEXT) -> Tensor:
    with torch.no_grad():
        return model.step(ids_of(model, text))[0]


LATER = Document("d", "no cat, no dog, no fish: nothing of what was there before")


@dataclass(frozen=True)
class Stores:
    """Stores that the toy has read; nothing more is written to any of them."""

    alike: Datastore  # of all documents
    fresh: Datastore  # of what is left at the end, in other chunks
    own: Datastore  # of one document
    none: Datastore
    gone: Datastore  # of one document that was taken away


@pytest.fixture(name="stores", scope="module")
def stores_fixture(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    lm, here = toys.lm(dtype=torch.float64), tmp_path_factory.mktemp("stores")
    fresh = store_of(here / "fresh", lm, [DOCUMENTS[1], LATER])
    gone = store_of(here / "gone", lm, DOCUMENTS[:1])
    gone.remove(["a"])
    return Stores(
        store_of(here / "alike", lm, DOCUMENTS),
        read(fresh, lm, length=LENGTH + 1, fresh=True),
        store_of(here / "own", lm, DOCUMENTS[:1]),
        store_of(here / "none", lm, []),
        gone,
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_store_made_anew_under_a_running_model_changes_nothing_for_it(
    name: str, stores: Stores, tmp_path: Path
) -> None:
    lm = toys.lm(dtype=torch.float64)
    method = reading(name, lm)
    store = store_of(tmp_path / "s", lm, DOCUMENTS)
    alike = over(method, lm, stores.alike)
    running = over(method, lm, store)
    assert torch.equal(told(running), told(alike))
    with_cache = running.start()
    with torch.no_grad():
        _, with_cache = running.step(ids_of(lm, TEXT)[:, :20], with_cache)
    other = Datastore.open(store.path)
    other.remove(["a", "c"], purge=True)
    other.add([LATER])
    read(other, lm, length=LENGTH + 1, fresh=True)
    # What was looked for before and what never was, from the start and from a cache.
    assert torch.equal(told(running), told(alike))
    assert torch.equal(told(running, TEXT[::-1]), told(alike, TEXT[::-1]))
    with torch.no_grad():
        rest, _ = running.step(ids_of(lm, TEXT)[:, 20:], with_cache)
    if name != "retomaton":  # whose pointers begin where a call does
        assert torch.allclose(rest, told(alike)[:, 20:], atol=1e-10)
    # Whoever opens it now reads what is there now, and nothing else.
    now = over(method, lm, Datastore.open(store.path))
    if not name.endswith("random"):
        assert torch.allclose(told(now), told(over(method, lm, stores.fresh)), atol=1e-10)
    assert not torch.allclose(told(now), told(running), atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_where_no_neighbour_is_left_it_is_the_base_bit_for_bit(name: str, stores: Stores) -> None:
    lm = toys.lm(dtype=torch.float64)
    method = reading(name, lm)
    # All there is was written by who asks; or there is nothing at all.
    own, none, gone = (
        over(method, lm, stores.own, "a"),
        over(method, lm, stores.none),
        over(method, lm, stores.gone),
    )
    for model in (own, none, gone):
        assert torch.equal(told(model), told(lm))
        (found,), (base,) = (one.score([Segment(TEXT, "so ")]) for one in (model, lm))
        assert torch.equal(found.log_probs, base.log_probs)
        assert model.generate("the cat", 12) == lm.generate("the cat", 12)


@pytest.mark.parametrize("name", METHODS)
def test_a_corpus_shorter_than_a_chunk_is_read_as_far_as_it_goes(name: str, tmp_path: Path) -> None:
    lm = toys.lm(dtype=torch.float64)
    method = reading(name, lm)
    # Two tokens; more neighbours are asked for than there are, and none is the last row of a table.
    model = over(method, lm, store_of(tmp_path / "s", lm, [Document("short", "on")]))
    found = told(model, "on " * 8)
    assert torch.isfinite(found).all() and not torch.equal(found, told(lm, "on " * 8))
    assert torch.allclose(found.exp().sum(-1), torch.ones(1, dtype=torch.float64), atol=1e-9)
    assert torch.isfinite(model.score([Segment("on on on on", "so ")])[0].log_probs).all()


def test_retro_learns_from_a_corpus_shorter_than_a_chunk_what_can_be_learnt(tmp_path: Path) -> None:
    lm = toys.lm(dtype=torch.float64)
    store = store_of(tmp_path / "s", lm, [Document("short", "on")])
    method = untrained(lm, episode_tokens=20)
    texts = (Document("x", "on " * 8), Document("y", "a"))
    sources = lambda d: store.source("", document_id=d.id)  # noqa: E731
    episodes = method.episodes(lm, TrainingData(texts, sources=sources))
    assert method.trained is not None
    for episode in episodes:
        loss, gradients = method.gradients(method.trained.requires_grad_(), lm, episode)
        assert loss == loss and all(g is None or bool(torch.isfinite(g).all()) for g in gradients)
    with pytest.raises(BadInput, match="no document of more than 4 tokens"):
        method.episodes(lm, TrainingData(texts[1:], sources=sources))


@pytest.mark.parametrize("name", METHODS)
def test_a_view_that_another_model_made_is_refused(name: str, tmp_path: Path) -> None:
    lm = toys.lm(dtype=torch.float64)
    store = Datastore.create(tmp_path / "s", retriever="lexical")
    store.add(DOCUMENTS)
    method = reading(name, lm)
    with pytest.raises(BadInput, match=r"holds no (tokens|chunks)"):
        over(method, lm, store)
    other = toys.lm(seed=3)
    store.read_tokens(TokenKeyer(other))

    class Stranger:
        """Another tokenizer."""

        fingerprint = "another"

        def encode(self, text: str) -> Any:
            return lm.tokenizer.encode(text.upper())

    store.read_chunks(Stranger(), length=LENGTH, name="other")
    with pytest.raises(Mismatch, match=r"(read|cut) by .*, not by this one"):
        over(method, lm, store)
