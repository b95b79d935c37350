"""Files of ours: whole or not at all, one sum over all their bytes, drafts of the dead cleared away."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uptake.adaptation.delta import Delta
from uptake.adaptation.delta.scale import Scale
from uptake.adaptation.tensors import read_tensors, write_tensors
from uptake.errors import Damaged, UptakeError
from uptake.sealed import clear_drafts, from_json, from_lines, to_json, to_lines, write_whole

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text().filter(lambda name: name != "sha256"), JSON, min_size=1, max_size=4))
def test_a_json_object_comes_back_and_is_json_to_everybody(data: dict[str, object]) -> None:
    raw = to_json(data)
    assert from_json(raw, "f", "thing", "cure") == data
    assert {name: each for name, each in json.loads(raw).items() if name != "sha256"} == data


@given(st.lists(st.text().map(lambda text: text.replace("\n", ""))))
def test_lines_come_back(lines: list[str]) -> None:
    assert from_lines(to_lines("".join(f"{line}\n" for line in lines)), "f", "thing", "cure") == lines


@pytest.mark.parametrize("kind", ["json", "lines", "tensors"])
def test_no_byte_can_change_be_lost_or_come_to_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "json":
        write_whole(path, to_json({"a": [1, 2.5, "ü"], "b": {"c": None}}))
    elif kind == "lines":
        write_whole(path, to_lines("one\ntwo\n"))
    else:
        write_tensors(path, {"w": torch.ones(2)}, {"format": "uptake-thing-1", "name": '"sha256":"00"'})
    read = {
        "json": lambda: from_json(path.read_bytes(), path, "thing", "cure"),
        "lines": lambda: from_lines(path.read_bytes(), path, "thing", "cure"),
        "tensors": lambda: read_tensors(path, "thing"),
    }[kind]
    read()
    good = path.read_bytes()
    spoilt = [
        good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :] for at in range(len(good)) for bit in (0, 6)
    ]
    spoilt += [good[:at] for at in range(len(good))] + [good[:at] + good[at + 1 :] for at in range(len(good))]
    spoilt += [good + b"\n", good + good, b"\n" + good]
    for bad in spoilt:
        path.write_bytes(bad)
        if bad == good:  # one of two equal bytes was left out: nothing is missing
            continue
        with pytest.raises(Damaged) as caught:
            read()
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_no_bit_of_a_delta_can_change(tmp_path: Path) -> None:
    """One bit of its words made a scale of 1.0 one of 9.0, and many were no error of ours."""
    path = tmp_path / "delta"
    Delta.of("base", {"m": Scale(torch.ones(2))}, "edit").save(path)
    good = path.read_bytes()
    for at in range(len(good)):
        for bit in range(8):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
            with pytest.raises(UptakeError) as caught:
                Delta.load(path, "base")
            assert "\n" not in str(caught.value)


def test_a_draft_goes_once_its_writer_is_dead(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from uptake.sealed import draft_beside\n"
        "with draft_beside(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); print('on the disk', flush=True); sys.stdin.readline()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "target")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as living:
        assert living.stdout is not None
        living.stdout.readline()
        (draft,) = tmp_path.iterdir()
        write_whole(tmp_path / "other", b"whole")
        assert draft.exists()  # its writer lives and holds its lock
        living.kill()
        living.communicate()
    write_whole(tmp_path / "other", b"whole again")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_what_is_no_draft_of_the_dead_is_left_alone(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in (".uptake-notes", ".uptake-0123456789abcdeg", ".other")]
    for path in kept:
        path.write_text("precious")
    young, old = tmp_path / f".uptake-{'0' * 16}", tmp_path / f".uptake-{'1' * 16}"
    young.touch()  # made this moment: its writer may not have locked it yet
    old.touch()
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    link = tmp_path / f".uptake-{'2' * 16}"
    link.symlink_to(kept[0])
    clear_drafts(tmp_path)
    assert {*tmp_path.iterdir()} == {*kept, young, link}


def test_a_new_file_follows_the_umask_and_a_replaced_one_keeps_its_mode(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "new", b"1")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
        (tmp_path / "new").chmod(0o600)
        write_whole(tmp_path / "new", b"2")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    finally:
        os.umask(before)
