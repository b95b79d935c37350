"""On the shared base model and real text: the figures are sound (fast), and reading pays (slow)."""

import math
from itertools import islice
from pathlib import Path

import pytest
import torch

import uptake
from uptake.lm.base import Segment
from uptake.lm.causal import Causal
from uptake.store.datastore import Datastore
from uptake.text.types import Document


@pytest.fixture(scope="module")
def model(shared: Path) -> Causal:
    return uptake.load(str(shared / "models" / "base-5m"))


@pytest.fixture(scope="module")
def peps(shared: Path) -> Path:
    return shared / "data" / "minipile" / "python_peps"


def test_bits_per_byte_is_that_of_a_plain_forward_pass(model: Causal, peps: Path) -> None:
    document = next(uptake.read(peps / "test.jsonl.xz"))
    prefix, target = document.text[:1000], document.text[1000:1800]
    ids = [0, *model.tokenizer.encode(prefix)[0]]
    wanted = model.tokenizer.encode(target)[0]
    whole = torch.tensor([ids + wanted])
    with torch.no_grad():
        logits = model.module(whole[:, :-1]).logits[0, len(ids) - 1 :]
    nll = torch.nn.functional.cross_entropy(logits, torch.tensor(wanted), reduction="sum")
    (scores,) = model.score([Segment(target, prefix)])
    assert scores.bits == pytest.approx(nll.item() / math.log(2), rel=1e-5)
    assert 0.8 < scores.bits / scores.bytes < 3.5, "a trained model on English and code"


def test_reading_its_own_continuation_makes_a_text_likelier(model: Causal, peps: Path) -> None:
    document = next(uptake.read(peps / "test.jsonl.xz"))
    lm = uptake.adapt(model, "x", "base").adapted
    assert lm.generate("def ", 8) == model.generate("def ", 8)
    from uptake.adaptation.optimizers import AdamW
    from uptake.methods.contract.method import Context, Evidence
    from uptake.methods.finetune import Finetune

    method = Finetune(optimizer=AdamW(3e-4), passes=3)
    text = document.text[1000:1800]
    (state,) = method.adapt([method.init(model)], model, [Evidence.of(text)], Context())
    segment = [Segment(text)]
    assert method.adapted([state], model).score(segment)[0].bits < 0.9 * model.score(segment)[0].bits


@pytest.mark.slow
def test_neighbours_pay_and_random_passages_pay_less(model: Causal, peps: Path, tmp_path: Path) -> None:
    store = Datastore.create(tmp_path / "store", retriever="lexical")
    store.add(islice(uptake.read(peps / "train.jsonl.xz"), 300))
    long = (document for document in uptake.read(peps / "test.jsonl.xz") if len(document.text) > 2048)
    results = uptake.compare(
        model, list(islice(long, 20)), ["random", "ttt-nn"], store=store, settings=["learning_rate=3e-4"]
    )
    figures = uptake.summary(results)["methods"]["ttt-nn"]
    assert figures["failed"] == 0 and figures["gain_ci"][0] > 0
    assert figures["against_random"]["ci"][0] > 0


@pytest.mark.slow
def test_a_learning_rate_of_zero_gains_exactly_nothing(model: Causal, peps: Path, tmp_path: Path) -> None:
    store = Datastore.create(tmp_path / "store", retriever="lexical")
    store.add(islice(uptake.read(peps / "train.jsonl.xz"), 20))
    documents: list[Document] = list(islice(uptake.read(peps / "test.jsonl.xz"), 3))
    # One query at a time: in a batch the base is scored at another shape, which moves the last digits.
    results = uptake.compare(
        model, documents, ["ttt-nn"], store=store, k=5, settings=["learning_rate=0"], batch=1
    )
    assert all(row.bits == row.base_bits and row.tokens_trained > 0 for row in results.rows)
