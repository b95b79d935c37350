"""The energy-guided fuzzer: its inputs, what it calls a fault, and that each strategy runs and is counted."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import good_files
import recipe_modules
from uptake.errors import BadInput, Damaged


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from recipe_modules.imported("energy_fuzz", monkeypatch)


@pytest.fixture
def inputs(recipe: Any) -> Any:
    return recipe.inputs


def test_bits_and_numbers_are_the_same_input(inputs: Any) -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        bits = random.integers(0, 2, inputs.BITS, dtype=np.int8)
        assert np.array_equal(inputs.bits_of(inputs.numbers(bits)), bits)
    assert len(inputs.KINDS) == 2**inputs.KIND_BITS and len(inputs.PIECES) == 2**inputs.PIECE_BITS
    assert len(inputs.SPANS) == 2**inputs.SPAN_BITS


def test_edits_do_what_they_are_called(inputs: Any) -> None:
    raw = bytes(range(100, 200))
    kind = inputs.KINDS.index
    quote = inputs.PIECES.index(b'"')
    assert inputs.edited(raw, kind("nothing"), 9, 9, 9) == raw
    assert inputs.edited(raw, kind("flip"), 0, 0, 1) == bytes([102]) + raw[1:]
    assert inputs.edited(raw, kind("cut"), 255, 0, 0) == raw
    assert inputs.edited(raw, kind("cut"), 51, 0, 0) == raw[:20]
    assert inputs.edited(raw, kind("insert"), 51, 0, quote) == raw[:20] + b'"' + raw[20:]
    assert inputs.edited(raw, kind("replace"), 51, 2, quote) == raw[:20] + b'"' + raw[22:]
    assert inputs.edited(raw, kind("delete"), 51, 2, 0) == raw[:20] + raw[22:]
    assert inputs.edited(raw, kind("repeat"), 51, 2, 0) == raw[:22] + raw[20:]
    assert inputs.edited(raw, kind("swap"), 51, 2, 0) == raw[:20] + raw[22:24] + raw[20:22] + raw[24:]
    assert inputs.edited(b"", kind("flip"), 9, 9, 9) == b""


@given(st.binary(max_size=40), st.tuples(*[st.integers(0, 31)] * 4))
def test_no_edit_fails(raw: bytes, edit: tuple[int, int, int, int]) -> None:
    import fuzz_inputs

    assert isinstance(fuzz_inputs.edited(raw, edit[0] % 8, edit[1] * 8, edit[2] % 16, edit[3]), bytes)


def test_every_good_file_is_read_and_a_sealed_one_keeps_its_sum(inputs: Any, tmp_path: Path) -> None:
    some = inputs.targets(good_files.good())
    watch = inputs.Watch(some, tmp_path)
    for number in range(len(some)):
        jumps, _ = watch.read(inputs.bits_of([number, *[0] * 16]))
        assert jumps, some[number].name
    assert not watch.faults
    again, new = watch.read(inputs.bits_of([0, *[0] * 16]))
    assert again and not new
    # An edit inside a recipe is read as content, not refused by its sum.
    path = tmp_path / "r"
    path.write_bytes(inputs.sealed(some[-1].raw.replace(b'"k": 5', b'"k": "x"')))
    with pytest.raises(BadInput, match="is no recipe") as caught:
        some[-1].read(path)
    assert not isinstance(caught.value, Damaged)


def test_a_fault_is_what_was_not_promised(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(path: Path) -> object:
        raise ZeroDivisionError("by one")

    def hangs(path: Path) -> object:
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(inputs, "SECONDS", 0.05)
    some = [
        inputs.Target("breaks", b"a", breaks, (BadInput,)),
        inputs.Target("hangs", b"a", hangs, (BadInput,)),
        inputs.Target("promises", b"a", breaks, (ZeroDivisionError,)),
    ]
    watch = inputs.Watch(some, tmp_path)
    for number in range(3):
        watch.read(inputs.bits_of([number, *[0] * 16]))
    assert [*watch.faults] == ["breaks: ZeroDivisionError: by one", "hangs: Hang: more than 0.05 seconds"]


def test_rare_inputs_are_drawn_more_often(recipe: Any, tmp_path: Path) -> None:
    session = recipe.Session(recipe.inputs.Watch([], tmp_path), 60)
    session.watch.seen = {"often": 99, "seldom": 1}
    session.corpus = [(np.array([0]), {"often"}), (np.array([1]), {"often", "seldom"})]
    drawn = np.concatenate(session.drawn(2000, np.random.default_rng(0)))
    assert abs(drawn.mean() - 0.99) < 0.02


@pytest.mark.parametrize("strategy", ["energy", "corpus", "hypothesis", "random"])
def test_each_strategy_reads_until_its_time_is_up(recipe: Any, strategy: str) -> None:
    recipe.BATCH = 4
    some = recipe.inputs.targets({".csv": good_files.good()[".csv"]})
    row = recipe.measured(strategy, 0, 0.3, some)
    assert len(row["curve"]) == recipe.CHECKS and row["curve"] == sorted(row["curve"])
    assert row["inputs"] > 20 and len(row["jumps"]) > 20 and not row["faults"]


def test_what_was_measured_is_kept_and_told(
    recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = [3, 3, 4, 4, 5, 5, 6, 7]
    rows = [
        {"strategy": name, "seed": seed, "inputs": 9, "curve": curve, "faults": {}, "jumps": ["a", name]}
        for name in recipe.STRATEGIES
        for seed in range(2)
    ]
    rows[0]["faults"] = {"x: Y: z": [1]}
    file = tmp_path / "f.json"
    file.write_text(json.dumps({"seconds": 5.0, "rows": rows}))
    recipe.main(["run", "--seconds", "5", "--seeds", "2", "--json", str(file)])  # nothing is left to do
    assert json.loads(file.read_text())["rows"] == rows
    recipe.main(["table", "--json", str(file)])
    told = capsys.readouterr().out
    assert "| energy | 9 | 3 ± 0 | 3 ± 0 | 4 ± 0 | 7 ± 0 | 1 | 1 |" in told and "- x: Y: z" in told
    with pytest.raises(SystemExit, match=r"5\.0 seconds"):
        recipe.main(["run", "--seconds", "6", "--json", str(file)])
