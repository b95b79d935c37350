"""What a query may spend depends on nobody beside it, and what stopped a reading is said."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import toys
from uptake import api
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.trainable import LoRA
from uptake.evaluation.engine import evaluate
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.methods import dynamic_evaluation
from uptake.methods.contract import spending
from uptake.methods.contract.method import Context, Evidence, Method
from uptake.methods.contract.spending import Budget, Ledger, Meter, Times
from uptake.methods.finetune import Finetune
from uptake.methods.hidden_state_optimisation import HiddenStateOptimisation
from uptake.report.summary import summary
from uptake.store.datastore import Datastore
from uptake.text.overlap import LeakFilter
from uptake.text.types import Document

TEXTS = ["the cat sat on the mat. ", "a dog ran over the hill.", "one fish, two fish, red."]
STEP = Times(0.0625, 0.0625, 0.5, 0.125)  # what a forward pass takes, by each clock
LEARNER = replace(dynamic_evaluation.spec.method, own_prefix=False)
TIMED = [Budget(cpu_seconds=0.25), Budget(wall_seconds=2.0)]


class Clocks:
    """Clocks that stand still but when a model computes: every forward pass of `lm` is a STEP."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes = 0
        for name in ("step", "step_at"):
            monkeypatch.setattr(Causal, name, self._counted(getattr(Causal, name)))

    def _counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(lm: Causal, *given: Any) -> Any:
            self.passes += 1
            return step(lm, *given)

        return counted

    def __call__(self) -> Times:
        return Times(*(self.passes * part for part in STEP))


def adapted(method: Method[Any], lm: LM, queries: int, budget: Budget, clocks: Clocks) -> Context:
    """Return the context after each query has read its own texts, all in one batch."""
    context = Context(budget=budget, meter=Meter(clocks))
    evidence = [Evidence.of(*(f"{row} {text}" for text in TEXTS * 3), query="q") for row in range(queries)]
    method.adapt([method.init(lm) for _ in range(queries)], lm, evidence, context)
    return context


@pytest.mark.parametrize("budget", TIMED)
def test_a_time_limit_is_the_same_in_a_batch_of_one_and_of_twelve(
    budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocks, lm = Clocks(monkeypatch), toys.lm()
    for method in (Finetune(optimizer=SGD(0.01)), LEARNER):
        alone = adapted(method, lm, 1, budget, clocks)
        together = adapted(method, lm, 12, budget, clocks)
        assert alone.ledger(0).steps == 4
        assert [ledger.steps for ledger in together.ledgers] == [alone.ledger(0).steps] * 12
        assert all(ledger.stopped and ledger.stopped.kind == "budget" for ledger in together.ledgers)


def test_time_goes_to_the_innermost_block_in_equal_shares() -> None:
    now = [0.0]
    meter = Meter(lambda: Times(now[0], now[0], 2 * now[0], 4 * now[0]))
    first, second, third = Ledger(), Ledger(), Ledger()
    now[0] += 100  # before anybody is charged
    with meter.charge([first, second, third]):
        now[0] += 3
        with meter.charge([first]):
            now[0] += 5
            with meter.charge([first, second]):
                now[0] += 2
                meter.settle()
        with pytest.raises(KeyError), meter.charge([third]):
            now[0] += 7
            raise KeyError
    now[0] += 100
    assert [ledger.cpu_seconds for ledger in (first, second, third)] == [1 + 5 + 1, 1 + 1, 1 + 7]
    assert first.wall_seconds == 2 * first.cpu_seconds and first.gpu_seconds == 4 * first.cpu_seconds


def test_rows_trained_together_pay_by_their_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks, lm = Clocks(monkeypatch), toys.lm()
    method = Finetune(trainable=LoRA(rank=2), optimizer=SGD(0.01))
    context = Context(meter=Meter(clocks))
    evidence = [Evidence.of(*TEXTS), Evidence.of(TEXTS[0]), Evidence.of()]
    method.adapt([method.init(lm)] * 3, lm, evidence, context)
    assert clocks.passes == 3, "two rows took four steps in three passes"
    assert [ledger.cpu_seconds for ledger in context.ledgers[:2]] == pytest.approx([9 / 64, 3 / 64])
    with context.charging_together([0, 1]):
        clocks.passes += 2  # nothing trained: the same share each
    assert context.ledger(1).cpu_seconds == pytest.approx(7 / 64)


def test_where_torch_has_threads_the_time_of_the_process_is_shared_between_meters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    now = [0.0]
    meters = [Meter(lambda: Times(0.0, now[0], 0.0)) for _ in range(2)]
    one, other = Ledger(), Ledger()
    with meters[0].charge([one]):
        now[0] += 1
        meters[0].settle()
        with meters[1].charge([other]):
            now[0] += 4
            meters[0].settle()
    assert (one.cpu_seconds, other.cpu_seconds) == (1 + 2, 2)


def test_the_time_of_this_machine_is_counted() -> None:
    lm, context = toys.lm(), Context()
    method = Finetune(optimizer=SGD(0.01))
    method.adapt([method.init(lm)], lm, [Evidence.of(*TEXTS)], context)
    ledger = context.ledger(0)
    assert ledger.cpu_seconds > 0 and ledger.wall_seconds > 0 and ledger.gpu_seconds == 0
    assert ledger.stopped is None


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(steps=2), "2 of 2 steps"),
        (Budget(tokens=50), "48 of 50 tokens are trained on, the next step has 24"),
        (Budget(cpu_seconds=0.0), "0 CPU seconds are spent after 0 steps"),
        (Budget(wall_seconds=0.0), "0 seconds on the clock are spent after 0 steps"),
    ],
)
def test_the_ledger_says_which_limit_stopped_it(budget: Budget, words: str) -> None:
    lm = toys.lm()
    for method in (
        Finetune(optimizer=SGD(0.01)),
        LEARNER,
        HiddenStateOptimisation(chunk_tokens=24),
    ):
        context = Context(budget=budget)
        method.adapt([method.init(lm)], lm, [Evidence.of(*TEXTS)], context)
        ledger = context.ledger(0)
        if isinstance(method, HiddenStateOptimisation):  # its pieces are a quarter of the window
            assert ledger.stopped and ledger.stopped.kind == "budget"
        else:
            assert ledger.stopped and ledger.stopped.kind == "budget" and words in str(ledger.stopped)
        assert ledger.failed == "", "a budget that is spent is no failure"


def test_a_limit_that_is_just_enough_stops_nothing() -> None:
    lm, method = toys.lm(), Finetune(optimizer=SGD(0.01))
    context = Context(budget=Budget(tokens=72, steps=3))
    method.adapt([method.init(lm)], lm, [Evidence.of(*TEXTS)], context)
    assert context.ledger(0).stopped is None and context.ledger(0).steps == 3
    own = replace(method, max_steps=1)
    context = Context()
    own.adapt([own.init(lm)], lm, [Evidence.of(*TEXTS)], context)
    assert context.ledger(0).stopped is None, "how a method reads is no budget"


def test_cancelling_and_divergence_are_told_apart() -> None:
    lm, method = toys.lm(), Finetune(optimizer=SGD(0.01))
    context = Context()
    context.cancelled = lambda: context.ledger(0).steps >= 1
    method.adapt([method.init(lm)], lm, [Evidence.of(*TEXTS)], context)
    stopped = context.ledger(0).stopped
    assert stopped and (stopped.kind, str(stopped)) == ("cancelled", "cancelled after 1 steps")
    wild, context = Finetune(optimizer=SGD(1e38)), Context(budget=Budget(steps=2))
    fresh = wild.init(lm)
    (state,) = wild.adapt([fresh], lm, [Evidence.of(*TEXTS)], context)
    stopped = context.ledger(0).stopped
    assert stopped and stopped.kind == "diverged" and state is fresh
    assert context.ledger(0).failed == str(stopped)
    ledger = Ledger()
    ledger.stop("budget", "one")
    ledger.stop("diverged", "two")
    ledger.stop("cancelled", "three")
    assert str(ledger.stopped) == "two"


def test_results_count_what_a_budget_stopped(tmp_path: Any) -> None:
    store = Datastore.create(tmp_path / "s", retriever="lexical")
    store.add([Document(f"d{i}", text) for i, text in enumerate(TEXTS)])
    documents = [Document("q", "the cat and the dog sat on " * 3)]
    results = api.compare(
        toys.lm(), documents, ["ttt-nn"], store=store, k=2, protocol=PerQuery(30, 30), budget=Budget(steps=1),
        leak=LeakFilter.off(),
    )  # fmt: skip
    (row,) = results.rows
    assert "1 of 1 steps" in row.stopped and row.failed == "" and row.steps == 1
    assert summary(results)["methods"]["ttt-nn"]["stopped_early"] == 1


def test_rows_do_not_pay_for_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    clocks = Clocks(monkeypatch)
    monkeypatch.setattr(Meter, "_clocks", lambda meter: clocks())
    store = Datastore.create(tmp_path / "s", retriever="lexical")
    store.add([Document("cat", "the cat sat"), Document("dog", "a dog ran over the hill. " * 8)])
    documents = [Document("short", "the cat " + "x" * 60), Document("long", "the dog ran and ran and " * 3)]

    def seconds(batch: int) -> dict[str, float]:
        plan = Plan(api.method_specs(["ttt-nn"]), PerQuery(8, 40), (1, 2), batch=batch, leak=LeakFilter.off())
        rows = evaluate(toys.lm(), plan, documents, store).rows
        assert {row.steps for row in rows if row.k == 1} == {1, 4}
        assert all(row.train_seconds == pytest.approx(0.0625 * row.steps) for row in rows)
        return {f"{row.query} {row.k}": row.train_seconds for row in rows}

    assert seconds(1) == pytest.approx(seconds(2))


class FakeEvent:
    """A CUDA event of a GPU that works an eighth of a second between any two of them."""

    made = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at, self.done = -1, False

    def record(self) -> None:
        FakeEvent.made += 1
        self.at = FakeEvent.made

    def synchronize(self) -> None:
        self.done = True

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert end.done, "the time of an event that has not come"
        return 125.0 * (end.at - self.at)


def test_seconds_of_a_gpu_are_charged_by_its_own_events(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[torch.device] = []

    class Device:
        def __init__(self, device: torch.device) -> None:
            entered.append(device)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "device", Device)
    ledgers: Sequence[Ledger] = [Ledger(), Ledger()]
    meter, device = Meter(), torch.device("cuda:1")
    with meter.charge(ledgers, device):
        pass
    assert [ledger.gpu_seconds for ledger in ledgers] == [0.0625, 0.0625]
    assert set(entered) == {device}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_seconds_of_a_real_gpu() -> None:
    device, ledger = torch.device("cuda"), Ledger()
    square = torch.ones(2048, 2048, device=device)
    with Meter().charge([ledger], device):
        for _ in range(20):
            square = square @ square / 2048
    assert 0 < ledger.gpu_seconds <= 1.5 * ledger.wall_seconds
    assert isinstance(spending.GpuClock(device)(), float)
