"""A protocol that is one new file goes through the whole engine: journal, workers, file, table, page."""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toys
import uptake
from toy_edits import Edited, Edits
from uptake.adaptation.optimizers import SGD
from uptake.errors import BadInput
from uptake.evaluation.inputs import Inputs
from uptake.lm.base import LM, Segment
from uptake.lm.causal import Causal
from uptake.methods import find
from uptake.methods.contract.method import Context, Evidence, MethodSpec
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.finetune import Finetune
from uptake.report.page import page
from uptake.report.results import Results
from uptake.report.summary import table
from uptake.tasks.edits import Edit
from uptake.text.types import Found

COLOURS = {"cat": "red", "dog": "blue", "fish": "grey", "hen": "black", "cow": "white"}
EDITS = tuple(
    Edit(f"e{n}", f"the {what} is", f"{colour}.", rephrases=(f"what is the {what}?",))
    for n, (what, colour) in enumerate(COLOURS.items())
)


class Fragile(Finetune):
    """Breaks on the edit about the dog."""

    def adapt(
        self,
        states: Sequence[WeightState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[WeightState]:
        if "dog" in evidence[0].passages[0].prompt:
            raise RuntimeError("no dogs")
        return super().adapt(states, lm, evidence, context, donate)


SPECS = {
    "base": find("base"),
    "learner": MethodSpec(Finetune(optimizer=SGD(0.05))),
    "fragile": MethodSpec(Fragile(optimizer=SGD(0.05))),
}


@pytest.fixture(name="model", scope="module")
def model_fixture(tmp_path_factory: pytest.TempPathFactory) -> Causal:
    folder = tmp_path_factory.mktemp("model")
    toys.module().save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    return uptake.load(str(folder))


def measured(model: Causal, **more: Any) -> Results:
    return uptake.compare(model, Inputs(edits=EDITS), SPECS, protocol=Edits(), showcases=2, **more)


def without_memory(results: Results) -> Results:
    return replace(results, header=replace(results.header, peak_rss_bytes={}))


@pytest.fixture(name="whole", scope="module")
def whole_fixture(model: Causal) -> Results:
    return measured(model)


def test_edits_are_made_in_order_then_asked(model: Causal, whole: Results) -> None:
    method = SPECS["learner"].method
    state = method.init(model)
    for edit in EDITS:
        evidence = Evidence(Found((edit.passage(),), (0.0,)))
        (state,) = method.adapt([state], model, [evidence], Context())
    adapted = method.adapted([state], model)
    rows = {row.edit: row for row in whole.of(Edited) if row.method == "learner"}
    for edit in EDITS:
        nats = -float(adapted.score([Segment(edit.text, edit.prompt)])[0].log_probs.sum())
        assert rows[edit.id].nats == nats < rows[edit.id].base
    base = [row for row in whole.of(Edited) if row.method == "base"]
    assert all(row.nats == row.base for row in base) and len(base) == len(EDITS)


def test_a_failed_edit_counts_at_the_base_and_is_named_everywhere(whole: Results, tmp_path: Path) -> None:
    failed = [row for row in whole.of(Edited) if row.failed]
    assert [(row.method, row.edit, row.failed) for row in failed] == [
        ("fragile", "e1", "RuntimeError: no dogs")
    ]
    reason = failed[0].failed
    assert failed[0].nats == failed[0].base
    assert uptake.summary(whole)["methods"]["fragile"]["failures"] == [{"edit": "e1", "reason": reason}]
    assert "1 failed under fragile" in str(table(whole).caption)
    assert "e1: RuntimeError: no dogs" in page(whole)


def test_file_table_and_page(whole: Results, tmp_path: Path) -> None:
    uptake.write_json(whole, tmp_path / "edits.json")
    back = uptake.read_json(tmp_path / "edits.json", Edits)
    assert back.rows == whole.rows and back.showcases == whole.showcases
    assert uptake.summary(back) == uptake.summary(whole)
    with pytest.raises(BadInput, match="no protocol 'toy-edits'"):
        uptake.read_json(tmp_path / "edits.json")
    assert uptake.table(whole).row_count == 3
    uptake.write_page(whole, tmp_path / "edits.html")
    html = (tmp_path / "edits.html").read_text()
    assert "What is said now" in html and "the cat is" in html and "Settings of learner" in html


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop", [2, 5, 8, 13])
def test_stopped_anywhere_it_goes_on(model: Causal, whole: Results, tmp_path: Path, stop: int) -> None:
    def interrupt(done: int, total: int, label: str) -> None:
        assert total == 15
        if done == stop:
            raise StoppedError

    with pytest.raises(StoppedError):
        measured(model, journal=tmp_path / "j", progress=interrupt)
    seen: list[int] = []
    again = measured(model, journal=tmp_path / "j", progress=lambda done, total, label: seen.append(done))
    assert without_memory(again) == without_memory(whole)
    assert stop - 2 < seen[0] <= stop
    assert [file.name for file in tmp_path.iterdir()] == ["j"], "a state was left behind"


@pytest.mark.long
def test_workers_give_the_same_and_a_killed_one_is_made_good(
    model: Causal, whole: Results, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(done: int, total: int, label: str) -> None:
        if not killed and done >= 2:
            victim = _children()[0]
            killed.append(victim)
            os.kill(victim, signal.SIGKILL)

    shared = measured(model, journal=tmp_path / "j", workers=2, progress=kill)
    assert killed and without_memory(shared) == without_memory(whole)


def _children() -> list[int]:
    return [process.pid for process in multiprocessing.active_children() if process.pid]


def test_a_set_up_that_is_wrong_ends_the_run_at_once(model: Causal) -> None:
    with pytest.raises(BadInput, match="no edit to make"):
        uptake.compare(model, Inputs(), SPECS, protocol=Edits())
    with pytest.raises(BadInput, match="the model has 2"):
        uptake.compare(
            model, Inputs(edits=EDITS), ["finetune"], settings=["trainable=top(layers=9)"], protocol=Edits()
        )
