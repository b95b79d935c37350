"""The main job's benchmark: the guarded mixture it works out is the one the method scores."""

import sys
from pathlib import Path
from typing import Any

import pytest

import toys
from uptake import api
from uptake.evaluation.engine import evaluate
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.store.datastore import Datastore
from uptake.text.types import Chunking, Document, stable_hash

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture(name="bench", scope="module")
def bench_fixture() -> Any:
    sys.path.insert(0, str(BENCH))  # the scripts import their neighbours
    import main_job

    return main_job


def text(seed: int) -> str:
    words = ["the", "cat", "dog", "sat", "ran", "on", "under", "mat", "hill", "red", "blue", "then"]
    return " ".join(words[stable_hash(str(seed), str(i)) % len(words)] for i in range(60))


def test_the_guarded_rows_are_those_of_the_guarded_method(bench: Any, tmp_path: Path) -> None:
    store = Datastore.create(tmp_path / "s", retriever="lexical", chunking=Chunking(characters=100))
    store.add([Document(f"train/{i}", text(100 + i)) for i in range(6)])
    ways = api.method_specs(["base", "ttt-nn", bench.GUARDED], ["optimizer=sgd(learning_rate=0.5)"])
    plan = Plan(ways, PerQuery(80, 80), (1, 3))
    rows = evaluate(toys.lm(), plan, [Document(f"test/{i}", text(i)) for i in range(3)], store).rows
    scored = {(row.query, row.k): row.bits for row in rows if row.method == bench.GUARDED}
    made = {(row.query, row.k): row.bits for row in bench.guarded(rows)}
    assert made == {key: pytest.approx(bits, rel=1e-9) for key, bits in scored.items()}
    plain = {(row.query, row.k): row.bits for row in rows if row.method == "ttt-nn"}
    assert all(abs(plain[key] - bits) > 1e-3 for key, bits in made.items())


def test_rounds_go_through_every_document_once(bench: Any) -> None:
    for count in (1, 7, 8, 9, 33):
        parts = [range(count)[part] for part in bench.rounds(count, 8, 12)]
        assert [number for part in parts for number in part] == list(range(count))
        assert [len(part) <= 12 for part in parts] == [True] * len(parts) and len(parts[0]) <= 8
