"""A stream that is interrupted goes on and ends as if it had not been, wherever it was cut."""

import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toy_methods
import toys
import uptake
from uptake.adaptation.optimizers import AdamW
from uptake.codec import dumps
from uptake.errors import BadInput
from uptake.evaluation import journal as journals
from uptake.evaluation.records import RecordFile
from uptake.methods.contract.method import MethodSpec
from uptake.methods.finetune import Finetune
from uptake.methods.in_context import InContext
from uptake.report.results import Results
from uptake.report.streamed.rows import Spent
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question
from uptake.text.types import Document

DOCUMENTS = [Document(f"d{number}", f"the thing {number} is {number * 7}.") for number in range(9)]
QUESTIONS = [Question(f"q{number}", f"{number}?", (f"{number * 7}",), f"d{number}") for number in range(9)]
OTHERS = [Document("o", "nothing to do with it.")]
SECONDS = ("retrieve_seconds", "adapt_seconds", "ask_seconds")
WAYS = {
    "learner": MethodSpec(Finetune(optimizer=AdamW(1e-2))),
    "memory": MethodSpec(toy_methods.Memory()),
    "before": MethodSpec(InContext()),
}


class StoppedError(Exception):
    pass


def stream(journal: Path | None, **more: Any) -> Results:
    return uptake.stream(
        toys.lm(), DOCUMENTS, QUESTIONS, WAYS, unrelated=OTHERS, checkpoints=[3], save_every=2,
        asking=Asking("{question}", tokens=2), journal=journal, **more,
    )  # fmt: skip


def timeless(results: Results) -> Results:
    header = replace(results.header, peak_rss_bytes=dict.fromkeys(results.header.peak_rss_bytes, 0))
    rows = tuple(
        replace(row, adapt_seconds=0.0, ask_seconds=0.0, retrieve_seconds=0.0, gpu_seconds=0.0)
        if isinstance(row, Spent)
        else row
        for row in results.rows
    )
    return replace(results, header=header, rows=rows)


@pytest.fixture(name="whole", scope="module")
def whole_fixture() -> Results:
    return timeless(stream(None))


@pytest.mark.parametrize("stop", [1, 2, 4, 9, 10, 13, 26])
def test_stopped_after_any_document(tmp_path: Path, whole: Results, stop: int) -> None:
    def interrupt(done: int, total: int, name: str) -> None:
        assert total == 27
        if done == stop:
            raise StoppedError

    path = tmp_path / "r.json.journal"
    with pytest.raises(StoppedError):
        stream(path, progress=interrupt)
    seen: list[int] = []
    assert timeless(stream(path, progress=lambda done, total, name: seen.append(done))) == whole
    # Work that had been written down is not done again.
    assert stop - 2 <= seen[0] <= stop
    # Finished, it is read back and nothing is done.
    assert timeless(stream(path, progress=lambda done, total, name: seen.append(done))) == whole
    assert seen[-1] == 27
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "a state was left behind"


@pytest.mark.parametrize("what", ["line", "state"])
@pytest.mark.parametrize("turn", [1, 2, 3, 7])
def test_cut_while_it_is_written_down(
    tmp_path: Path, whole: Results, monkeypatch: pytest.MonkeyPatch, what: str, turn: int
) -> None:
    path, calls = tmp_path / "journal", [0]
    home, name = (RecordFile, "keep") if what == "line" else (journals, "save_state")
    real = getattr(home, name)

    def cut(*given: Any) -> None:
        calls[0] += 1
        if calls[0] == turn:
            if what == "line":
                with path.open("a") as file:
                    file.write(dumps(given[1])[:40])
            raise StoppedError
        real(*given)

    monkeypatch.setattr(home, name, cut)
    with pytest.raises(StoppedError):
        stream(path)
    monkeypatch.undo()
    assert timeless(stream(path)) == whole


def test_a_state_that_is_lost_or_damaged_costs_its_way_alone(tmp_path: Path, whole: Results) -> None:
    def interrupt(done: int, total: int, name: str) -> None:
        if done == 14:
            raise StoppedError

    path = tmp_path / "journal"
    for ruin in (Path.unlink, lambda file: file.write_bytes(b"no tensors")):
        with pytest.raises(StoppedError):
            stream(path, progress=interrupt)
        (state,) = tmp_path.glob("journal.states/*.state")
        ruin(state)
    seen: list[int] = []
    with pytest.warns(match="is missing or not what was written"):
        found = stream(path, progress=lambda done, total, name: seen.append(done))
    assert timeless(found) == whole
    assert seen[1] == 10, "the first way was done and stays so"
    assert timeless(stream(path)) == whole


def test_another_plan_is_refused_and_loses_nothing(tmp_path: Path, whole: Results) -> None:
    def interrupt(done: int, total: int, name: str) -> None:
        if done == 14:
            raise StoppedError

    path = tmp_path / "journal"
    with pytest.raises(StoppedError):
        stream(path, progress=interrupt)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert len(before) == 2, "a journal and a state"
    with pytest.raises(BadInput, match=r"not the same: seed\)"):
        stream(path, seed=1)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    seen: list[int] = []
    assert timeless(stream(path, progress=lambda done, total, name: seen.append(done))) == whole
    assert seen[0] == 13, "the state that was kept last"


def test_a_part_that_is_missing_costs_its_unit_alone(tmp_path: Path, whole: Results) -> None:
    path = tmp_path / "journal"
    stream(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for gone in range(1, len(lines)):
        # Lines taken out, or flipped: what comes is the same, and other units are not done again.
        for ruin in (b"", lines[gone].replace(b'"done": ', b'"done": 1', 1)):
            path.write_bytes(b"".join([*lines[:gone], ruin, *lines[gone + 1 :]]))
            seen: list[int] = []
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                found = stream(path, progress=lambda done, total, name, seen=seen: seen.append(done))
            assert timeless(found) == whole
            assert seen[0] >= 18, "more than one method's way was done again"
            assert told or not ruin, "a changed line was passed over without a word"


def test_a_state_of_which_a_bit_is_flipped_is_not_gone_on_from(tmp_path: Path, whole: Results) -> None:
    def interrupt(done: int, total: int, name: str) -> None:
        if done == 6:
            raise StoppedError

    path = tmp_path / "journal"
    with pytest.raises(StoppedError):
        stream(path, progress=interrupt)
    (state,) = tmp_path.glob("journal.states/*.state")
    raw = bytearray(state.read_bytes())
    raw[-2] ^= 0x40  # a tensor's value
    state.write_bytes(raw)
    with pytest.warns(match="not what was written"):
        assert timeless(stream(path)) == whole


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import test_stream_resume as here
print("ready", flush=True)
here.stream(here.Path({path!r}), progress=lambda done, total, name: print(done, flush=True))
"""


@pytest.mark.long
def test_killed_it_goes_on(tmp_path: Path, whole: Results) -> None:
    path = tmp_path / "journal"
    program = PROGRAM.format(tests=str(Path(__file__).parent), path=str(path))
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "12":
                time.sleep(0.005)  # somewhere within a document or a write
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    seen: list[int] = []
    assert timeless(stream(path, progress=lambda done, total, name: seen.append(done))) == whole
    assert seen[0] >= 10
