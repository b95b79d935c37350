"""Every way questions come in, and what is left out of them, counted and named."""

import gzip
import json
import lzma
from pathlib import Path

import pytest

from uptake.errors import BadInput
from uptake.tasks.questions import Question, read_questions
from uptake.text.files import Skipped

SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "Oil",
            "paragraphs": [
                {
                    "context": "The crisis began in 1973.",
                    "qas": [
                        {
                            "id": "q1",
                            "question": "When did it begin? ",
                            "answers": [
                                {"text": "1973", "answer_start": 20},
                                {"text": "1973"},
                                {"text": "in 1973"},
                            ],
                            "is_impossible": False,
                        },
                        {"id": "q2", "question": "Why?", "answers": [], "is_impossible": True},
                        {"id": "q1", "question": "Again?", "answers": [{"text": "x"}]},
                        {"id": "q3", "question": " ", "answers": [{"text": "x"}]},
                        "no object",
                    ],
                },
                {
                    "context": "It ended in 1974.",
                    "qas": [{"id": "q4", "question": "End?", "answers": [{"text": "1974"}]}],
                },
                {"context": " ", "qas": []},
            ],
        }
    ],
}


def test_squad(tmp_path: Path) -> None:
    path = tmp_path / "dev.json.xz"
    path.write_bytes(lzma.compress(json.dumps(SQUAD).encode()))
    skipped = Skipped()
    read = read_questions(path, skipped)
    assert [(q.id, q.text, q.answers) for q in read.questions] == [
        ("q1", "When did it begin?", ("1973", "in 1973")),
        ("q4", "End?", ("1974",)),
    ]
    assert [(d.text, d.group) for d in read.documents] == [
        ("The crisis began in 1973.", "Oil"),
        ("It ended in 1974.", "Oil"),
    ]
    assert [q.document for q in read.questions] == [d.id for d in read.documents]
    reasons = ["no answer", "duplicate id", "no question", "not a JSON object", "paragraph without text"]
    assert skipped.counts == dict.fromkeys(reasons, 1)
    assert any("Oil: q2: no answer" in line for line in skipped.examples)


def test_time_qa_in_lines_of_a_json_file(tmp_path: Path) -> None:
    page = {"context": "He was mayor from 1990 to 1994.", "paragraphs": [{"title": "x", "text": "y"}]}
    lines: list[dict[str, object]] = [
        {"idx": "/wiki/Him#P39#0", "question": "Who was mayor in 1991?", "targets": ["Him", "He"]},
        {"idx": "/wiki/Him#P39#1", "question": "Who was mayor in 1880?", "targets": [""]},
        {"idx": "/wiki/Him#P39#2", "question": "Mayor in 1992?", "targets": ["Him"], "level": "hard"},
    ]
    path = tmp_path / "test.hard.json.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps(line | page) for line in lines).encode()))
    skipped = Skipped()
    read = read_questions(path, skipped)
    assert [q.answers for q in read.questions] == [("Him", "He"), ("Him",)]
    assert [d.group for d in read.documents] == ["/wiki/Him"]
    assert {q.document for q in read.questions} == {read.documents[0].id}
    assert read.questions[1].meta == {"level": "hard"}
    assert skipped.counts == {"no answer": 1}


def test_flattened_squad(tmp_path: Path) -> None:
    record = {
        "id": "a",
        "title": "T",
        "context": "c",
        "question": "q?",
        "answers": {"text": ["x"], "answer_start": [0]},
    }
    path = tmp_path / "flat.json"
    path.write_text(json.dumps([record]))
    assert read_questions(path).questions[0].answers == ("x",)


def test_our_own_lines(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(
        b"\n".join(
            [
                b"\xef\xbb\xbf"
                + json.dumps({"id": 7, "question": "who?", "answers": ["me"], "document": "d"}).encode(),
                json.dumps({"question": "how?", "answers": "so", "until": "e", "kind": "x", "n": 2}).encode(),
                b"{broken",
                b"",
                b'"text"',
                b"\xff",
                json.dumps({"question": "no answers?"}).encode(),
                json.dumps({"question": "odd?", "answers": ["\ud800"]}).encode(),
            ]
        )
    )
    skipped = Skipped()
    assert read_questions(path, skipped).questions == (
        Question("7", "who?", ("me",), "d"),
        Question(f"{path}:2", "how?", ("so",), "", {"kind": "x", "n": "2"}, "e"),
    )
    reasons = ["broken JSON", "not a JSON object", "not UTF-8", "no answer", "lone surrogate"]
    assert skipped.counts == dict.fromkeys(reasons, 1)
    assert any(line.startswith(f"{path}:3: broken JSON; Expecting") for line in skipped.examples)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.jsonl", b"", "it is empty"),
        ("q.json", b"{}", "no question"),
        ("q.jsonl", b"{broken\n", "broken JSON"),
        ("q.json.gz", gzip.compress(b'{"question": "x", "answers": ["y"]}', mtime=0)[:-9], "truncated"),
        ("q.jsonl.xz", b"nonsense", "damaged"),
    ],
)
def test_files_without_a_question_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message) as error:
        read_questions(tmp_path / name)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read questions .*none\.jsonl: No such file"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(BadInput, match="Is a directory"):
        read_questions(tmp_path)
