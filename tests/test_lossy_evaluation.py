"""A tokenizer that loses text: what it loses is not scored but counted, and too much is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import normalizers

import toys
from test_round_trip import characters
from uptake.api import compare, stream
from uptake.errors import BadInput
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.plan import Plan
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.protocols.running import Running
from uptake.evaluation.protocols.whole import Whole
from uptake.evaluation.run import read_json, run
from uptake.lm.base import Scores, Segment
from uptake.lm.causal import Causal
from uptake.methods.base import Base
from uptake.methods.contract.method import MethodSpec
from uptake.report.page import write_page
from uptake.report.scored.rows import Scored
from uptake.report.summary import summary, table, write_json
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question
from uptake.text.select import Nothing
from uptake.text.types import Document

PLAIN = "a cat sat at the bat, that cat sat. "
DOCUMENTS = [
    Document("one", "A" + PLAIN * 2),
    Document("two", PLAIN + "that [" + PLAIN),  # of which nothing is lost
    Document("three", PLAIN * 2 + "\u4e2d"),
]


def lossy(window: int = 256) -> Causal:
    """A toy that lower-cases and knows a few letters."""
    return Causal(toys.module(window=window), characters(normalizers.Lowercase()), "lossy")


def naive_bits(lm: Causal, text: str, context: str = "") -> tuple[float, int]:
    """Return bits and bytes of the characters that are given back, from one forward pass in float64."""
    wide = Causal(toys.module(window=256, dtype=torch.float64), lm.tokenizer)
    ids, _ = lm.tokenizer.encode(text)
    before = lm.tokenizer.opened(context)
    log_probs, _ = wide.step(torch.tensor([[*before, *ids]]))
    bits, size = 0.0, 0
    for place, (token, character) in enumerate(zip(ids, text, strict=True)):
        if lm.tokenizer.decode([token]) == character:
            bits -= float(log_probs[0, len(before) - 1 + place, token]) / math.log(2)
            size += len(character.encode())
    return bits, size


def test_neither_bits_nor_bytes_of_what_is_lost_count() -> None:
    lm = lossy()
    (scores,) = lm.score([Segment("The \u4e2dcat", "a cat")])
    bits, size = naive_bits(lm, "The \u4e2dcat", "a cat")
    assert (scores.bytes, scores.bytes_not_scored, size) == (6, 4, 6) and scores.lost == (0, 4)
    assert scores.bits == pytest.approx(bits, rel=1e-5)
    assert scores.bits < -scores.log_probs.sum().item() / math.log(2)
    twice = Scores.joined([scores, scores.shifted(8)])
    assert (twice.bytes, twice.bytes_not_scored, twice.lost) == (12, 8, (0, 4, 8, 12))
    assert twice.bits == pytest.approx(2 * scores.bits)


@pytest.mark.parametrize("protocol", [Whole(), PerQuery(prefix=30, suffix=60), Running(segment=20)])
def test_rows_report_and_table_count_what_is_not_scored(protocol: Any, tmp_path: Path) -> None:
    lm = lossy()
    plan = Plan({"base": MethodSpec(Base())}, protocol)
    results = run(lm, plan, Inputs.of(DOCUMENTS), journal=tmp_path / "journal")
    rows = results.of(Scored)
    expected: dict[str, tuple[float, int]] = {}
    for document in DOCUMENTS:
        for query in protocol.queries(document):
            bits, size = naive_bits(lm, query.target, query.context)
            had = expected.get(document.id, (0.0, 0))
            expected[document.id] = had[0] + bits, had[1] + size
    for row in rows:
        bits, size = expected[row.document]
        assert (row.bits, row.bytes) == (pytest.approx(bits, rel=1e-5), size)
    lost = sum(row.bytes_not_scored for row in rows)
    whole = sum(len(query.target.encode()) for one in DOCUMENTS for query in protocol.queries(one))
    assert 0 < lost == whole - sum(row.bytes for row in rows)
    figures = summary(results)["methods"]["base"]
    assert (figures["bytes"], figures["bytes_not_scored"]) == (whole - lost, lost)
    assert figures["bits_per_byte"] == pytest.approx(sum(row.bits for row in rows) / (whole - lost))
    line = f"{lost} of {whole} bytes"
    assert line in str(table(results).caption) and "another model" in str(table(results).caption)
    write_json(results, tmp_path / "out.json")
    assert read_json(tmp_path / "out.json") == results
    write_page(results, tmp_path / "out.html")
    assert line in (tmp_path / "out.html").read_text()


def test_a_lossless_model_has_no_such_line(tmp_path: Path) -> None:
    results = run(toys.lm(), Plan({"base": MethodSpec(Base())}, Whole()), Inputs.of(DOCUMENTS))
    assert "not scored" not in str(table(results).caption)
    write_page(results, tmp_path / "out.html")
    assert "not scored" not in (tmp_path / "out.html").read_text()
    assert summary(results)["methods"]["base"]["bytes_not_scored"] == 0


def test_too_much_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    documents = [*DOCUMENTS, Document("loud", "THE CAT SAT " * 9)]
    lm = lossy()
    lm.step = None  # type: ignore[assignment,method-assign]  # nothing may be asked of it
    with pytest.raises(
        BadInput, match=r"does not give back \d+ of \d+ bytes.*'loud#0'.*more than 10 %"
    ) as caught:
        run(lm, Plan({"base": MethodSpec(Base())}, Whole()), Inputs.of(documents))
    assert "\n" not in str(caught.value) and "lossless" in str(caught.value)


def test_a_method_that_scores_other_bytes_than_the_base_is_not_compared() -> None:
    class Elsewhere(Base):
        reads = True

        def adapted(self, states: Any, lm: Any) -> Any:
            return toys.lm(window=256)

    plan = Plan({"base": MethodSpec(Base()), "else": MethodSpec(Elsewhere(), Nothing())}, Whole())
    results = run(lossy(), plan, Inputs.of(DOCUMENTS))
    found = summary(results)["methods"]["else"]
    assert found["failed"] == 2
    assert "other bytes than the base" in found["failures"][0]["reason"]


def test_every_method_scores_the_same_bytes() -> None:
    ways = ["base", "dynamic-evaluation", "hidden-state-optimisation"]
    results = compare(lossy(), DOCUMENTS, ways, protocol=Running(segment=20))
    assert not any(row.failed for row in results.of(Scored))
    for document in DOCUMENTS:
        rows = [row for row in results.of(Scored) if row.document == document.id]
        assert len({(row.bytes, row.bytes_not_scored) for row in rows}) == 1


def test_answers_of_a_stream() -> None:
    documents = [Document("a", PLAIN)]
    answers = [*["a cat sat at the bat"] * 4, "A cat"]
    questions = [Question(str(place), "what?", (each,), document="a") for place, each in enumerate(answers)]
    asking = Asking("{question}", tokens=2)
    results = stream(lossy(), documents, questions, ["online"], asking=asking)
    assert summary(results)["base"]["bytes_not_scored"] == 1
    assert "1 of 90 bytes" in str(table(results).caption)
    shouted = [Question("last", "what?", ("A CAT",), document="a")]
    with pytest.raises(BadInput, match=r"does not give back.*'last'"):
        stream(lossy(), documents, shouted, ["online"], asking=asking)


def test_the_harness_says_what_it_cannot_leave_out(recwarn: pytest.WarningsRecorder) -> None:
    from lm_eval.api.instance import Instance

    from uptake.harness import UptakeLM

    lm = UptakeLM(lossy(), method="base")
    request = [Instance("loglikelihood_rolling", {}, ("A " + PLAIN,), 0)]
    lm.loglikelihood_rolling(request, disable_tqdm=True)
    assert any("1 of 38 bytes" in str(one.message) for one in recwarn)
    with pytest.raises(BadInput, match="does not give back"):
        lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("THE CAT",), 0)], disable_tqdm=True)
    assert json.dumps(lm.get_model_info())
