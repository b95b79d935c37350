"""A stream goes through the engine that all protocols share: workers, store, failures, one file and page."""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toys
import uptake
from test_stream_resume import DOCUMENTS, OTHERS, QUESTIONS, WAYS, timeless
from uptake.adaptation.optimizers import SGD
from uptake.errors import BadInput
from uptake.evaluation.inputs import Inputs
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context, Evidence, MethodSpec
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.finetune import Finetune
from uptake.report.results import Results
from uptake.report.streamed.rows import Answered, Spent
from uptake.store.datastore import Datastore
from uptake.tasks.asking import Asking, ask
from uptake.text.select import Nothing
from uptake.text.types import Chunking, Document, stable_hash

ASKING = Asking("{question}", tokens=2)


@pytest.fixture(name="model", scope="module")
def model_fixture(tmp_path_factory: pytest.TempPathFactory) -> Causal:
    folder = tmp_path_factory.mktemp("model")
    toys.module().save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    return uptake.load(str(folder))


def stream(model: Causal, specs: Any = WAYS, **more: Any) -> Results:
    given = {"unrelated": OTHERS, "checkpoints": [3], "save_every": 2, "asking": ASKING} | more
    return uptake.stream(model, DOCUMENTS, QUESTIONS, specs, **given)


def test_the_verb_is_the_protocol(model: Causal) -> None:
    inputs = Inputs(tuple(DOCUMENTS), tuple(QUESTIONS), unrelated=tuple(OTHERS))
    protocol = uptake.Stream((3,), ASKING, save_every=2)
    assert timeless(uptake.compare(model, inputs, WAYS, protocol=protocol)) == timeless(stream(model))


@pytest.mark.long
def test_workers_share_the_methods_and_a_killed_one_is_made_good(model: Causal, tmp_path: Path) -> None:
    whole = timeless(stream(model))
    assert timeless(stream(model, workers=2)) == whole
    for journal in (None, tmp_path / "j"):
        killed: list[int] = []

        def kill(done: int, total: int, label: str, killed: list[int] = killed) -> None:
            if not killed and done >= 3:
                killed.append(multiprocessing.active_children()[0].pid or 0)
                os.kill(killed[0], signal.SIGKILL)

        assert timeless(stream(model, workers=2, journal=journal, progress=kill)) == whole and killed
    assert [file.name for file in tmp_path.iterdir()] == ["j"], "a state was left behind"


def test_with_a_store_each_document_is_read_behind_its_neighbours(model: Causal, tmp_path: Path) -> None:
    store = Datastore.create(tmp_path / "s", retriever="lexical", chunking=Chunking(100))
    store.add([Document(f"s{n}", f"a thing of {n} is {n * 7} and more.") for n in range(9)])
    spec = MethodSpec(Finetune(optimizer=SGD(0.05)))
    alone = replace(spec, select=Nothing())
    results = stream(model, {"near": spec, "alone": alone}, store=store, k=2, checkpoints=[])
    method, state = spec.method, spec.method.init(model)
    read = 0
    for document in DOCUMENTS:
        source = store.source(document.text, document_id=document.id, whole_text=document.text)
        found = spec.select.choose(source, 2, np.random.default_rng(0))
        read += len(found.passages)
        texts = [*(passage.text for passage in found.passages), document.text]
        context = Context(stable_hash("0", "stream", document.id))
        (state,) = method.adapt([state], model, [Evidence.of(*texts)], context)
    assert read > len(DOCUMENTS)
    answers = ask(method.adapted([state], model), QUESTIONS, ASKING)
    rows = [row for row in results.of(Answered) if row.method == "near"]
    assert [row.nats for row in rows] == [answer.nats for answer in answers]
    without = stream(model, {"near": spec, "alone": alone}, checkpoints=[])
    for name, same in (("alone", True), ("near", False)):
        bare = [row for row in without.of(Answered) if row.method == name]
        assert (bare == [row for row in results.of(Answered) if row.method == name]) is same
    near, plain = ({row.method: row for row in one.of(Spent)}["near"] for one in (results, without))
    assert near.tokens_trained > plain.tokens_trained and near.retrieve_seconds > 0
    assert results.header.store["passages"] == store.count and results.header.protocol["k"] == "2"
    with pytest.raises(BadInput, match="give one k"):
        stream(model, {"near": spec}, store=store, k=[1, 2])


@dataclass(frozen=True)
class Speechless(Finetune):
    """Reads, and cannot be asked once it has read the fifth document."""

    def adapted(self, states: Sequence[WeightState], lm: LM) -> LM:
        if any("thing 4" in passage.text for passage in states[0].passages):
            raise RuntimeError("nothing to say")
        return super().adapted(states, lm)


def test_questions_that_cannot_be_asked_count_at_the_bases_answers(model: Causal, tmp_path: Path) -> None:
    results = stream(model, {"speechless": MethodSpec(Speechless()), **WAYS})
    rows = [row for row in results.of(Answered) if row.method == "speechless"]
    assert {row.taken: row.failed for row in rows} == {3: "", 9: "RuntimeError: nothing to say"}
    figures = uptake.summary(results)
    mine, base = figures["methods"]["speechless"], figures["base"]
    assert mine["nll"] == base["nll"] and mine["exact"] == base["exact"]
    assert mine["vs_base"]["nll"]["difference"] == 0 and mine["at"][0]["vs_base"]["nll"]["difference"] != 0
    (failure,) = mine["failures"]
    assert failure == {"document": "the asking of 9 questions", "place": 9, "reason": rows[-1].failed}
    assert figures["methods"]["memory"]["failures"] == [], "the others go on"
    uptake.write_json(results, tmp_path / "r.json")
    uptake.write_page(uptake.read_json(tmp_path / "r.json"), tmp_path / "r.html")
    assert "the asking of 9 questions: RuntimeError: nothing to say" in (tmp_path / "r.html").read_text()
    assert "under speechless" in str(uptake.table(results).caption)
