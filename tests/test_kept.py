"""Results that can be made again: found under all they depend on, and never the reason that a run ends."""

from pathlib import Path

import pytest

import toys
from uptake.cache import cache_root
from uptake.evaluation import edit_replies
from uptake.kept import cache_of, keep, read_kept
from uptake.lm import number_format, own_text
from uptake.sealed import to_json
from uptake.tasks.edit_marks import Asking


def test_what_was_kept_is_found_under_its_own_words_alone(tmp_path: Path) -> None:
    assert keep(tmp_path / "new", "a model, a rate", {"share": 0.5})
    assert read_kept(tmp_path / "new", "a model, a rate") == {"share": 0.5}
    assert read_kept(tmp_path / "new", "a model, a Rate") is None
    (path,) = (tmp_path / "new").iterdir()
    path.write_bytes(to_json({"of": "another", "share": 0.5}))
    assert read_kept(tmp_path / "new", "a model, a rate") is None, "a file under another's name"


@pytest.mark.parametrize(
    "spoil", [lambda raw: b"", lambda raw: raw[:-9], lambda raw: raw.replace(b"5", b"6", 1)]
)
def test_what_is_damaged_is_nothing(tmp_path: Path, spoil: object) -> None:
    keep(tmp_path, "it", {"share": 0.5})
    (path,) = tmp_path.iterdir()
    path.write_bytes(spoil(path.read_bytes()))
    assert read_kept(tmp_path, "it") is None
    assert keep(tmp_path, "it", {"share": 0.5}) and read_kept(tmp_path, "it") == {"share": 0.5}


def test_a_cache_where_nothing_can_be_made_costs_making_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "file" / "cache"))
    probes = list[float]()
    monkeypatch.setattr(number_format, "probe", lambda: probes.append(0.5) or 0.5)
    assert number_format.format_for("cpu", 10**9) == number_format.format_for("cpu", 10**9) == "bfloat16"
    assert len(probes) == 2
    assert own_text.kept(toys.lm(), 40, 8)
    asked = [Asking("one", 1, "success", 0, "The sea is", "wide")]
    assert len(edit_replies.base_replies(toys.lm(), asked, 2, 1)) == 1
    assert cache_of("rates") is None


def test_a_folder_that_others_may_write_to_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_of("rates") == cache_root() / "rates"
    monkeypatch.setattr("uptake.kept.private", lambda folder, make: False)
    assert cache_of("rates") is None and read_kept(None, "it") is None and not keep(None, "it", {"a": 1})
