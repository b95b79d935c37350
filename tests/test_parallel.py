"""Several processes share an evaluation: the same results, a dead worker's work done again."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

import toys
import uptake
from test_evaluate import DOCUMENTS, SMALL, sentence
from uptake import api
from uptake.errors import BadInput, Missing, UptakeError
from uptake.evaluation.engine import evaluate
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.journal import States
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocol import Batch, Part
from uptake.evaluation.workers import Workers
from uptake.lm.causal import Causal
from uptake.store.datastore import Datastore
from uptake.text.types import Chunking, Document

PLAN = Plan(
    api.method_specs(["random", "ttt-nn"], ["optimizer=sgd(learning_rate=0.05)"]),
    SMALL,
    (1, 3),
    batch=1,
    showcases=2,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Causal:
    folder = tmp_path_factory.mktemp("model")
    toys.module().save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    return uptake.load(str(folder))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Datastore:
    folder = tmp_path_factory.mktemp("store") / "store"
    made = Datastore.create(folder, retriever="lexical", chunking=Chunking(characters=100))
    made.add([Document(f"train/{i}", sentence(100 + i)) for i in range(12)])
    return made


@pytest.mark.long
def test_two_workers_give_bit_for_bit_what_one_gives(model: Causal, store: Datastore) -> None:
    alone = evaluate(model, PLAN, DOCUMENTS, store)
    shared = evaluate(model, PLAN, DOCUMENTS, store, workers=2)
    assert [(r.method, r.k, r.query, r.bits) for r in shared.rows] == [
        (r.method, r.k, r.query, r.bits) for r in alone.rows
    ]
    assert shared.showcases == alone.showcases and shared.peaks.keys() == alone.peaks.keys()


def test_what_a_worker_gave_before_it_died_is_not_done_again(model: Causal, store: Datastore) -> None:
    units = SMALL.units(PLAN, Inputs.of(DOCUMENTS))[:2]
    workers = Workers(model, PLAN, store, States(), 2)
    ends = []
    for place in range(2):
        ours, theirs = multiprocessing.Pipe()
        workers._alive[ours] = multiprocessing.Process()
        workers._alive[ours].join = lambda: None
        theirs.send(Part(places=(place,)))
        ends.append(theirs)
    ends[0].close()  # killed between its last part and the end of its batch
    ends[1].send("end")
    ends[1].close()
    made = workers.share([Batch((unit,), (place,)) for place, unit in enumerate(units)])
    assert sorted(place for part in made for place in part.places) == [0, 1]


@pytest.mark.long
def test_a_killed_workers_batch_is_done_again_and_no_worker_is_an_error(
    model: Causal, store: Datastore
) -> None:
    units = SMALL.units(PLAN, Inputs.of(DOCUMENTS))
    batches = [Batch((unit,), (place,)) for place, unit in enumerate(units)]
    with Workers(model, PLAN, store, States(), 2) as hands:
        made = []
        for part in hands.share(batches):
            made.append(part)
            if len(made) == 1:
                os.kill(next(iter(hands._alive.values())).pid, signal.SIGKILL)
        whole = [part for part in made if part.rows]
        assert sorted(place for part in whole for place in part.places) == list(range(len(batches)))
        assert len(hands._alive) == 1
        os.kill(next(iter(hands._alive.values())).pid, signal.SIGKILL)
        with pytest.raises(UptakeError, match="every worker died"):
            list(hands.share(batches))


@pytest.mark.long
def test_what_workers_cannot_load_is_told(model: Causal, store: Datastore, tmp_path: Path) -> None:
    gone = Causal(toys.module(), model.tokenizer, str(tmp_path / "no-such-model"))
    with pytest.raises((BadInput, Missing), match="no-such-model"):
        evaluate(gone, PLAN, DOCUMENTS, store, workers=2)


def test_what_a_worker_cannot_do_is_told(model: Causal, store: Datastore) -> None:
    nameless = Causal(toys.module(), model.tokenizer)
    with pytest.raises(BadInput, match=r"uptake\.load"):
        evaluate(nameless, PLAN, DOCUMENTS, store, workers=2)
    with pytest.raises(BadInput, match="one worker"):
        ways = api.method_specs(["ttt-nn"], ["reference=true"])
        evaluate(model, Plan(ways, SMALL), DOCUMENTS, store, workers=2)
    with pytest.raises(BadInput, match="1 or more"):
        evaluate(model, PLAN, DOCUMENTS, store, workers=0)
