"""What a model makes of the fresh data set: each row is measured once, and what is read shows."""

import json
import lzma
from pathlib import Path

import pytest
from fresh_text import measures

from uptake.errors import Missing

MODEL = str(Path(__file__).parent.parent / "examples" / "demo-model")


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(lzma.compress(text.encode()) if path.suffix == ".xz" else text.encode())


def test_bits_are_those_of_the_base_and_a_row_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Missing, match=r"recipes/fresh\.py build"):
        measures.base_bits(MODEL, tmp_path, tmp_path, 1, 64)
    text = "def area(width, height):\n    return width * height\n" * 40
    for name, twin in (("test", "a"), ("before", ""), ("after", "")):
        write(
            tmp_path / f"{name}.jsonl", [{"id": name, "text": text, "twin": twin}, {"id": "s", "text": "x"}]
        )
    write(tmp_path / "pile" / "books" / "test.jsonl.xz", [{"id": "b", "text": text[::-1]}])
    rows = measures.base_bits(MODEL, tmp_path, tmp_path / "pile", 3, 64)
    assert [(row.part, row.document, row.twin, row.bytes) for row in rows] == [
        ("fresh", "test", True, 64),
        ("older packages, before", "before", False, 64),
        ("older packages, after", "after", False, 64),
        ("books", "b", False, 64),
    ]
    assert rows[0].bits == rows[1].bits < rows[3].bits
    (journal,) = (tmp_path / "measured").iterdir()
    journal.write_bytes(journal.read_bytes() + b'{"part": "fre')
    monkeypatch.setattr(measures, "LN2", 1e-9)  # a row that is measured again shows
    again = measures.base_bits(MODEL, tmp_path, tmp_path / "pile", 3, 64)
    assert again == rows and measures.as_json(rows)[0]["document"] == "test"
    assert f"| fresh | 1 | {rows[0].bits / 64:.3f} |" in measures.bits_table(rows)
    assert "no near twin" not in measures.bits_table(rows), "there is none without"


def test_answers_are_asked_after_each_reading(tmp_path: Path) -> None:
    folder = tmp_path / "facts" / "test"
    facts = [
        {"id": f"q{n}", "question": f"What is part {n}?", "answers": [f"{n * 7}"], "document": f"d{n}"}
        | {"part": "store", "kind": "default", "guess": "7"}
        for n in (1, 2)
    ]
    write(folder / "questions.jsonl", [*facts, {**facts[0], "id": "old", "part": "after"}])
    write(folder / "passages.jsonl", [{"id": f"d{n}", "text": f"part {n} = {n * 7}"} for n in (1, 2)])
    rows = measures.answered(MODEL, tmp_path, 9)
    readings = ["nothing", "another passage", "its passage"]
    assert [row.read for row in rows] == readings * 2 and {row.fact for row in rows} == {"q1", "q2"}
    assert [row.guess for row in rows if row.read == "nothing"] == [row.fact == "q1" for row in rows[::3]]
    assert len({row.nats for row in rows}) == 6, "what is read shows"
    assert "| (the guess, no model) | 2 | 0.500 | | | |" in measures.answers_table(rows)
