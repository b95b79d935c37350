"""Estimates before a run: the arithmetic on made-up rows, then a real few queries, then the verb."""

from dataclasses import replace
from pathlib import Path

import pytest

import toys
from cli_world import Run, World, made_fixture, refused, run_fixture, world_fixture  # noqa: F401
from stubs import a_second
from test_evaluate import SMALL, sentence
from uptake import api
from uptake.cli.cost import duration
from uptake.errors import BadInput
from uptake.evaluation import cost_meter
from uptake.evaluation.cost import CostRange, Workload, estimate, forecast, spread, wall_clock
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.protocols.running import Running
from uptake.report.scored.rows import Scored
from uptake.store.datastore import Datastore
from uptake.text.types import Chunking, Document

SIZE = Workload(units=100, documents=50, bytes=2000)


def row(
    way: str, k: int, retrieve: float, train: float, score: float, tokens: int, bytes: int = 20
) -> Scored:
    return Scored(way, k, "q", "d", bytes, 1.0, 1.0, k, tokens_trained=tokens, retrieve_seconds=retrieve,
               train_seconds=train, score_seconds=score)  # fmt: skip


def plan(*names: str, settings: tuple[str, ...] = (), **changes) -> Plan:
    return replace(Plan(api.method_specs(names, settings), ks=(1, 5), batch=8), **changes)


def test_queries_scale_finding_and_learning_and_bytes_scale_scoring() -> None:
    given = plan("ttt-nn")
    # Half the mean bytes: scoring counts twice. What k = 1 trained is in what k = 5 trained.
    cheap = [row("ttt-nn", 1, 0.5, 1.0, 0.25, 10, 10), row("ttt-nn", 5, 0.5, 4.0, 0.25, 40, 10)]
    dear = [row("ttt-nn", 1, 0.5, 2.0, 0.5, 20), row("ttt-nn", 5, 0.5, 6.0, 0.5, 60)]
    found = estimate("ttt-nn", given.methods["ttt-nn"], given, [cheap, dear], SIZE, 7)
    low, high = 100 * 4.5 + 2000 * 0.5 / 10, 100 * 6.5 + 2000 * 1.0 / 20
    assert found.cpu_seconds == CostRange((low + high) / 2, low, high)
    assert found.tokens_trained == CostRange(5000.0, 4000.0, 6000.0)
    assert found.k == (1, 5) and found.peak_bytes == 7 and not found.failed


def test_passes_that_cannot_be_shared_are_paid_for_each_k() -> None:
    given = plan("ttt-nn", settings=("passes=2",))
    unit = [row("ttt-nn", 1, 0.0, 1.0, 0.0, 10), row("ttt-nn", 5, 0.0, 4.0, 0.0, 40)]
    found = estimate("ttt-nn", given.methods["ttt-nn"], given, [unit], SIZE)
    assert found.cpu_seconds == CostRange(500.0, 500.0, 500.0) and found.tokens_trained == CostRange(
        5000.0, *[5000.0] * 2
    )


def test_what_learns_from_what_it_scores_scales_with_bytes() -> None:
    given = plan("finetune", protocol=Running())
    found = estimate(
        "finetune", given.methods["finetune"], given, [[row("finetune", 0, 0, 3.0, 1.0, 50)]], SIZE
    )
    assert found.cpu_seconds == CostRange(400.0, 400.0, 400.0) and found.tokens_trained == CostRange(
        5000.0, *[5000.0] * 2
    )


def test_what_failed_is_no_measurement() -> None:
    given = plan("base", "ttt-nn", ks=(5,))
    failed = replace(row("ttt-nn", 5, 0, 0, 0, 0), failed="RuntimeError: no")
    sound, base = row("ttt-nn", 5, 0, 1.0, 0, 10), row("base", 0, 0, 0, 1.0, 0)
    found = estimate("ttt-nn", given.methods["ttt-nn"], given, [[base, failed], [base, sound]], SIZE)
    assert found.cpu_seconds == CostRange(100.0, 100.0, 100.0) and found.failed == "RuntimeError: no"
    assert wall_clock(given, [[base, failed], [base, sound]], SIZE, 1) == CostRange(200.0, 200.0, 200.0)
    nothing = estimate("ttt-nn", given.methods["ttt-nn"], given, [[base, failed]], SIZE)
    assert nothing.cpu_seconds is None and nothing.tokens_trained is None
    assert wall_clock(given, [[base, failed]], SIZE, 1) is None


def test_workers_wait_for_the_longest_share() -> None:
    given, unit = plan("base"), [row("base", 0, 0, 0, 1.0, 0)]
    # 100 queries are 13 batches of 8: of two workers one does 7 batches, 56 queries.
    for hands, longest in ((1, 100), (2, 56), (13, 8)):
        found = wall_clock(given, [unit], SIZE, hands)
        assert found is not None and found.value == found.low == found.high == pytest.approx(longest)
    assert wall_clock(given, [unit], SIZE, 1, wall_per_cpu=0.5) == CostRange(50.0, 50.0, 50.0)


def test_measured_queries_are_spread_over_the_data() -> None:
    assert spread(100, 3) == [16, 50, 83] and spread(2, 3) == [0, 1] and spread(1, 1) == [0]
    assert all(len(set(spread(count, 5))) == min(count, 5) for count in range(1, 40))


@pytest.fixture(name="store")
def store_fixture(tmp_path: Path) -> Datastore:
    store = Datastore.create(tmp_path / "s", retriever="lexical", chunking=Chunking(characters=100))
    store.add([Document(f"train/{i}", sentence(100 + i)) for i in range(8)])
    return store


def test_a_forecast_is_near_the_run_it_speaks_of(store: Datastore) -> None:
    lm, documents = toys.lm(), [Document(f"test/{i}", sentence(i)) for i in range(6)]
    ways = api.method_specs(["base", "ttt-nn"])
    given = Plan(ways, SMALL, (1, 3), batch=4)
    shown: list[int] = []
    found = forecast(lm, given, documents, store, queries=2, progress=lambda done, total: shown.append(done))
    results = api.compare(lm, documents, list(ways), store=store, k=(1, 3), protocol=SMALL, batch=4)
    everything = SMALL.units(given, Inputs.of(documents))
    assert found.size == Workload.of(everything) and found.size.units == 6 and found.measured == 2
    assert shown == [1, 2] and found.size.bytes == sum(r.bytes for r in results.rows if r.method == "base")
    ttt = found.methods[1]
    trained = sum(r.tokens_trained for r in results.rows if r.method == "ttt-nn" and r.k == 3)
    assert ttt.tokens_trained is not None and ttt.tokens_trained.value == pytest.approx(trained, rel=0.2)
    assert ttt.cpu_seconds is not None and ttt.cpu_seconds.low > 0 and ttt.peak_bytes > 1 << 20
    assert found.wall_seconds is not None and found.wall_seconds.low <= found.wall_seconds.value
    with pytest.raises(BadInput, match="queries 0"):
        forecast(lm, given, documents, store, queries=0)


def test_a_forecast_of_reading_as_one_goes() -> None:
    documents = [Document("a", sentence(1)), Document("b", sentence(2) * 3)]
    found = forecast(toys.lm(), Plan(api.method_specs(["finetune"]), Running(40, 40)), documents)
    assert found.size.units == 2 and found.methods[0].tokens_trained is not None


def test_the_verb_tells_what_a_comparison_will_take(
    run: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("-m", world.model, "--data", world.data, "--suffix", "80", "-k", "1,2", "--queries", "2")
    ran = run("cost", *common, "-s", world.lexical)
    assert ran.code == 0 and ran.out.startswith("method")
    assert [line.split()[0] for line in ran.out.splitlines()[1:6]] == [
        "base",
        "random",
        "in-context",
        "n-gram",
        "ttt-nn",
    ]
    assert "6 documents: about" in ran.out and "2 measured" in ran.out
    monkeypatch.setattr(cost_meter, "cpu_seconds", a_second)
    told = run("cost", *common, "-s", world.lexical, "--methods", "ttt-nn", "--workers", "2", "--json").json
    assert [one["method"] for one in told["methods"]] == ["base", "ttt-nn"] and told["methods"][1]["k"] == [
        1,
        2,
    ]
    assert told["size"]["units"] == 6 and told["measured"] == 2
    base, ttt = (one["cpu_seconds"]["value"] for one in told["methods"])
    assert base == 6.0 and ttt >= 4 * base, "at either k a training and a scoring, and the search"
    running = run("cost", *common, "--methods", "finetune", "--protocol", "running")
    assert running.code == 0 and "finetune" in running.out


def test_the_verb_refuses_in_one_line(run: Run, world: World) -> None:
    common = ("cost", "-m", world.model, "--data", world.data)
    refused(run(*common), "no store", "--store")
    refused(run(*common, "-s", world.lexical, "--queries", "0"), "--queries 0")
    refused(run(*common, "--methods", ","), "--methods")
    refused(run(*common, "--methods", "tt-nn"), "ttt-nn")
    refused(run(*common, "--protocol", "per-qery"), "did you mean per-query?")
    refused(run(*common, "-s", world.lexical, "--set", "reference=true", "--workers", "2"), "one worker")
    refused(run("cost", "-m", world.model, "-s", world.lexical, "--data", "none.jsonl"), "none.jsonl")
    assert run(*common, "--html", "x.html").code == 2


def test_times_are_told_as_people_tell_them() -> None:
    told = [duration(seconds) for seconds in (0, 0.004, 0.12, 1.234, 56.7, 100, 5400, 100_000, 1_000_000)]
    assert told == ["0 s", "0.004 s", "0.12 s", "1.2 s", "57 s", "1.7 min", "1.5 h", "28 h", "12 d"]


def test_the_size_of_the_work_is_in_queries_documents_and_scored_bytes() -> None:
    documents = [Document("a", "x" * 30), Document("b", "é" * 60)]
    assert Workload.of(PerQuery(10, 20, windows=2).units(plan("base"), Inputs.of(documents))) == Workload(
        3, 2, 20 + 40 + 40
    )
