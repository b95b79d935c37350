"""Which build of PyTorch an installation takes, and what it says of it beforehand. Nothing is installed."""

import importlib.util
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent.parent / "tools" / "install_torch.py"


@pytest.fixture(name="program")
def program_fixture(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("install_torch", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "has_gpu", lambda: False)
    monkeypatch.setattr(module.platform, "system", lambda: "Linux")
    return module


def wheel(folder: Path, name: str, number: str, needs: str = "", filler: int = 0) -> None:
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n{needs}"
    with zipfile.ZipFile(folder / f"{name}-{number}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}-{number}.dist-info/METADATA", about)
        file.writestr(f"{name}-{number}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{name}-{number}.dist-info/RECORD", "")
        file.writestr(f"{name}.bin", bytes(filler))


@pytest.fixture(name="wheels")
def wheels_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package index is a folder with CUDA's build alone."""
    wheel(tmp_path, "torch", "99.9", "Requires-Dist: nvidia_all\n", 2_000_000)
    wheel(tmp_path, "nvidia_all", "1.0", filler=7_000_000)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(tmp_path)), ("CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(f"PIP_{name}", value)
    return tmp_path


def run(program: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> tuple[Any, str]:
    monkeypatch.setattr(sys, "argv", ["install_torch.py", "99.9", "--say", *arguments])
    return program.main(), capsys.readouterr().out


@pytest.mark.long
def test_the_build_without_cuda_is_taken_where_there_is_no_gpu(
    program: Any, wheels: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    answer, said = run(program, monkeypatch, capsys)  # there is none: it is said, not passed over
    assert answer is None and "with CUDA, though there is no NVIDIA GPU here" in said
    assert "2 packages, 9 MB to fetch" in said and "nvidia_all 7 MB, torch 2 MB" in said
    answer, said = run(program, monkeypatch, capsys, "--build", "cpu")
    assert "not found in the package index" in answer and "TORCH=cuda takes" in answer and said == ""
    wheel(wheels, "torch", "99.9+cpu", filler=1_000_000)
    answer, said = run(program, monkeypatch, capsys)
    assert answer is None and "without CUDA, for there is no NVIDIA GPU here" in said
    assert "1 package, 1 MB to fetch" in said
    _, said = run(program, monkeypatch, capsys, "--build", "cuda")
    assert "with CUDA, as TORCH=cuda says" in said and "nvidia_all" in said
    monkeypatch.setattr(program, "has_gpu", lambda: True)
    _, said = run(program, monkeypatch, capsys)
    assert "with CUDA, for the NVIDIA GPU here" in said and "nvidia_all" in said


def test_a_size_that_nobody_tells_is_not_made_up(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"a": 2_500_000_000, "b": None, "c": 30_000_000}
    monkeypatch.setattr(program, "size", sizes.get)
    said = program.told([(name, "1", name) for name in sizes])
    assert said.startswith("3 packages, at least 2.5 GB to fetch") and said.endswith("a 2.5 GB, c 30 MB")
    monkeypatch.setattr(program, "size", lambda url: None)
    assert program.told([("a", "1", "a")]) == "1 package of unknown size"


def test_what_is_there_already_is_left_alone(
    program: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(program, "installed", lambda: "99.9+cpu")
    monkeypatch.setattr(program, "plan", lambda *arguments: pytest.fail("asked the package index"))
    assert run(program, monkeypatch, capsys) == (None, "torch 99.9+cpu is installed already\n")
