"""Every file of ours, spoilt: found or refused in one line; no traceback, no hang, no other answer."""

import ast
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest

from fuzzing import CASES, contents, spoilt, write
from uptake.errors import UptakeError
from uptake.store.verify import verify_store
from uptake.store.views import key_index

SOURCES = Path(__file__).parent.parent / "src" / "uptake"
SAMPLE, WHOLE = 6, 2400  # mutations of each case in a quick run, and of all in a long one
SECONDS = 60  # that one reading may take before it counts as a hang


def sound(name: str, base: Path) -> list[Path]:
    """Return two sound folders of a case."""
    folders = [base / f"{name}-{seed}" for seed in (0, 1)]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        CASES[name].make(folder, seed)
    return folders


def too_long(*_: object) -> None:
    raise AssertionError(f"no answer after {SECONDS} s")


def fuzz(name: str, folders: list[Path], count: int, seed: int) -> None:
    case, random = CASES[name], np.random.default_rng(seed)
    work, other = folders
    kept = work.with_name(f"{work.name}.kept")
    shutil.copytree(work, kept)
    good, expected = contents(work), case.read(work)
    refused = 0
    signal.signal(signal.SIGALRM, too_long)
    for number, (how, changed) in enumerate(spoilt(good, contents(other), case.alone, random)):
        if number == count:
            break
        write(work, changed)
        signal.alarm(SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is derived is made again, with a warning
                found = case.read(work)
            same = found.items() <= expected.items() if case.subset else found == expected
            assert same, f"{how}: another answer"
        except UptakeError as error:
            refused, same = refused + 1, False
            assert "\n" not in str(error), f"{how}: {error}"
        finally:
            signal.alarm(0)
        if name == "store" and number % 5 == 0:
            lines = verify_store(work / "s")
            # Bytes past the last commit of a view are what a crash leaves, and nobody reads them.
            harmless = same and how.startswith(("add", "repeat"))
            assert (lines or harmless) and not any("\n" in line for line in lines), f"{how}: {lines}"
        shutil.rmtree(work)
        shutil.copytree(kept, work)
    shutil.rmtree(kept)
    assert case.read(work) == expected
    assert refused > 0 or CASES[name].anew


@pytest.fixture(name="quiet", autouse=True)
def quiet_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "LARGE", 100)  # few keys make lists
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", CASES)
def test_a_sample(name: str, tmp_path: Path) -> None:
    fuzz(name, sound(name, tmp_path), SAMPLE, 0)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_all_of_it(name: str, tmp_path: Path) -> None:
    count = -(-WHOLE * CASES[name].share // sum(case.share for case in CASES.values()))
    fuzz(name, sound(name, tmp_path), count, 1)


# Who writes a file: the case that spoils it, or why nobody has to: it is not read back, or not by Uptake.
GIVEN_AWAY = "written for others; what Uptake reads of that kind is checked as anybody's"
PART_OF = "part of what the case of its caller spoils"
WRITERS = {
    "adaptation/delta/delta.py:save": "delta",
    "adaptation/tensors.py:write_tensors": PART_OF,
    "evaluation/journal.py:save": "journal",
    "cli/evaluating.py:finish": "report",
    "evaluation/memory.py:reset_peak": "no file: a counter of the kernel",
    "editing.py:_locked": "a lock: none of its bytes is read",
    "editing.py:_save": "state",
    "editing.py:_store": "edits",
    "evaluation/edit_replies.py:state_bytes": "no file that stays: its size alone is taken",
    "kept.py:keep": "rate",
    "server/engine/folders.py:__init__": "a lock: none of its bytes is read",
    "server/engine/keeping.py:save": "state",
    "server/engine/people.py:_add": "a text as it came, read as text",
    "retrievers/encoder_checkpoint.py:write": "encoder's training",
    "retrievers/encoder_folder.py:write_encoder": "encoder's description",
    "retrievers/query_encoder.py:save": "query encoder",
    "server/storing.py:_written": "a file as it came, read by the readers of files",
    "evaluation/records.py:keep": "journal",
    "evaluation/records.py:start": "journal",
    "evaluation/tune.py:write": "recipe",
    "export.py:export_peft": GIVEN_AWAY,
    "gguf/convert.py:_write_weights": "gguf",
    "gguf/convert.py:convert": "gguf",
    "gguf/convert.py:write": "gguf",
    "gguf/models.py:_locked": "a lock: none of its bytes is read",
    "gguf/models.py:_make": "gguf",
    "methods/contract/learned.py:save": "network",
    "methods/contract/state.py:save_state": "state",
    "report/page/__init__.py:write_chart": GIVEN_AWAY,
    "report/page/__init__.py:write_page": GIVEN_AWAY,
    "report/summary.py:write_json": "report",
    "sealed.py:draft_beside": PART_OF,
    "sealed.py:replace_file": PART_OF,
    "sealed.py:write_whole": PART_OF,
    "session.py:save": "state",
    "store/cache.py:__exit__": "stamps",
    "store/cache.py:seal": "cache",
    "store/cluster/build.py:write": "note",
    "store/export.py:write_parquet": GIVEN_AWAY,
    "store/files.py:write_atomically": PART_OF,
    "store/files.py:write_json": PART_OF,
    "store/inventory.py:write": "store",
    "store/layout.py:write": "store",
    "store/passages/index_cache.py:_store": "cache",
    "store/passages/table.py:append": "store",
    "store/passages/table.py:create": "store",
    "store/passages/table.py:draft": "note",
    "store/remote/lease.py:__enter__": "the name of who holds a lock, for a message",
    "store/unfinished.py:_write": "store",
    "store/views/key_index.py:_store": "cache",
    "store/views/view_files.py:write": "store",
    "store/views/view_writer.py:__init__": "store",
    "text/encoders.py:write": GIVEN_AWAY,
    "tasks/retune.py:save_retuned": GIVEN_AWAY,
    "tasks/worlds.py:_write_lines": GIVEN_AWAY,
    "text/isolated_child.py:main": "no file: the pipe to whoever started it",
    "train.py:_save": "checkpoint",
}
CALLS = {
    "write_whole", "replace_file", "draft_beside", "write_atomically", "write_json", "write_tensors",
    "write_bytes", "write_text", "tofile", "write_index", "write_dataset", "write_fragments", "ParquetWriter",
    "save_pretrained", "save_file", "save_state", "fdopen", "mkstemp", "write_table", "savez", "savetxt",
}  # fmt: skip


def writes(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = (*call.args, *(word.value for word in call.keywords))
    if name != "open":
        reads = name == "fdopen" and any(
            isinstance(each, ast.Constant) and each.value == "rb" for each in given
        )
        return name in CALLS and not reads
    modes = [str(each.value) for each in given if isinstance(each, ast.Constant)]
    makes = any(isinstance(part, ast.Attribute) and part.attr == "O_CREAT" for part in ast.walk(call))
    return makes or any(set(mode) & set("wax+") and len(mode) < 4 for mode in modes)


def writers(path: Path) -> set[str]:
    """Return the functions of a file that write files."""
    found = set()

    def walk(node: ast.AST, inside: str) -> None:
        if isinstance(node, ast.FunctionDef):
            inside = node.name
        if isinstance(node, ast.Call) and writes(node):
            found.add(f"{path.relative_to(SOURCES).as_posix()}:{inside}")
        for child in ast.iter_child_nodes(node):
            walk(child, inside)

    walk(ast.parse(path.read_text(encoding="utf8")), "")
    return found


def test_every_writer_of_a_file_has_its_case() -> None:
    found = set().union(*map(writers, SOURCES.rglob("*.py")))
    assert found - WRITERS.keys() == set(), "give what it writes a case in fuzzing.py, and name it here"
    assert WRITERS.keys() - found == set(), "it writes no more: take it out"
    assert {case for case in WRITERS.values() if " " not in case} <= CASES.keys()
