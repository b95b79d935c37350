"""What is done once is no query's cost: it has a figure of its own, in rows, report and table."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toys
import uptake
from stubs import StubEncoder
from uptake import api, preparation
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.run import run
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context
from uptake.methods.contract.spending import cpu_seconds
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.preparation import prepared, preparing
from uptake.report.page import write_page
from uptake.report.scored.rows import Scored
from uptake.report.streamed.rows import Spent
from uptake.report.summary import summary, table
from uptake.store.datastore import Datastore
from uptake.store.passages import index_cache
from uptake.store.views import key_index, views
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question
from uptake.text.types import Chunking, Document

TEXTS = [f"The {name} number {n} holds the seal of pump {n * 7}. " * 4 for n, name in enumerate("abcdefgh")]
DOCUMENTS = [Document(f"d{n}", text) for n, text in enumerate(TEXTS)]
HOUR = 3600.0


class Clock:
    """A clock that moves only when somebody works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(preparation, "clocks", lambda: (self.now, self.now, self.now))

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(name="clock")
def clock_fixture(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_clocks_stand_still_while_something_is_prepared(clock: Clock) -> None:
    before, seconds, context = prepared().cpu, list[float](), Context()
    with cpu_seconds(seconds), context.charging([0]):
        clock.work(1)
        with preparing():
            clock.work(5)
            with preparing():  # what needs something else prepared
                clock.work(2)
            context.meter.settle()
            clock.work(3)
        clock.work(4)
    assert seconds == pytest.approx([5]) and prepared().cpu - before == pytest.approx(10)
    ledger = context.ledger(0)
    assert (ledger.cpu_seconds, ledger.wall_seconds) == pytest.approx((5, 5))


def test_a_preparation_that_fails_is_counted_and_another_thread_pays_for_its_own(clock: Clock) -> None:
    before = prepared().cpu
    with pytest.raises(ValueError), preparing():
        clock.work(2)
        raise ValueError
    assert prepared().cpu - before == pytest.approx(2)
    others: list[float] = []

    def elsewhere() -> None:
        with preparing():
            clock.work(7)
        others.append(prepared().cpu)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert others == [7] and prepared().cpu - before == pytest.approx(2)


def model(tmp_path: Path) -> Causal:
    toys.module(window=128).save_pretrained(tmp_path / "m")
    toys.tokenizer().save_pretrained(tmp_path / "m")
    return uptake.load(str(tmp_path / "m"))


def slowly(monkeypatch: pytest.MonkeyPatch, clock: Clock, owner: Any, name: str, seconds: float) -> None:
    """Make a function take so many seconds more."""
    inner = getattr(owner, name)

    def slow(*given: Any, **more: Any) -> Any:
        clock.work(seconds)
        return inner(*given, **more)

    monkeypatch.setattr(owner, name, slow)


@pytest.mark.parametrize(
    ("method", "owner", "name"),
    [
        ("knn-lm", views.StoredTokens, "of"),
        ("retomaton", views.StoredTokens, "of"),
        ("knn-lm", key_index.KeyIndex, "_trained"),
        ("retro", views, "open_chunks"),
        ("ttt-nn", index_cache.IndexCache, "make"),
        ("sift", index_cache.IndexCache, "make"),
        ("in-context", index_cache.IndexCache, "_load"),
    ],
)
def test_what_is_made_once_is_told_apart_in_rows_and_table(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, method: str, owner: Any, name: str
) -> None:
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    lm = model(tmp_path)
    index = "ivf" if name == "_trained" else "flat"
    monkeypatch.setattr(key_index, "LARGE", 64)
    store = Datastore.create(tmp_path / "s", encoder=StubEncoder(), chunking=Chunking(60), index=index)
    store.add(DOCUMENTS[2:])
    if method in ("knn-lm", "retomaton"):
        store.read_tokens(TokenKeyer(lm))
    if method == "retro":
        store.read_chunks(lm.tokenizer, name=lm.name)
    if name == "_load":
        store.prepare()  # there is an index to be loaded then
    store = Datastore.open(tmp_path / "s", encoder=StubEncoder())
    slowly(monkeypatch, clock, owner, name, HOUR)
    settings = ["weights=untrained"] if method == "retro" else []
    ways = api.method_specs(["base", method], settings)
    results = run(lm, Plan(ways, PerQuery(prefix=40, suffix=30), (2,), batch=1), Inputs.of(DOCUMENTS), store)
    rows = [row for row in results.of(Scored) if row.method == method]
    assert not any(row.failed for row in rows)
    hours = [row.prepare_seconds / HOUR for row in rows]
    # Seconds are sums and differences of clocks: an hour may come out an ulp short.
    assert hours[0] > 1 - 1e-9 and hours == [hours[0], *[0.0] * (len(rows) - 1)]
    for row in rows:
        assert row.retrieve_seconds + row.train_seconds + row.score_seconds < HOUR
    found = summary(results)["methods"]
    assert found[method]["preparation_cpu_seconds"] == pytest.approx(hours[0] * HOUR)
    assert found["base"]["preparation_cpu_seconds"] == 0
    assert found[method]["cpu_seconds_per_query"]["total"] < HOUR
    shown = table(results)
    assert [str(column.header) for column in shown.columns if "one-off" in str(column.header)]
    assert "one-off" in str(shown.caption)
    write_page(results, tmp_path / "page.html")
    assert "one-off" in (tmp_path / "page.html").read_text().lower()


def test_where_nothing_is_prepared_there_is_no_such_column(tmp_path: Path, clock: Clock) -> None:
    results = run(model(tmp_path), Plan(api.method_specs(["base"])), Inputs.of(DOCUMENTS))
    assert "one-off" not in str(table(results).caption)
    assert not [column for column in table(results).columns if "one-off" in str(column.header)]


def test_an_encoder_is_loaded_once(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    from uptake.text import encoders

    encoder = StubEncoder()
    encoder.spec = "stub"
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    store = Datastore.create(tmp_path / "s", encoder=encoder, chunking=Chunking(60))
    store.add(DOCUMENTS[2:])

    def make(*_: Any) -> StubEncoder:
        clock.work(HOUR)
        return encoder

    monkeypatch.setattr(encoders, "make_encoder", make)
    ways = api.method_specs(["in-context"])
    plan = Plan(ways, PerQuery(prefix=40, suffix=30), (2,), batch=1)
    results = run(model(tmp_path), plan, Inputs.of(DOCUMENTS), Datastore.open(tmp_path / "s"))
    assert [row.prepare_seconds > HOUR - 1 for row in results.of(Scored)] == [True, *[False] * 7]
    assert max(row.retrieve_seconds for row in results.of(Scored)) < HOUR


def test_a_network_that_a_method_loads_is_loaded_once(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = model(tmp_path)
    ways = api.method_specs(["fwl"], ["weights=untrained"])
    slowly(monkeypatch, clock, type(ways["fwl"].method), "fresh", HOUR)
    results = run(lm, Plan(ways, batch=1), Inputs.of(DOCUMENTS))
    rows = results.of(Scored)
    assert sum(row.prepare_seconds > HOUR - 1 for row in rows) == 1
    assert max(row.train_seconds + row.score_seconds for row in rows) < HOUR


def test_a_stream_tells_it_apart_too(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    store = Datastore.create(tmp_path / "s", encoder=StubEncoder(), chunking=Chunking(60))
    store.add(DOCUMENTS[4:])
    store = Datastore.open(tmp_path / "s", encoder=StubEncoder())
    slowly(monkeypatch, clock, index_cache.IndexCache, "make", HOUR)
    results = api.stream(
        model(tmp_path),
        DOCUMENTS[:3],
        [Question("q", "what?", ("a seal",), document="d0")],
        ["ttt-nn"],
        asking=Asking("{question}", tokens=1),
        store=store,
        k=1,
    )
    (spent,) = [row for row in results.of(Spent) if row.method == "ttt-nn"]
    # Seconds are differences of clocks that run beside: an hour may come out an ulp off.
    assert spent.prepare_seconds == pytest.approx(HOUR) and spent.retrieve_seconds < HOUR
    assert summary(results)["methods"]["ttt-nn"]["prepare_seconds"] == pytest.approx(HOUR)
    assert "one-off" in str(table(results).caption)


def test_a_flat_search_widens_its_keys_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class View:
        vectors = np.ones((3, 4), np.float16)
        metadata: Any = type("M", (), {"kind": type("K", (), {"name": "tokens"}), "id": "x"})

    view: Any = View()
    index = key_index.KeyIndex(view, "0" * 32, "flat", None)
    before = prepared().cpu

    class Slow(np.ndarray):  # type: ignore[type-arg]
        def astype(self, *given: Any, **more: Any) -> Any:
            clock.work(HOUR)
            return np.asarray(self).astype(*given, **more)

    index.keys = view.vectors.view(Slow)
    for _ in range(2):
        index.candidates(np.ones((1, 4), np.float32), 1, np.ones(3, bool), 3)
    assert prepared().cpu - before == pytest.approx(HOUR)
