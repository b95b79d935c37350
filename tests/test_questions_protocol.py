"""Open questions, each answered after what its own search finds; the passage that an answer rests on."""

import json
import math

import pytest

from tests import toys
from tests.stubs import StubEncoder
from uptake import api
from uptake.errors import BadInput
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.protocols.questions import Questions
from uptake.lm.base import Segment
from uptake.report.asked import ASKED as ASKED_REPORT
from uptake.report.asked.rows import Asked
from uptake.report.page import write_page
from uptake.report.summary import read_json, summary, write_json
from uptake.store import Datastore
from uptake.tasks import answers
from uptake.tasks.asking import Spoken, generate, speak
from uptake.tasks.questions import Question
from uptake.text.types import Chunking, Document

DOCUMENTS = [Document(f"d{n}", f"the pump {n} stands in hall {n * 7}") for n in range(8)]
ASKED = tuple(
    Question(f"q{n}", f"Where does the pump {n} stand?", (f"hall {n * 7}",), f"d{n}") for n in range(6)
)
STRAY = Question("stray", "Who was it?", ("nobody",), "no such document")
PROTOCOL = Questions(shots=2, answer_tokens=4)


@pytest.fixture(scope="module")
def lm():
    return toys.lm(window=512)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    made = Datastore.create(tmp_path / "s", encoder=StubEncoder(), chunking=Chunking(4096))
    made.add(DOCUMENTS)
    return made


def run(lm, store, methods=("base", "in-context", "rag"), questions=(*ASKED, STRAY), **more):
    return api.compare(
        lm, Inputs(questions=tuple(questions)), methods, store=store, k=3, protocol=PROTOCOL, **more
    )


def test_each_question_is_answered_after_its_own_passages(lm, store):
    results = run(lm, store)
    rows = {(row.method, row.question): row for row in results.of(Asked)}
    assert {question for _, question in rows} == {"q2", "q3", "q4", "q5", "stray"}, (
        "the first two are examples"
    )
    before = "".join(f"Question: {q.text}\nAnswer: {q.answers[0]}\n\n" for q in ASKED[:2])
    for question in (*ASKED[2:], STRAY):
        prompt = f"{before}Question: {question.text}\nAnswer:"
        row = rows["base", question.id]
        (said,) = generate(lm, [prompt], 4)
        (score,) = lm.score([Segment(f" {question.answers[0]}", prompt)])
        assert row.said == said and row.f1 == answers.f1(said, question.answers)
        assert row.nats == pytest.approx(-float(score.log_probs.sum()), rel=1e-5)
        (spoken,) = speak(lm, [prompt], 4)
        assert (row.said_nats, row.said_tokens) == (pytest.approx(spoken.nats, rel=1e-4), spoken.tokens)
        read = rows["in-context", question.id]
        found = store.source(question.text).search(3).passages
        assert read.read == tuple(passage.document for passage in found)
        right = read.read.index(question.document) + 1 if question.document in read.read else 0
        assert read.right_place == right
        assert read.nats != row.nats and read.base_nats == row.nats
    figures = summary(results)["methods"]["in-context"]
    places = [rows["in-context", q.id].right_place for q in (*ASKED[2:], STRAY)]
    assert figures["recall"] == {"1": sum(p == 1 for p in places) / 5}
    assert figures["mrr"] == pytest.approx(sum(1 / p for p in places if p) / 5)


def test_an_answer_rests_on_the_first_passage_that_holds_it(lm, store, monkeypatch):
    said = "hall 21"
    monkeypatch.setattr(
        "uptake.evaluation.protocols.questions.speak",
        lambda lm, prompts, *_, **__: [Spoken(said, 0.5, 3)] * len(prompts),
    )
    results = run(lm, store, questions=ASKED)
    rows = {(row.method, row.question): row for row in results.of(Asked)}
    row = rows["in-context", "q3"]
    assert row.exact == row.contains == 1.0 and row.rests_on == "d3"
    other = rows["in-context", "q5"]
    assert other.rests_on == ("d3" if "d3" in other.read else "")
    assert rows["base", "q3"].rests_on == ""
    assert [one.passages["in-context"] for one in results.showcases if one.question == ASKED[3].text] == [
        DOCUMENTS[3].text
    ]


def test_file_table_and_page_show_what_an_answer_rests_on(lm, store, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "uptake.evaluation.protocols.questions.speak",
        lambda lm, prompts, *_, **__: [Spoken("hall 21", 0.5, 3)] * len(prompts),
    )
    results = run(lm, store, questions=ASKED)
    write_json(results, tmp_path / "r.json")
    assert read_json(tmp_path / "r.json", ASKED_REPORT).rows == results.rows
    told = json.loads((tmp_path / "r.json").read_text())
    assert any(row.get("rests_on") == "d3" for row in told["rows"])
    lines = results.kind.lines(results.kind.figures(results))
    assert "rests on the right" in lines[1]
    write_page(results, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "How sure the answers are" in page and "Accuracy where only the surest answers are given" in page
    told = results.kind.figures(results)["methods"]["in-context"]["calibration"]
    assert told["confidence"] == pytest.approx(math.exp(-0.5)) and told["error"] is None
    (table,) = results.kind.details(results.kind.figures(results))
    assert table[1]["ECE"] == "too few: 4 < 50" and table[1]["sure"] == "60.7"
    assert DOCUMENTS[3].text in page and "Answers, and what they rest on" in page


def test_a_failed_method_counts_at_the_base_s_answer_and_nothing_found_is_no_failure(lm, store, monkeypatch):
    from uptake.methods.in_context import InContext

    def broken(self, *_, **__):
        raise RuntimeError("broken")

    nothing = run(lm, store, questions=(*ASKED[:2], Question("odd", "zzzz qqqq", ("x",))))
    assert not [row.failed for row in nothing.of(Asked) if row.failed]
    assert all(row.right_place == -1 for row in nothing.of(Asked)), "it names no document"
    assert summary(nothing)["methods"]["rag"]["mrr"] is None
    monkeypatch.setattr(InContext, "adapt", broken)
    results = run(lm, store, methods=("base", "in-context"))
    rows = {(row.method, row.question): row for row in results.of(Asked)}
    assert all("broken" in rows["in-context", q.id].failed for q in ASKED[2:])
    assert all(rows["in-context", q.id].said == rows["base", q.id].said for q in ASKED[2:])
    assert len(summary(results)["methods"]["in-context"]["failures"]) == 5


def test_a_batch_is_a_loop(lm, store):
    one, many = run(lm, store, batch=1), run(lm, store, batch=4)
    for left, right in zip(one.of(Asked), many.of(Asked), strict=True):
        assert (left.question, left.said, left.read) == (right.question, right.said, right.read)
        assert left.nats == pytest.approx(right.nats, rel=1e-4)


def test_examples_alone_are_refused(lm, store):
    with pytest.raises(BadInput, match="2 of them are examples"):
        run(lm, store, questions=ASKED[:2])
    with pytest.raises(BadInput, match="shots -1"):
        Questions(shots=-1)
