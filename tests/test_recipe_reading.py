"""The recipe for reading from neighbours: sharing what parts have learnt is taking each way up by itself."""

from pathlib import Path

import numpy as np
import pytest
import torch

import toys
from recipes.reading_settings import Asked, Drawn, Mixture, Observed, Subject, both
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.trainable import Top
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.methods.in_context import InContext
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.store import Datastore
from uptake.text.types import Chunking, Document

TEXTS = [f"the {a} {b} sat on the {c}. " * 4 for a, b, c in [
    ("old", "cat", "mat"), ("wet", "dog", "hill"), ("red", "fish", "sea"), ("fat", "hen", "box"),
]]  # fmt: skip
FINETUNE = Finetune(trainable=Top(1), optimizer=AdamW(learning_rate=1e-2))


@pytest.fixture(name="asked")
def asked_fixture(tmp_path: Path) -> list[Asked]:
    lm = toys.lm(dtype=torch.float64)
    store = Datastore.create(tmp_path / "s", retriever="lexical", chunking=Chunking(48))
    store.add([Document(str(place), text) for place, text in enumerate(TEXTS)])
    store.read_tokens(TokenKeyer(lm))
    texts = ("the old dog sat on the cat, and the red hen on it", "the wet fish sat on the box on the hill")
    documents = [Document(text, text) for text in texts]
    return [Asked(lm, store, query, 3) for d in documents for query in PerQuery(16, 24).queries(d)]


@pytest.mark.parametrize("passages", ["nearest", "random"])
def test_a_way_of_shared_parts_is_that_way(asked: list[Asked], passages: str) -> None:
    mixture = Mixture(64, 30.0, 0.3, None)
    for one in asked:
        base = one.base[0].log_probs
        for method in (
            FINETUNE, mixture.method("nearest"), mixture.method("random"), InContext(refresh=4),
            both(FINETUNE, mixture.method("nearest")), both(FINETUNE, InContext()),
        ):  # fmt: skip
            found, seconds = one.scored(Subject("", method, passages))
            source = one.source if passages == "nearest" else Drawn(one.source)
            evidence = Evidence(one.found[passages], one.query.own, source, one.query.context)  # type: ignore[arg-type]
            (state,) = method.adapt([method.init(one.model)], one.model, [evidence], Context())
            (alone,) = method.adapted([state], one.model).score([one.segment])
            assert torch.equal(found.log_probs, alone.log_probs) and seconds > 0
            assert not torch.allclose(found.log_probs, base, atol=1e-4)


@pytest.mark.parametrize("draw", ["nearest", "random"])
def test_settings_tried_on_one_search_need_the_bits_that_the_method_needs(
    asked: list[Asked], draw: str
) -> None:
    observed = Observed(asked, draw)
    for trained in (None, FINETUNE):
        subject = trained and Subject("", trained)
        own = [(one.scored(subject)[0] if subject else one.base[0]).log_probs.numpy() for one in asked]
        for reaches in ((None,), (30.0, 100.0)):
            nats, mixture = observed.best(np.concatenate(own), reaches)
            memory = mixture.method(draw)
            way = Subject("", both(trained, memory) if trained else memory)
            assert nats == pytest.approx(
                -sum(one.scored(way)[0].log_probs.sum().item() for one in asked), rel=1e-6
            )
            assert nats < -np.concatenate(own).sum(), "a little of what stands there helps"
