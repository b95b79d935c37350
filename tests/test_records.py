"""A journal believes only what was written, and only of its own plan; nothing finished is lost."""

import json
import re
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uptake.errors import BadInput
from uptake.evaluation.records import RecordFile

RECORDS = [{"row": number, "bits": number * 1.5} for number in range(6)]


def written(path: Path, key: str = "a plan", about: dict[str, str] | None = None) -> RecordFile:
    made = RecordFile(path, key, about or {"seed": "0", "documents": "d"})
    made.start(dict)
    for record in RECORDS:
        made.keep(record)
    return made


def read_back(path: Path) -> list[dict[str, float]]:
    return RecordFile(path, "a plan", {"seed": "0", "documents": "d"}).start(dict)


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    assert written(tmp_path / "j").count == 6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_back(tmp_path / "j") == RECORDS


@given(st.data())
def test_no_flipped_bit_is_believed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("flip") / "j"
    written(path)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        found = read_back(path)
    assert all(record in RECORDS for record in found) and len(found) >= 4
    # What is sound goes on, and the file is whole again.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_back(path) == found


def test_a_flipped_digit_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path)
    path.write_bytes(path.read_bytes().replace(b'"bits": 3.0', b'"bits": 9.0'))
    with pytest.warns(match=re.escape(f"{path}: line 4 is not what was written")):
        assert read_back(path) == RECORDS[:2] + RECORDS[3:]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_cut_short_is_not_done_and_nothing_is_said(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j"
    written(path)
    path.write_bytes(path.read_bytes()[:-cut])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_back(path) == RECORDS[:-1]


def test_a_damaged_first_line_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path)
    raw = path.read_bytes()
    path.write_bytes((b"1" if raw[:1] == b"0" else b"0") + raw[1:])
    with pytest.warns(match="line 1 is not what was written"):
        assert read_back(path) == RECORDS


def test_another_plan_is_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "j"
    written(path)
    before = path.read_bytes()
    for fresh in (False, True):
        with pytest.raises(BadInput, match=r"6 records; not the same: seed\).*--fresh"):
            RecordFile(path, "other", {"seed": "1", "documents": "d"}).start(dict, fresh)
        assert path.read_bytes() == before
    assert read_back(path) == RECORDS


def test_a_line_of_another_plan_is_not_believed(tmp_path: Path) -> None:
    written(tmp_path / "j")
    written(tmp_path / "o", "other")
    line = (tmp_path / "o").read_bytes().splitlines(keepends=True)[3]
    with (tmp_path / "j").open("ab") as file:
        file.write(line)
    with pytest.warns(match="line 8"):
        assert read_back(tmp_path / "j") == RECORDS


@pytest.mark.parametrize("content", [b'\xff\x00{"rows": 5}\n[]\n', b'{"key": "a plan"}\n{"row": 1}\n'])
def test_what_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(BadInput, match=r"not a journal.*--fresh"):
        read_back(tmp_path / "j")
    assert (tmp_path / "j").read_bytes() == content


def test_nothing_done_under_another_plan_is_no_reason_to_refuse(tmp_path: Path) -> None:
    RecordFile(tmp_path / "j", "other").start(dict)
    assert read_back(tmp_path / "j") == []
    assert json.loads((tmp_path / "j").read_bytes().partition(b" ")[2])["key"] == "a plan"
