"""A store that is written, searched and evaluated at once; bench/soak.py does it for as long as one likes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench" / "soak.py"

pytestmark = pytest.mark.long


def test_no_answer_is_wrong_while_others_write(tmp_path):
    out = tmp_path / "soak.json"
    done = subprocess.run(
        [sys.executable, BENCH, "--minutes", "0.25", "--out", out], capture_output=True, text=True
    )
    told = json.loads(out.read_text()) if out.exists() else {}
    assert told and told["wrong"] == [] and done.returncode == 0, done.stdout + done.stderr
    assert told["writer"]["adds"] > 0 and told["writer"]["removals"] > 0
    readers = [told[f"reader {number}"] for number in range(4)]
    assert all(one["rounds"] > 0 and one["checks"] > 0 for one in [*readers, told["evaluator"]])


def test_a_wrong_answer_is_told(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH.parent))
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    import soak

    notes = soak.Notes(tmp_path / "notes")
    held = dict.fromkeys(range(8), 0)
    store = soak.Datastore.create(tmp_path / "store", encoder=soak.ENCODER, chunking=soak.CHUNKING)
    store.add([soak.document(*pair) for pair in held.items()])
    notes.say(version=store.version, held=held)
    process = soak.Process(tmp_path, "reader", 0)
    for ask in (soak.searching, soak.evaluating):
        ask(process, store, *process.notes.around(store.version))
    assert process.told["wrong"] == [] and process.told["counts"]["checks"] > 10
    other = {**held, 3: 1}  # the note says another text than the store holds
    soak.searching(process, store, other, other)
    assert any("other passages than it must" in line for line in process.told["wrong"])
