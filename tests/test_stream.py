"""The stream protocol: who is asked what and when, costs, drift, what goes wrong, and the figures."""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import toy_methods
import toys
import uptake
from uptake.adaptation.delta import fingerprint
from uptake.adaptation.optimizers import AdamW
from uptake.errors import BadInput, Damaged, Missing
from uptake.evaluation.cost_meter import CostMeter
from uptake.evaluation.failures import finite
from uptake.lm.base import LM
from uptake.methods.contract.method import Context, Evidence, Method, MethodSpec
from uptake.methods.contract.spending import Budget
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.finetune import Finetune
from uptake.report import summary as report
from uptake.report.page import page
from uptake.report.results import Results
from uptake.report.scored import SCORED
from uptake.report.streamed import STREAMED
from uptake.report.streamed.rows import Answered, DocumentFailed, Drifted, Spent
from uptake.tasks.asking import Asking, ask, divergence
from uptake.tasks.questions import Question
from uptake.text.types import Chunking, Document, Found, Passage

DOCUMENTS = [
    Document("a", "the cat is red.", "first"),
    Document("b", "the dog is blue.", "first"),
    Document("c", "the fish is grey and it is longer than the window of this very small model is.", "last"),
    Document("d", "the cat is green.", "last"),
]
QUESTIONS = [
    Question("cat", "cat?", ("red",), "a", until="d"),
    Question("dog", "dog?", ("blue",), "b"),
    Question("fish", "fish?", ("grey",), "c"),
    Question("cat now", "cat?", ("green",), "d", {"before": "red"}),
    Question("all", "all?", ("yes",)),
]
OTHERS = [Document("o", "one and two are three."), Document("p", "who goes there?")]
ASKING = Asking("{question}", tokens=3)
LEARNER = MethodSpec(Finetune(optimizer=AdamW(1e-2, weight_decay=0.0)))


def stream(ways: dict[str, MethodSpec] | None = None, **more: Any) -> Results:
    given: dict[str, Any] = {"unrelated": OTHERS, "checkpoints": [2], "asking": ASKING} | more
    documents, questions = given.pop("documents", DOCUMENTS), given.pop("questions", QUESTIONS)
    return uptake.stream(toys.lm(), documents, questions, ways or {"learner": LEARNER}, **given)


def test_a_stream_is_take_for_each_document_and_then_asking() -> None:
    lm = toys.lm()
    results = uptake.stream(
        lm, DOCUMENTS, QUESTIONS, {"learner": LEARNER}, unrelated=OTHERS, checkpoints=[2], asking=ASKING
    )
    state, at = LEARNER.method.init(lm), {}
    for place, document in enumerate(DOCUMENTS, 1):
        (state,) = LEARNER.method.adapt([state], lm, [Evidence.of(document.text)], Context())
        at[place] = LEARNER.method.adapted([state], lm)
    asked = {2: ["cat", "dog"], 4: ["dog", "fish", "cat now", "all"]}
    by_id = {question.id: question for question in QUESTIONS}
    for taken, names in asked.items():
        rows = [row for row in results.of(Answered) if row.method == "learner" and row.taken == taken]
        assert [row.question for row in rows] == names
        answers = ask(at[taken], [by_id[name] for name in names], ASKING)
        assert [(row.nats, row.said) for row in rows] == [(answer.nats, answer.said) for answer in answers]
        drift = [(row.nats, row.tokens) for row in results.of(Drifted) if row.taken == taken]
        assert drift == [divergence(lm, at[taken], text.text) for text in OTHERS]
    base = [row for row in results.of(Answered) if row.method == "base"]
    assert [(row.question, row.taken) for row in base] == [(question.id, 0) for question in QUESTIONS]
    assert [row.nats for row in base] == [answer.nats for answer in ask(lm, QUESTIONS, ASKING)]
    assert [(row.group, row.place) for row in base] == [
        ("first", 1), ("first", 2), ("last", 3), ("last", 4), ("all", 0)
    ]  # fmt: skip


def test_a_rehearsal_is_learnt_by_a_copy_right_before_asking() -> None:
    lm = toys.lm()
    other = [Question("x", "bird?", ("black",)), Question("y", "bee?", ("brown",))]
    plain, rehearsed = stream(), stream(rehearsal=other)
    state = LEARNER.method.init(lm)
    for document in DOCUMENTS:
        (state,) = LEARNER.method.adapt([state], lm, [Evidence.of(document.text)], Context())
    pairs = tuple(
        Passage(n, f" {question.answers[0]}\n", prompt=question.text) for n, question in enumerate(other)
    )
    (ready,) = LEARNER.method.adapt([state], lm, [Evidence(Found(pairs, (0.0, 0.0)))], Context())
    rows = {
        row.question: row.nats for row in rehearsed.of(Answered) if row.method == "learner" and row.taken == 4
    }
    answers = ask(LEARNER.method.adapted([ready], lm), QUESTIONS[1:], ASKING)
    assert [rows[question.id] for question in QUESTIONS[1:]] == [answer.nats for answer in answers]
    assert [row for row in rehearsed.of(Answered) if row.method == "base"] == [
        row for row in plain.of(Answered) if row.method == "base"
    ]


def test_costs_add_up_along_the_stream() -> None:
    results = stream()
    first, last = (row for row in results.of(Spent) if row.method == "learner")
    tokens = [len(document.text) + 1 for document in DOCUMENTS]
    assert (first.taken, first.steps) == (2, 2) and (last.taken, last.steps) == (4, 5)
    # A step's inputs are its tokens and the opening one, less the last, which is only predicted.
    assert first.tokens_trained == sum(tokens[:2]) - 2
    assert last.tokens_trained == sum(tokens) - 4
    assert 0 < first.adapt_seconds < last.adapt_seconds


def test_gpu_seconds_add_up_and_stand_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(row.gpu_seconds == 0 for row in stream().of(Spent)), "where there is no GPU"
    assert "GPU seconds" not in STREAMED.lines(uptake.summary(stream()))[0]

    @contextmanager
    def seconds(meter: CostMeter, into: list[float], gpu: list[float] | None = None) -> Iterator[None]:
        yield
        into.append(1.0)
        if gpu is not None:
            gpu.append(0.5)

    monkeypatch.setattr(CostMeter, "seconds", seconds)
    results = stream()
    spent = [(row.taken, row.gpu_seconds) for row in results.of(Spent) if row.method == "learner"]
    assert spent == [(2, 1.0), (4, 2.0)]
    figures = uptake.summary(results)
    assert [at["gpu_seconds"] for at in figures["methods"]["learner"]["at"]] == [1.0, 2.0]
    lines = {line["method"]: line["GPU seconds"] for line in STREAMED.lines(figures)}
    assert lines == {"base": "", "learner": "2.0"}


def test_progress_says_when_questions_are_asked() -> None:
    told: list[tuple[int, int, str]] = []
    stream(progress=lambda *heard: told.append(heard))
    assert told == [
        (0, 4, ""), (0, 4, "base asking 5 questions"),
        (1, 4, f"learner {DOCUMENTS[0].id}"),
        (1, 4, "learner asking 2 questions"), (2, 4, f"learner {DOCUMENTS[1].id}"),
        (3, 4, f"learner {DOCUMENTS[2].id}"),
        (3, 4, "learner asking 4 questions"), (4, 4, f"learner {DOCUMENTS[3].id}"),
    ]  # fmt: skip


def test_the_budget_is_each_documents() -> None:
    results = stream(budget=Budget(steps=1))
    assert results.of(Spent)[-1].steps == 4


def test_chunked_documents_are_read_in_passages() -> None:
    whole, cut = stream(), stream(chunking=Chunking(16))
    assert cut.of(Spent)[-1].steps > whole.of(Spent)[-1].steps
    assert cut.of(Spent)[-1].tokens_trained == whole.of(Spent)[-1].tokens_trained


def test_the_base_is_untouched_and_stands_beside() -> None:
    lm = toys.lm()
    before = fingerprint(lm.module)
    results = uptake.stream(lm, DOCUMENTS, QUESTIONS, ["base", "online", "in-context"], asking=ASKING)
    assert fingerprint(lm.module) == before
    assert {row.method for row in results.of(Answered)} == {"base", "online", "in-context"}
    assert results.header.settings.keys() == {"base", "online", "in-context"}


def test_a_way_is_not_changed_by_the_ways_beside_it() -> None:
    alone = stream({"learner": LEARNER})
    beside = stream({"memory": MethodSpec(toy_methods.Memory()), "learner": LEARNER})
    rows = [row for row in beside.of(Answered) if row.method == "learner"]
    assert rows == [row for row in alone.of(Answered) if row.method == "learner"]


@dataclass(frozen=True)
class Breaking(Finetune):
    """Goes wrong on the documents that say "dog"."""

    how: str = "raise"

    def adapt(
        self,
        states: Sequence[WeightState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[WeightState]:
        after = super().adapt(states, lm, evidence, context, donate)
        if "dog" not in evidence[0].passages[0].text:
            return after
        errors = {"raise": RuntimeError("out of numbers\nand more"), "missing": Missing("no such library")}
        if self.how in errors:
            raise errors[self.how]
        return [replace(after[0], delta=after[0].delta * float("inf"))]


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (Breaking(), "RuntimeError: out of numbers"),
        (Breaking(how="infinite"), "the state became infinite or no number"),
    ],
)
def test_a_document_that_cannot_be_taken_up_is_passed_over(method: Method[Any], reason: str) -> None:
    results = stream({"learner": MethodSpec(method)}, checkpoints=[])
    (stopped,) = results.of(DocumentFailed)
    assert (stopped.document, stopped.place, stopped.reason) == ("b", 2, reason)
    without = [document for document in DOCUMENTS if document.id != "b"]
    asked = [question for question in QUESTIONS if question.document != "b"]
    clean = stream({"learner": MethodSpec(Finetune())}, documents=without, questions=asked, checkpoints=[])
    kept = {row.question: row.nats for row in results.of(Answered) if row.method == "learner"}
    assert {row.question: row.nats for row in clean.of(Answered) if row.method == "learner"} == {
        key: nats for key, nats in kept.items() if key != "dog"
    }
    assert report.summary(results)["methods"]["learner"]["failures"][0]["document"] == "b"


def test_what_is_wrong_for_every_document_ends_the_stream() -> None:
    with pytest.raises(Missing, match="no such library"):
        stream({"learner": MethodSpec(Breaking(how="missing"))})


def test_a_diverging_loss_leaves_the_last_good_state() -> None:
    wild = MethodSpec(Finetune(optimizer=AdamW(1e30, weight_decay=0.0), clip=None))
    results = stream({"wild": wild}, checkpoints=[])
    assert results.of(DocumentFailed) and all(row.method == "wild" for row in results.of(DocumentFailed))
    assert all(math.isfinite(row.nats) for row in results.of(Drifted))


@pytest.mark.parametrize("how", ["raise", "infinite"])
def test_a_rehearsal_that_cannot_be_learnt_is_named_and_changes_nothing(how: str) -> None:
    breaking = {"learner": MethodSpec(Breaking(how=how))}
    documents = [DOCUMENTS[0], *DOCUMENTS[2:]]  # without the one it breaks on
    given: dict[str, Any] = {"documents": documents, "checkpoints": []}
    asked = [question for question in QUESTIONS if question.document != "b"]
    broken = stream(breaking, questions=asked, rehearsal=[Question("x", "who?", ("dog",))], **given)
    plain = stream(breaking, questions=asked, **given)
    assert [row.nats for row in broken.of(Answered)] == [row.nats for row in plain.of(Answered)]
    assert [(row.document, row.place) for row in broken.of(DocumentFailed)] == [
        ("the rehearsal", len(documents))
    ]
    assert not plain.of(DocumentFailed)


def test_finite_looks_into_every_corner() -> None:
    good = {"a": (torch.ones(2), [torch.tensor(3)]), "b": "text"}
    assert finite(good) and not finite({**good, "c": [torch.tensor([1.0, float("nan")])]})
    assert finite(LEARNER.method.init(toys.lm()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": []}, "stream is empty|not in the stream"),
        ({"documents": [], "questions": []}, "stream is empty"),
        ({"questions": []}, "no question to ask"),
        ({"checkpoints": [5]}, "checkpoint 5: the stream has 4 documents"),
        ({"checkpoints": [0]}, "checkpoint 0"),
        ({"documents": [*DOCUMENTS, DOCUMENTS[0]]}, "document id 'a' is there twice"),
        ({"questions": [*QUESTIONS, QUESTIONS[0]]}, "question id 'cat' is there twice"),
        ({"questions": [Question("x", "x?", ("y",), "z")]}, r"left out.*1 question, x \(document z\)"),
    ],
)
def test_what_cannot_be_run_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        stream(**changes)


def test_questions_on_documents_that_are_not_there_are_left_out_and_named() -> None:
    results = stream(questions=[*QUESTIONS, Question("x", "x?", ("y",), "z")])
    assert not any(row.question == "x" for row in results.of(Answered))
    assert "x (document z)" in results.header.notes[0]


def test_the_summary_is_plain_arithmetic_on_the_rows() -> None:
    results = stream({"learner": LEARNER, "memory": MethodSpec(toy_methods.Memory())})
    told = report.summary(results)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    rows = {row.question: row for row in results.of(Answered) if row.method == "learner" and row.taken == 4}
    base = {row.question: row for row in results.of(Answered) if row.method == "base"}
    mine = told["methods"]["learner"]
    tokens = sum(row.tokens for row in rows.values())
    assert mine["nll"] == pytest.approx(sum(row.nats for row in rows.values()) / tokens)
    assert mine["bits"] == pytest.approx(sum(row.nats for row in rows.values()) / math.log(2) / 4)
    gap = sum(row.nats - base[row.question].nats for row in rows.values()) / tokens
    assert mine["vs_base"]["nll"]["difference"] == pytest.approx(gap)
    low, high = mine["vs_base"]["nll"]["ci"]
    assert low <= gap <= high
    assert mine["kl"] == pytest.approx(
        sum(row.nats for row in results.of(Drifted) if row.method == "learner" and row.taken == 4)
        / sum(len(text.text) for text in OTHERS)
    )
    assert [(band["from"], band["to"], band["questions"]) for band in mine["bands"]] == [(1, 2, 1), (3, 4, 2)]
    assert told["base"]["questions"] == 4 and told["base"]["asked"]["questions"] == 5
    (pair,) = told["pairs"]
    assert (pair["method"], pair["less"]) == ("memory", "learner")
    assert pair["nll"]["difference"] == pytest.approx(
        told["methods"]["memory"]["nll"] - told["methods"]["learner"]["nll"]
    )


def test_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    results = stream()
    uptake.write_json(results, tmp_path / "r.json")
    back = uptake.read_json(tmp_path / "r.json")
    assert back == replace(results, header=back.header)
    assert report.summary(back) == report.summary(results)
    with pytest.raises(BadInput, match=r"rows\[0\] is .* no row of scored"):
        report.read_json(tmp_path / "r.json", SCORED)
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(Damaged, match="no report"):
        uptake.read_json(tmp_path / "r.json")


def test_the_table_tells_every_way() -> None:
    results = stream({"learner": LEARNER, "memory": MethodSpec(toy_methods.Memory())})
    told = results.kind.lines(report.summary(results))
    assert [line["method"] for line in told] == ["base", "learner", "memory"]
    assert told[0]["vs base"] == "" and told[1]["vs base"] != ""
    assert report.table(stream()).row_count == 2


def test_the_page_shows_the_figures_and_no_text_is_markup() -> None:
    hostile = "</script><script>alert(1)</script>\u202e"
    questions = [replace(QUESTIONS[1], text=hostile), *QUESTIONS[2:]]
    results = stream({"learner": LEARNER, "memory": MethodSpec(toy_methods.Memory())}, questions=questions)
    html = page(results)
    assert "<script>alert" not in html and "\u202e" not in html and "&lt;/script&gt;" in html
    assert html.count("<svg") == 4 and "Answers against drift" in html and "How sure the answers are" in html
    for line in results.kind.lines(report.summary(results)):
        assert all(cell.split(" [")[0] in html for cell in line.values())
    silent = replace(results, rows=tuple(replace(row, said=" ") for row in results.of(Answered)))
    assert page(silent).count("<td><span>nothing</span></td>") == 3 * len(results.showcases)
    # One document of one group, no checkpoint, no unrelated text: nothing to draw but the end.
    alone = stream(documents=DOCUMENTS[1:2], questions=QUESTIONS[1:2], checkpoints=[], unrelated=[])
    assert "of one group, so there is no interval" in page(alone)
    assert "the base model needs" in page(replace(alone, rows=alone.rows[:1]))
