"""A server that cannot begin says why in one line, and ends with 2."""

import fcntl
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import server_world
from uptake.errors import BadInput
from uptake.server import serving
from uptake.server.config import Recipe, StoreAt
from uptake.server.engine import folders
from uptake.server.keys import Keys


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    server_world.config(folder)
    broken = server_world.saved_model(folder / "broken") / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-100])
    (server_world.saved_store(folder / "damaged.store") / "store.json").write_text("{")
    (folder / "a file").write_text("no folder")
    (folder / "damaged").mkdir()
    (folder / "damaged" / "records.db").write_bytes(b"no records " * 999)
    (folder / "taken").mkdir()
    return folder


def refusal(config: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(serving, "EngineProcess", server_world.EngineThread)
    monkeypatch.setattr(folders, "PATIENCE", 0.1)
    with (
        server_world.patched(),
        serving.listening("127.0.0.1", 0) as at,
        pytest.raises(BadInput) as caught,
    ):
        serving.serve(config, None, at)
    return str(caught.value)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"model": "none"}, "none"),
        ({"model": "FOLDER/broken"}, "broken"),
        ({"stores": (StoreAt("notes", "FOLDER/none.store"),)}, "none.store"),
        ({"stores": (StoreAt("notes", "FOLDER/damaged.store"),)}, "store.json"),
        ({"stores": (StoreAt("notes", "FOLDER/notes.store", query_encoder="FOLDER/none"),)}, "none"),
        ({"stores": (StoreAt("notes", "FOLDER/notes.store", search_by="sum"),)}, "sum"),
        ({"recipes": (Recipe("notes", "ttt-nn", 2, ("trainable=nothing",), "notes"),)}, "trainable"),
        ({"embedder": "FOLDER/none", "embedder_name": "none"}, "no such folder"),
        ({"data": "FOLDER/a file"}, "give a folder"),
        ({"data": "FOLDER/damaged"}, "records.db"),
        ({"data": "FOLDER/taken"}, "another server"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_one_line_says_why_an_engine_cannot_begin(
    folder: Path,
    more: dict[str, Any],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    placed = {name: _placed(value, folder) for name, value in more.items()}
    with (folder / "taken" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        told = refusal(replace(server_world.config(folder), **placed), monkeypatch)
    assert says in told and "\n" not in told
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed and "ERROR" not in printed, printed


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, str):
        return value.replace("FOLDER", str(folder))
    placed = (replace(each, path=_placed(each.path, folder)) for each in value if isinstance(each, StoreAt))
    return tuple(placed) or value


def test_an_address_or_keys_that_cannot_be_had_are_told(folder: Path) -> None:
    with serving.listening("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(BadInput, match="give another"):
            serving.listening("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(BadInput, match="give another"):
        serving.listening("192.0.2.1", 0)
    (folder / "bad.db").write_bytes(b"no keys " * 999)
    for path in (folder / "bad.db", folder / "none.db", folder):
        with pytest.raises(BadInput):
            Keys(path)


@pytest.mark.long
def test_the_command_prints_the_line_alone_and_ends_with_2(folder: Path) -> None:
    program = "from uptake.cli.main import main; main()"
    asked = [sys.executable, "-c", program, "serve", "--port", "0", "-m", str(folder / "broken")]
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    told = subprocess.run(asked, capture_output=True, text=True, timeout=240, check=False, env=path)
    (line,) = told.stderr.strip().splitlines()
    assert told.returncode == 2 and "broken" in line and told.stdout == ""
