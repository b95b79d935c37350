"""Edits kept in a folder: what was accepted is there whatever happens, and what was made follows from it."""

import fcntl
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toys
import uptake
from uptake.adaptation.delta import Delta
from uptake.editing import DELTA, EDITS, LOCK, STATE, EditedModel, edited, stored_edits
from uptake.errors import BadInput, Busy, Damaged, Mismatch, Missing
from uptake.evaluation.edit_making import make_edits
from uptake.lm.base import LM, Segment
from uptake.lm.causal import Causal
from uptake.methods.contract.method import Context
from uptake.tasks.edits import Edit, Probe
from uptake.text.types import stable_hash

COLOURS = {"cat": "red", "dog": "blue", "fish": "grey", "hen": "black"}
ALL = tuple(
    Edit(f"e{n}", f"the {what} is", colour, what, neighbours=(Probe("x", "y"),))
    for n, (what, colour) in enumerate(COLOURS.items())
)
WEIGHTS = {"method": "finetune", "settings": ("optimizer=sgd(learning_rate=0.1)", "trainable=lora(rank=2)")}


@pytest.fixture(name="lm", scope="module")
def lm_fixture() -> Causal:
    return toys.lm()


def logs(lm: LM, edit: Edit = ALL[0]) -> torch.Tensor:
    return lm.score([Segment(edit.text, edit.prompt)])[0].log_probs


def test_what_is_made_is_there_again_and_is_what_the_method_makes(lm: Causal, tmp_path: Path) -> None:
    model = EditedModel(tmp_path / "d", lm, **WEIGHTS)
    assert torch.equal(logs(model.lm), logs(lm))
    made = model.make(ALL[:3])
    assert made.ids == ["e0", "e1", "e2"] and not made.left_out.total
    context = Context(stable_hash("0", "edits", "0"))
    (state, failed) = make_edits(model.method, model.method.init(lm), lm, ALL[:3], context)
    assert not failed and torch.equal(logs(model.lm), logs(model.method.adapted([state], lm).at([0])))
    again = EditedModel(tmp_path / "d", lm)
    assert again.edits == stored_edits(tmp_path / "d") == ALL[:3]
    assert torch.equal(logs(again.lm), logs(model.lm))
    delta = Delta.load(tmp_path / "d" / DELTA, lm.fingerprint)
    assert torch.allclose(logs(lm.overlay(delta)), logs(model.lm), atol=1e-6)
    assert torch.equal(logs(edited(lm, tmp_path / "d")), logs(model.lm))
    assert torch.allclose(logs(edited(lm, tmp_path / "d" / DELTA)), logs(model.lm), atol=1e-6)


def test_removed_is_never_made(lm: Causal, tmp_path: Path) -> None:
    model, other = EditedModel(tmp_path / "d", lm, **WEIGHTS), EditedModel(tmp_path / "o", lm, **WEIGHTS)
    model.make(ALL[:3], turn=1)
    model.remove(["e1"])
    other.make([ALL[0], ALL[2]], turn=1)
    assert torch.equal(logs(model.lm), logs(other.lm)) and [edit.id for edit in model.edits] == ["e0", "e2"]
    assert all(b"the dog is" not in file.read_bytes() for file in (tmp_path / "d").iterdir())
    with pytest.raises(BadInput, match="has no edit 'e1'"):
        model.remove(["e1"])


def test_what_contradicts_is_refused_or_takes_the_place_of_the_earlier(lm: Causal, tmp_path: Path) -> None:
    model = EditedModel(tmp_path / "d", lm, "gated-memory")
    model.make(ALL)
    new = replace(ALL[0], id="new", target="pink")
    made = model.make([new, ALL[1], replace(ALL[2], target="x"), replace(ALL[3], id="z", target="")])
    assert not made.ids and made.left_out.counts == {
        "made before": 1, "duplicate id": 1, "empty target": 1, "contradicts an earlier edit": 1
    }  # fmt: skip
    assert model.edits == ALL
    made = model.make([new], contradicting="last")
    assert made.ids == ["new"] and [edit.id for edit in model.edits] == ["e1", "e2", "e3", "new"]
    other = EditedModel(tmp_path / "o", lm, "gated-memory")
    other.make([*ALL[1:], new])
    assert torch.equal(logs(model.lm, new), logs(other.lm, new))
    assert not (tmp_path / "d" / DELTA).exists(), "a memory is more than a change of weights"


def test_an_edit_that_cannot_be_made_is_not_kept(lm: Causal, tmp_path: Path) -> None:
    model = EditedModel(tmp_path / "d", lm, "finetune", settings=("optimizer=sgd(learning_rate=1e30)",))
    made = model.make([replace(ALL[0], prompt="x" * 99, subject=""), *ALL[1:3]], turn=1)
    assert made.left_out.counts["longer than the window"] == 1
    assert made.ids == ["e1"] and "use a smaller learning rate" in str(made.left_out.firsts)
    assert [edit.id for edit in stored_edits(tmp_path / "d")] == ["e1"]


def test_another_base_method_or_folder_is_refused(lm: Causal, tmp_path: Path) -> None:
    EditedModel(tmp_path / "d", lm, **WEIGHTS).make(ALL[:1])
    with pytest.raises(Mismatch, match="load that model"):
        EditedModel(tmp_path / "d", toys.lm(seed=1))
    with pytest.raises(Mismatch, match="load the model it was made on"):
        edited(toys.lm(seed=1), tmp_path / "d" / DELTA)
    with pytest.raises(BadInput, match="holds edits made by finetune"):
        EditedModel(tmp_path / "d", lm, "memit")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(BadInput, match="is not empty"):
        EditedModel(tmp_path / "full", lm)
    with pytest.raises(Missing, match=r"edits\.json"):
        stored_edits(tmp_path / "none")


@pytest.mark.parametrize("stop", ["before anything is made", "before a removed one is forgotten"])
def test_what_was_interrupted_is_seen_and_finished(
    lm: Causal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    class KilledError(Exception):
        pass

    def killed(*_: Any) -> Any:
        raise KilledError

    model = EditedModel(tmp_path / "d", lm, **WEIGHTS)
    model.make(ALL[:2])
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(EditedModel, "_finish", killed)
        if stop.startswith("before anything"):
            model.make(ALL[2:])
        else:
            model.remove(["e0"])
    left = EditedModel(tmp_path / "d", lm)
    with pytest.raises(BadInput, match="interrupted: run `uptake edit"):
        _ = left.lm
    expected = ALL if stop.startswith("before anything") else ALL[1:2]
    assert left.edits == expected, "what was acknowledged is not there"
    left.make()
    assert {passage.document for passage in left.state.passages} == {edit.id for edit in expected}
    assert logs(EditedModel(tmp_path / "d", lm).lm).isfinite().all()


def test_any_changed_byte_and_any_cut_is_told(lm: Causal, tmp_path: Path) -> None:
    model = EditedModel(tmp_path / "d", lm, **WEIGHTS)
    model.make(ALL[:2])
    for name in (EDITS, STATE):
        path = tmp_path / "d" / name
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 10)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises((Damaged, BadInput)):
                EditedModel(tmp_path / "d", lm)
            path.write_bytes(whole[:at])
            with pytest.raises((Damaged, BadInput)):
                EditedModel(tmp_path / "d", lm)
        path.write_bytes(whole)
    (tmp_path / "d" / STATE).unlink()  # what was made follows from the edits
    left = EditedModel(tmp_path / "d", lm)
    left.make()
    assert torch.equal(logs(left.lm), logs(model.lm))


def test_two_writers_do_not_mix(lm: Causal, tmp_path: Path) -> None:
    one, other = (EditedModel(tmp_path / "d", lm, "gated-memory") for _ in range(2))
    one.make(ALL[:1])
    other.make(ALL[1:2])
    assert [edit.id for edit in other.edits] == ["e0", "e1"], "what another process wrote was lost"
    with (tmp_path / "d" / LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="another process writes"):
            one.make(ALL[2:3])


_WRITER = """
import sys
import toys
from uptake.editing import EditedModel
from uptake.tasks.edits import Edit

model = EditedModel(sys.argv[1], toys.lm(), "gated-memory")
print("ready", flush=True)
for number in range(10_000):
    model.make([Edit(f"e{number}", f"the thing {number} is", f"v{number}")])
    print(number, flush=True)
"""


@pytest.mark.long
@pytest.mark.parametrize("delay", [0.05, 0.2, 0.5, 1.1])
def test_killed_at_any_moment_every_acknowledged_edit_is_there(
    lm: Causal, tmp_path: Path, delay: float
) -> None:
    command = [sys.executable, "-c", _WRITER, str(tmp_path / "d")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        said = [int(line) for line in writer.stdout.read().split("\n")[:-1]]
    if not (tmp_path / "d" / EDITS).exists():
        assert not said
        return
    model = EditedModel(tmp_path / "d", lm)
    stored = [edit.id for edit in model.edits]
    assert stored[: len(said)] == [f"e{number}" for number in said] and len(stored) <= len(said) + 1
    model.make()
    assert len(model.state.passages) == len(stored) and model.lm is not None


def test_from_python_in_five_lines(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    toys.module().save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    (tmp_path / "edits.jsonl").write_text(json.dumps({"id": "a", "prompt": "the cat is", "target": "red"}))
    edited = uptake.EditedModel(tmp_path / "fixes", uptake.load(str(folder)), "gated-memory")
    edited.make(uptake.read_edits(tmp_path / "edits.jsonl"))
    assert edited.generate("the cat is", 4) != uptake.load(str(folder)).generate("the cat is", 4)
    edited.remove(["a"])
    assert edited.generate("the cat is", 4) == uptake.load(str(folder)).generate("the cat is", 4)
