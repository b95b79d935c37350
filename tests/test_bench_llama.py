"""The benchmark for GPUs runs through on a CPU, on a tiny shape, and says what it had no time for."""

import json
from pathlib import Path

import pytest

from bench import llama


def test_a_dry_run_measures_everything(tmp_path: Path) -> None:
    out = tmp_path / "llama.json"
    assert llama.main(["--device", "cpu", "--shape", "tiny", "--out", str(out)]) == 0
    found = json.loads(out.read_bytes())
    assert found["left_out"] == [] and found["device"] == "cpu"
    assert {*found["queries"]} == {*llama.METHODS} and found["decode 2"]["times_loop"] > 0
    assert found["train 2x8"]["times_loop"] > 0 and found["shares"]["forward"]["share_of_peak"] > 0


def test_what_there_is_no_time_for_is_named(tmp_path: Path) -> None:
    out = tmp_path / "llama.json"
    assert llama.main(["--device", "cpu", "--shape", "tiny", "--limit", "-1", "--out", str(out)]) == 0
    assert "queries" in json.loads(out.read_bytes())["left_out"]


def test_one_figure_is_measured_anew_and_the_others_stay(tmp_path: Path) -> None:
    out = tmp_path / "llama.json"
    asked = ["--device", "cpu", "--shape", "tiny", "--out", str(out)]
    out.write_text(json.dumps({"queries": "kept"}))
    assert llama.main([*asked, "--again", "shares"]) == 0
    found = json.loads(out.read_bytes())
    assert found["queries"] == "kept" and found["shares"]["forward"]["share_of_peak"] > 0
    with pytest.raises(SystemExit):
        llama.main([*asked, "--again", "sharks"])
