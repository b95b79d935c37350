"""The benchmark's published loop learns what ours learns: what differs is how, and so what it costs."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

import uptake
from cli_world import save
from uptake.adaptation.optimizers import AdamW
from uptake.evaluation.queries import Query
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.text.types import Document, Found, Passage

TEXTS = ("def add(a, b):\n    return a + b\n", "for i in range(10):\n    print(i)\n" * 6, "import os\n")


@pytest.fixture(name="speed", scope="module")
def speed_fixture() -> Any:
    bench = Path(__file__).parent.parent / "bench"
    sys.path.insert(0, str(bench))  # it imports its neighbours, as a script does
    spec = importlib.util.spec_from_file_location("speed", bench / "speed.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["speed"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(speed: Any) -> Any:
    document = Document("d", "# arithmetic\ndef sub(a, b):\n    return a - b\n")
    query = Query("d#0", document, document.text[:13], document.text[:13], document.text[13:])
    found = Found(tuple(Passage(i, text) for i, text in enumerate(TEXTS)), (0.0,) * 3, (0.0,) * 3)
    return speed.Asked(query, found, {"float32": 100.0, "bfloat16": 100.0}, 30, 0.0)


def test_the_published_loop_and_ours_agree_where_the_optimiser_is_fresh(speed: Any, tmp_path: Path) -> None:
    lm, one = uptake.load(str(save(tmp_path / "model", 0))), asked(speed)
    loops = [speed.PublishedLoop(lm, every) for every in (True, False)]
    first, once = (loop.run(one, 1e-3) for loop in loops)
    mine = speed.ours(lm, 3)(one, 1e-3)
    assert first == once == pytest.approx(mine, rel=1e-5) != pytest.approx(100.0)
    # Weights are put back, the optimiser's memory is not: the second query is what `reference` does.
    method = Finetune(optimizer=AdamW(1e-3), reference=True, opening_token=True)
    state = method.init(lm)
    for _ in range(2):
        (state,) = method.adapt([method.next_state(state, lm)], lm, [Evidence(one.found)], Context())
    (scores,) = method.adapted([state], lm).score(
        [uptake.lm.base.Segment(one.query.target, one.query.context)]
    )
    assert loops[0].run(one, 1e-3) == pytest.approx(scores.bits, rel=1e-5) != pytest.approx(mine, rel=1e-5)


def test_the_learning_rate_rises_as_long_as_the_gain_does(speed: Any) -> None:
    tried: list[float] = []

    def run(one: Any, rate: float) -> float:
        tried.append(rate)
        return {1e-4: 95.0, 3e-4: 90.0, 1e-3: float("nan"), 3e-3: 1.0}[rate]

    ways = [speed.Contestant("a", "float32", run), speed.Contestant("b", "float32", run, rate_of="a")]
    assert speed.choose_rates(ways, [asked(speed)]) == {"a": 3e-4, "b": 3e-4}
    assert tried == [1e-4, 3e-4, 1e-3]


def test_figures_are_shares_of_what_the_published_loop_saves(speed: Any) -> None:
    one = asked(speed)
    chosen = [speed.Contestant(name, "float32", lambda *_: 0.0) for name in ("published", "once", "ours")]
    bits = {"published": [80.0, 80.0], "once": [80.0, 80.0], "ours": [82.0, 82.0]}
    seconds = {"published": [8.0, 12.0], "once": [4.0, 4.0], "ours": [1.0, 2.0]}
    lines = speed.figures(chosen, dict.fromkeys(bits, 1e-3), [one, one], bits, seconds)
    mine = lines[2]
    assert (
        mine["share_of_published_gain"]
        == pytest.approx(0.9)
        == pytest.approx(mine["share_of_published_gain_ci"][0])
    )
    assert mine["gain"] == pytest.approx(0.18) and mine["bits_per_byte_saved"] == pytest.approx(36 / 60)
    assert mine["times_faster_than_published"] == 7.0 and mine["times_faster_than_scored_once"] == 3.0
    assert mine["cpu_seconds"] == 1.5
