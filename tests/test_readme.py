"""The README's Python runs as it stands, from the repository's root."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.long
def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf8"), re.S)
    script = tmp_path / "readme.py"
    script.write_text(code.replace("build/", f"{tmp_path}/"), encoding="utf8")
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(script))
    gain, *text = capsys.readouterr().out.splitlines()
    assert -1 < float(gain) < 1 and "".join(text).strip()
    assert (tmp_path / "readme.html").stat().st_size > 10_000


def test_every_link_and_picture_of_the_readme_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    assert len(links) > 10 and [link for link in links if not (ROOT / link).exists()] == []


def test_the_tree_of_the_readme_names_every_file() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf8")
    tree = text[text.index("## The tree") :]
    files = [path.name for path in (ROOT / "src" / "uptake").glob("*.py") if not path.name.startswith("_")]
    assert [name for name in files if name not in tree] == []
