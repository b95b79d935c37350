"""House rules that a machine can hold: quick imports, short files, nothing unpickled, a page a method."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import conformance
import toys
from uptake import methods
from uptake.settings import describe

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))
HEAVY = {"torch", "transformers", "peft", "lance", "faiss", "pandas", "pyarrow", "ray"}
HEAVY |= {"sentence_transformers"}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("module", ["uptake", "uptake.cli.main", "uptake.methods"])
def test_importing_stays_light(module: str) -> None:
    heavy = HEAVY if module != "uptake.methods" else HEAVY - {"torch"}
    program = f"import {module}, json, sys; print(json.dumps(sorted({heavy!r} & sys.modules.keys())))"
    assert json.loads(output_of(sys.executable, "-c", program)) == []


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_every_name_of_the_package_can_be_had() -> None:
    import uptake

    for name in uptake.__all__:
        assert getattr(uptake, name) is not None


def test_files_are_short_and_say_what_they_are() -> None:
    texts = {relative(path): path.read_text(encoding="utf8") for path in SOURCES}
    assert len(texts) > 50
    long = {name: lines for name, text in texts.items() if (lines := len(text.splitlines())) > 400}
    assert long == {}, "past 400 lines: make two rooms of it"
    silent = [n for n, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert silent == [], "a file begins by saying what it is for"


def test_nothing_is_unpickled() -> None:
    found = {relative(path): list(unpickling(path.read_text(encoding="utf8"))) for path in SOURCES}
    assert {name: places for name, places in found.items() if places} == {}


def unpickling(source: str) -> Iterator[str]:
    """Yield every place of a source that could run code from a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [name.name for name in node.names]
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            yield from (f"line {node.lineno}: {m}" for m in modules if m.split(".")[0] in UNPICKLERS)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if called == "torch.load" and given.get("weights_only") != "True":
                yield f"line {node.lineno}: torch.load without weights_only=True"
            trusting = "True" in (given.get("allow_pickle"), given.get("trust_remote_code"))
            if trusting or called in ("eval", "exec"):
                yield f"line {node.lineno}: {called}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "eval(text)",
    ],
)
def test_unpickling_would_be_seen(source: str) -> None:
    assert list(unpickling(source))


PAGES = ROOT / "docs" / "methods"
OURS = methods.names()


def test_every_method_has_its_page_and_every_page_its_method() -> None:
    # One page tells of several methods at once, `A+B`.
    assert sorted(path.stem for path in PAGES.glob("*.md") if path.stem not in ("index", "combining")) == OURS


@pytest.mark.parametrize("name", OURS)
def test_a_methods_page_tells_all(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf8")
    headings = re.findall(r"^## (.+)$", page, re.M)
    assert headings == ["What it does", "When to use it", "What it costs", "Settings", "Figures"]
    # A way that is another method on other passages may send the reader to that method's page.
    told = page + "".join(
        (PAGES / link).read_text(encoding="utf8") for link in re.findall(r"\]\(([\w-]+\.md)\)", page)
    )
    method = methods.find(name).method
    # A method inside another is told of by its own page: `inner.optimizer.beta1` there is `optimizer.beta1`.
    assert [
        path for path in paths(describe(method)) if not any(f"`{tail}`" in told for tail in tails(path))
    ] == []


def tails(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def paths(settings: dict[str, object], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if name != "kind":
            yield prefix + name
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{name}.")


def test_no_path_of_a_machine_is_tracked() -> None:
    try:
        listed = output_of("git", "ls-files", "-z")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    # Written in pieces, so that this file does not find itself.
    path = re.compile(
        "/(?:" + "|".join(("work", "root", r"home/\w+", r"Users/\w+", "opt", "tmp/bash")) + ")/"
    )
    for name in filter(None, listed.split("\0")):
        file = ROOT / name
        if not file.is_file() or file.stat().st_size > 2_000_000:
            continue
        for number, line in enumerate(file.read_bytes().decode("utf8", "replace").splitlines(), 1):
            assert not path.search(line), f"{name}:{number}"


def test_torch_is_named_by_one_version_in_one_place() -> None:
    assert len(re.findall(r"^torch==\S+$", (ROOT / "constraints.txt").read_text(), re.M)) == 1
    assert "torch==2" not in (ROOT / "Makefile").read_text()


def written_method(folder: Path) -> ModuleType:
    """Return the example of CONTRIBUTING.md as a module."""
    (source,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)
    path = folder / "unigram_memory.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # a state is read back by the type hints of its module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_the_method_in_contributing_keeps_the_laws(shape: str, tmp_path: Path) -> None:
    method = type(written_method(tmp_path).spec.method).example()
    for name, law in conformance.LAWS.items():
        (tmp_path / name).mkdir()
        law(conformance.Subject.of(method), toys.lm(shape), toys.lm(shape, seed=1), tmp_path / name)
