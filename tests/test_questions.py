"""Every way questions come in, and what is left out of them, counted and named."""

import gzip
import json
import lzma
import math
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


def test_time_qa_as_people_annotated_it(tmp_path: Path) -> None:
    """The form of human_annotated_test.json: questions of a page in pairs with their answers."""
    page = {
        "index": "/wiki/Her#P937",
        "type": "P937",
        "link": "/wiki/Her",
        "questions": [
            ["Where from 2004 to 2005?", [{"para": 1, "from": 3, "end": 9, "answer": "Tucson"}]],
            ["Where in 1880?", [{"para": 0, "from": 0, "end": 0, "answer": ""}]],
            ["no pair"],
        ],
        "paras": ["Her", "In Tucson she worked."],
    }
    path = tmp_path / "human_annotated_test.json"
    path.write_text(json.dumps([page], indent=2))
    skipped = Skipped()
    read = read_questions(path, skipped)
    [document] = read.documents
    assert read.questions == (
        Question("/wiki/Her#P937#0", "Where from 2004 to 2005?", ("Tucson",), document.id),
    )
    assert (document.text, document.group) == ("Her\nIn Tucson she worked.", "/wiki/Her")
    assert skipped.counts == {"no answer": 1, "no question": 1}


@pytest.mark.parametrize("name", ["dev.easy.json.gzip", "dev.easy.json.gz", "dev.easy.json"])
def test_packed_questions_are_told_by_their_content(tmp_path: Path, name: str) -> None:
    lines = [{"idx": f"/wiki/A#P1#{n}", "question": "q?", "targets": ["a"], "context": "c"} for n in range(2)]
    path = tmp_path / name
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    assert len(read_questions(path).questions) == 2


FORMS = {
    "nq-open": ([{"question": "who?", "answer": ["me", "I"]}], ("me", "I"), ""),
    "zsre": ([{"src": "who?", "answers": ["me"], "alt": "you", "loc": "x", "loc_ans": "y"}], ("me",), ""),
    "trivia": (
        {
            "Data": [
                {
                    "Question": "who?",
                    "QuestionId": "tc_1",
                    "Answer": {"Value": "me", "Aliases": ["me", "I"], "NormalizedValue": "me"},
                }
            ]
        },
        ("me", "I"),
        "",
    ),
    "hotpot": (
        [
            {
                "_id": "5a",
                "question": "who?",
                "answer": "me",
                "context": [["P", ["One.", " Two."]], ["Q", ["X."]]],
            }
        ],
        ("me",),
        "P\nOne. Two.\n\nQ\nX.",
    ),
    "hotpot of the hub": (
        [
            {
                "id": "5a",
                "question": "who?",
                "answer": "me",
                "context": {"title": ["P"], "sentences": [["One."]]},
            }
        ],
        ("me",),
        "P\nOne.",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by_line", [False, True])
def test_public_data_sets_in_their_own_forms(tmp_path: Path, form: str, by_line: bool) -> None:
    data, answers, context = FORMS[form]
    records = data if isinstance(data, list) else [data]
    path = tmp_path / ("a.jsonl" if by_line else "a.json")
    path.write_text("\n".join(map(json.dumps, records)) if by_line else json.dumps(data))
    read = read_questions(path)
    assert [(q.text, q.answers) for q in read.questions] == [("who?", answers)]
    assert [d.text for d in read.documents] == ([context] if context else [])


def test_edits_are_named_as_what_they_are_not(tmp_path: Path) -> None:
    path = tmp_path / "counterfact.json"
    path.write_text(json.dumps([{"case_id": 1, "prompt": "BBC One, by", "target_new": "Sega"}]))
    said = r'no question; its keys are case_id, prompt, target_new; write {"question": "...", "answers": '
    with pytest.raises(BadInput, match=re.escape(said)):
        read_questions(path)


def test_odd_ids_merge_no_questions(tmp_path: Path) -> None:
    ids = [math.nan, None, "", math.nan, True, {}, "a\nb", 1, 1.0, math.inf]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"id": i, "question": "q?", "answers": ["a"]}) for i in ids))
    skipped = Skipped()
    read = read_questions(path, skipped)
    assert [q.id for q in read.questions] == [*(f"{path}:{n}" for n in (1, 2, 3, 4)), "1"]
    assert len(read.questions) + skipped.total == len(ids) and skipped.counts["duplicate id"] == 1


records = st.dictionaries(
    st.sampled_from(["question", "Question", "src", "answers", "answer", "Answer", "targets", "context"])
    | st.sampled_from(["data", "Data", "questions", "paras", "id", "idx", "document", "title", "paragraphs"]),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["text", "Value", "Aliases", "answer", "qas", "title"]), inner, max_size=3
            )
        ),
        max_leaves=8,
    ),
    max_size=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(odd=st.lists(records, max_size=4))
def test_odd_records_cost_no_good_one(tmp_path: Path, odd: list[dict[str, object]]) -> None:
    good = {"id": "the good one", "question": "q?", "answers": ["a"]}
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in [*odd, good]))
    skipped = Skipped()
    read = read_questions(path, skipped)
    assert read.questions[-1].id == "the good one"
    # What nests may hold many questions or none; a flat record is one question or one reason.
    nested = [r for r in odd if any(isinstance(r.get(key), list) for key in ("data", "Data", "questions"))]
    if not nested:
        assert len(read.questions) + skipped.total == len(odd) + 1


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
