"""A session is one request: it reads, answers, forgets, is cancelled; nobody else changes a bit of it."""

import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
import uptake
from uptake.adaptation.delta import fingerprint
from uptake.adaptation.optimizers import SGD, AdamW
from uptake.adaptation.trainable import LoRA
from uptake.errors import BadInput, Mismatch
from uptake.lm.base import LM, Segment
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context, Evidence, MethodSpec
from uptake.methods.contract.spending import Budget
from uptake.methods.finetune import Finetune
from uptake.session import Session
from uptake.store.datastore import Datastore
from uptake.text.types import Document

A, B, C = "the cat sat on the mat. ", "a dog ran over the hill.", "one fish, two fish, red."
TUNED = MethodSpec(Finetune(optimizer=AdamW(1e-2)))
TARGET = Segment("the cat sat on the hill")


@pytest.fixture(name="store")
def store_fixture(tmp_path: Path) -> Datastore:
    store = Datastore.create(tmp_path / "s", retriever="lexical")
    store.add([Document(f"d{number}", text) for number, text in enumerate((A, B, C))])
    return store


def bits(session: Session) -> float:
    return session.score(TARGET.text).bits


def by_hand(lm: LM, *texts: str, spec: MethodSpec = TUNED) -> float:
    """The bits of the target after reading these texts, by the contract alone."""
    state = spec.method.init(lm)
    for text in texts:
        (state,) = spec.method.adapt([state], lm, [Evidence.of(text)], Context())
    return spec.method.adapted([state], lm).score([TARGET])[0].bits


def test_it_reads_on_and_answers_from_all_it_has_read() -> None:
    lm = toys.lm()
    session = Session(lm, TUNED)
    assert bits(session) == lm.score([TARGET])[0].bits and session.passages == []
    (first,) = session.read(A)
    assert bits(session) == by_hand(lm, A)
    before = session.adapted
    second, third = session.read(B, C)
    assert session.ledger.steps == 3 and session.ledger.cpu_seconds > 0 and session.stopped is None
    assert [passage.id for passage in session.passages] == [first, second, third]
    assert before.score([TARGET])[0].bits == by_hand(lm, A), "what was handed out answers as before"
    assert session.generate("the cat", 12) == session.adapted.generate("the cat", 12)
    session.forget([second])
    assert bits(session) == by_hand(lm, A, C)
    session.forget([first, third])
    assert bits(session) == lm.score([TARGET])[0].bits


def test_it_reads_the_neighbours_of_a_prompt(store: Datastore) -> None:
    lm = toys.lm()
    session = Session(lm, "ttt-nn", settings=["learning_rate=1e-2"], store=store, k=1)
    (found,) = session.adapt("the cat on a mat")
    assert found.text == A and session.neighbours == (found,)
    assert [one.text for one in session.adapt("two red fish", k=1)] == [C]
    assert [one.text for one in session.neighbours] == [A, C]
    session.forget([session.passages[0].id])
    assert [one.text for one in session.neighbours] == [C] == [one.text for one in session.passages]
    once = uptake.adapt(lm, "the cat on a mat", store=store, k=1, settings=["learning_rate=1e-2"])
    assert once.neighbours == (found,) and bits(once) != lm.score([TARGET])[0].bits
    assert fingerprint(lm.module) == lm.fingerprint
    with pytest.raises(BadInput, match="there is none"):
        Session(lm).adapt("x")
    with pytest.raises(BadInput, match="k = -1"):
        Session(lm, k=-1)
    with pytest.raises(BadInput, match="set them in the method spec"):
        Session(lm, TUNED, settings=["passes=2"])


def test_scoring_and_reading_in_one_is_scoring_then_reading() -> None:
    lm = toys.lm()
    for name in ("dynamic-evaluation", "finetune"):
        session, apart = (Session(lm, name, settings=["learning_rate=1e-2"]) for _ in range(2))
        for before, text in ((A, B), (A + B, C)):
            expected = apart.score(text, before)
            assert torch.equal(session.score_and_read(text, before).log_probs, expected.log_probs)
            apart.score_and_read(text, before)
        assert bits(session) == bits(apart) != lm.score([TARGET])[0].bits


def test_it_says_whether_it_goes_on(store: Datastore) -> None:
    lm = toys.lm()
    once = uptake.adapt(lm, "the cat", TUNED, store=store, k=1)
    assert not once.state.optimizer_state  # type: ignore[attr-defined]
    with pytest.raises(BadInput, match="continues=True"):
        once.read(B)
    assert bits(once) == by_hand(lm, A), "and answers as before"
    more = uptake.adapt(lm, "the cat", TUNED, store=store, k=1, continues=True)
    more.read(B)
    assert bits(more) == by_hand(lm, A, B)


def test_it_is_saved_and_goes_on_elsewhere(tmp_path: Path) -> None:
    lm = toys.lm()
    session = Session(lm, TUNED)
    session.read(A)
    session.save(tmp_path / "state")
    other = Session(lm, TUNED)
    other.load(tmp_path / "state")
    assert bits(other) == bits(session) and other.passages == session.passages
    other.read(B)
    assert bits(other) == by_hand(lm, A, B)
    with pytest.raises(Mismatch, match="load that model"):
        Session(toys.lm(seed=1), TUNED).load(tmp_path / "state")


def test_a_divergence_is_said_and_leaves_no_trace() -> None:
    lm = toys.lm()
    for optimizer, texts in ((SGD(1e38), (A, B)), (AdamW(3e38), (A,))):  # a step that nobody looks behind
        session = Session(lm, MethodSpec(Finetune(optimizer=optimizer)))
        session.read(*texts)
        assert session.stopped and session.stopped.kind == "diverged"
        assert "smaller learning rate" in session.stopped.reason
        assert bits(session) == lm.score([TARGET])[0].bits and session.passages == []
    session = Session(lm, TUNED)
    session.read(A)
    before = bits(session)
    session.spec = MethodSpec(Finetune(optimizer=SGD(1e38)))
    session.read(B, C)
    assert session.stopped and bits(session) == before, "what was read before it stays"
    session.spec = TUNED
    session.read()
    assert session.stopped is None, "it is said of the latest reading"


def test_a_budget_bounds_all_readings_together() -> None:
    lm = toys.lm()
    session = Session(lm, TUNED, budget=Budget(steps=2))
    session.read(A)
    assert session.stopped is None
    session.read(B, C)
    assert session.stopped and session.stopped.kind == "budget" and session.ledger.steps == 2
    assert bits(session) == by_hand(lm, A, B)


class Held(Causal):
    """A model that waits, at its first step in another thread, until it may go on."""

    read_on = LM.read_on

    def hold(self) -> None:
        self.reached, self.may = threading.Event(), threading.Event()

    def step(self, ids: Any, cache: Any = None) -> Any:
        if threading.current_thread() is not threading.main_thread():
            self.reached.set()
            assert self.may.wait(60)
        return super().step(ids, cache)

    def around(self, module: Any) -> Any:
        copy = super().around(module)
        copy.__class__, copy.reached, copy.may = Held, self.reached, self.may
        return copy


def test_reading_is_cancelled_from_another_thread_between_two_steps() -> None:
    plain = toys.lm()
    lm = Held(plain.module, plain.tokenizer, "held")
    lm.hold()
    session = Session(lm, TUNED)
    thread = threading.Thread(target=session.read, args=(A, B, C))
    thread.start()
    assert lm.reached.wait(60)
    session.cancel()
    lm.may.set()
    thread.join(60)
    assert not thread.is_alive()
    assert session.ledger.steps == 1 and session.stopped and session.stopped.kind == "cancelled"
    assert bits(session) == by_hand(plain, A), "the step under way is taken, and no other"
    assert session.generate("the cat", 5) == "" and session.cancelled
    session.read(B)
    assert session.ledger.steps == 1 and session.stopped.kind == "cancelled"
    session.forget([session.passages[0].id])
    assert A not in [passage.text for passage in session.passages]


def test_writing_is_cancelled_between_two_tokens() -> None:
    session = Session(toys.lm(), TUNED)
    tokens = session.stream("the cat", 50, temperature=1.0)
    written = [next(tokens), next(tokens)]
    session.cancel()
    (last,) = tokens
    assert last.id is None and last.finish == "cancelled" and all(token.id is not None for token in written)


WALKS: dict[str, tuple[str, MethodSpec]] = {
    "weights": ("llama", TUNED),
    "dropout": ("gpt2", MethodSpec(Finetune(optimizer=SGD(0.05), dropout=True))),
    "lora": ("llama", MethodSpec(Finetune(optimizer=AdamW(1e-2), trainable=LoRA(rank=3)))),
    "lora, dropout": (
        "gpt2",
        MethodSpec(Finetune(optimizer=AdamW(1e-2), trainable=LoRA(rank=3), dropout=True)),
    ),
}


def walk(lm: LM, spec: MethodSpec, seed: int, *texts: str) -> list[Any]:
    """Everything that a session with these texts makes."""
    session, made = Session(lm, spec, seed=seed), list[Any]()
    for text in texts:
        session.read(text)
        made.append(session.score(TARGET.text).log_probs.tolist())
        made.append(session.generate("the cat", 6, temperature=1.0))
    session.forget([session.passages[0].id])
    return [*made, session.score(TARGET.text).log_probs.tolist(), session.ledger.steps]


def side_by_side(*walks: Callable[[], list[Any]]) -> list[list[Any]]:
    """Run each in a thread of its own, all beginning at once and changing places as often as can be."""
    made: list[list[Any]] = [[] for _ in walks]
    start = threading.Barrier(len(walks))

    def run(place: int, walk: Callable[[], list[Any]]) -> None:
        start.wait()
        made[place] = walk()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(walks)]
    often = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
    finally:
        sys.setswitchinterval(often)
    return made


@pytest.mark.parametrize("name", WALKS)
def test_sessions_in_threads_give_bit_for_bit_what_each_gives_alone(name: str) -> None:
    shape, spec = WALKS[name]
    lm = toys.lm(shape)
    first, second = (lambda: walk(lm, spec, 1, A, B)), (lambda: walk(lm, spec, 2, C, A))
    alone = [first(), second()]
    assert alone[0] != alone[1]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for _ in range(2):
        assert side_by_side(first, second) == alone
    assert torch.equal(before, torch.get_rng_state()), "the global generator was drawn from"
    assert fingerprint(lm.module) == lm.fingerprint


@pytest.mark.parametrize("name", ["in-context", "knn-lm", "dynamic-evaluation", "hidden-state-optimisation"])
def test_other_methods_share_a_model_between_threads_too(name: str) -> None:
    lm, spec = toys.lm(), uptake.api.method_specs([name])[name]
    first, second = (lambda: walk(lm, spec, 1, A, B)), (lambda: walk(lm, spec, 2, C, A))
    # The threads are the first to use the model: what it makes on first use, both make.
    together = side_by_side(first, second)
    assert together == [first(), second()]


def test_untrained_networks_are_made_once_for_all_threads() -> None:
    lm, spec = toys.lm(), uptake.api.method_specs(["fwl"], ["weights=untrained", "hidden=24"])["fwl"]
    first, second = (lambda: walk(lm, spec, 1, A, B)), (lambda: walk(lm, spec, 2, C, A))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    together = side_by_side(first, second)
    assert torch.equal(before, torch.get_rng_state())
    assert together == [first(), second()]
    method: Any = replace(spec.method)
    assert method.network(lm) is spec.method.network(lm)  # type: ignore[attr-defined]
