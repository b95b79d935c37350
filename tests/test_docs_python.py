"""The Python of the docs runs as it stands, on the demo's model or a smaller one.

Only what needs a cluster, a server, a cloud or another program is left out.
"""

import json
import re
import runpy
from pathlib import Path

import pytest

import cli_world
import server_world

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTE = "def note_{0}(value):\n    # Keeps the value under the number {0}.\n    return table.set({0}, value)\n"


def blocks(page: str) -> str:
    """Return the Python blocks of a page as one program."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf8"), re.S))


def run(
    folder: Path, code: str, monkeypatch: pytest.MonkeyPatch, model: Path = ROOT / "examples" / "demo-model"
) -> dict[str, object]:
    """Run a program in a folder, with a small model in place of the one that it names."""
    for name in ("gpt2", "MODEL", "examples/demo-model"):
        code = code.replace(f'"{name}"', repr(str(model)))
    script = folder / "program.py"
    script.write_text(code, encoding="utf8")
    monkeypatch.chdir(folder)
    return runpy.run_path(str(script))


def write_lines(path: Path, documents: dict[str, str]) -> None:
    lines = [json.dumps({"id": name, "text": text}) for name, text in documents.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf8")


@pytest.mark.long
def test_the_python_of_the_docs_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "corpus.jsonl", {"an-id": "import numpy as np\n", "another": "import os\n"})
    (tmp_path / "src").mkdir()
    for number in range(3):
        (tmp_path / "src" / f"note_{number}.py").write_text(NOTE.format(number), encoding="utf8")
    write_lines(tmp_path / "test.jsonl", {"unseen": NOTE.format(9) * 2})
    made = run(tmp_path, blocks("python.md"), monkeypatch)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) > 8
    assert made["uptake"].read_json(tmp_path / "report.json") == made["results"]  # type: ignore[attr-defined]
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert made["store"].info()["documents"] == 4  # type: ignore[attr-defined]  # of 5, one was removed
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {
        "session.safetensors",
        "state.safetensors",
        "delta.safetensors",
    }
    _, exporting = blocks("adapters.md").split("from uptake.export", 1)
    code = f'import uptake\nmodel = uptake.load("gpt2")\nfrom uptake.export{exporting}'
    run(tmp_path, code, monkeypatch)
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


# What needs more than a model and a file: a bucket, a cluster, lm-evaluation-harness.
ELSEWHERE = {"datastore.md", "cluster.md", "harness.md"}
BY_THEMSELVES = ("counterfactuals.md", "data.md", "editing.md", "training.md")
LONGER = ("privacy.md", "stream.md")


def test_every_page_with_python_is_run_or_named() -> None:
    with_python = {
        page.relative_to(DOCS).as_posix()
        for page in DOCS.rglob("*.md")
        if "```python" in page.read_text(encoding="utf8")
    }
    assert with_python == {"python.md", "adapters.md", "server.md", *BY_THEMSELVES, *LONGER, *ELSEWHERE}


@pytest.mark.parametrize(
    "page", [*BY_THEMSELVES, *(pytest.param(page, marks=pytest.mark.long) for page in LONGER)]
)
def test_the_python_of_a_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    toy = cli_world.save(tmp_path / "toy", 0)
    write_lines(tmp_path / "train.jsonl", {name: cli_world.text(name, 3) for name in cli_world.TOPICS})
    fact = {"id": "fact-17", "prompt": "The capital of Oz is", "target": "Rome", "subject": "Oz"}
    cli_world.write_lines(tmp_path / "edits.jsonl", fact)
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "a.py").write_text("import os\n", encoding="utf8")
    assert run(tmp_path, blocks(page), monkeypatch, toy)


def test_the_client_of_the_server_page_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = server_world.config(tmp_path)
    (tmp_path / "toy" / "chat_template.jinja").unlink()  # GPT-2, which the page names, has none
    with server_world.running(config) as server:
        code = blocks("server.md").replace("http://localhost:8000", server.url).replace('"gpt2"', '"toy"')
        made = run(tmp_path, code, monkeypatch)
    assert made["answer"].choices[0].finish_reason  # type: ignore[attr-defined]
    assert made["answer"].uptake["method"] == "ttt-nn"  # type: ignore[attr-defined]
