"""A private stream: documents together up to each checkpoint, what the report says, and what is refused."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toys
import uptake
from cli_world import Run, World, made_fixture, run_fixture, world_fixture, write_lines  # noqa: F401
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.privacy.dp import DP
from uptake.adaptation.trainable import LoRA
from uptake.errors import BadInput
from uptake.lm.causal import Causal
from uptake.methods.contract.method import MethodSpec
from uptake.methods.finetune import Finetune
from uptake.report import summary
from uptake.report.page import write_page
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question
from uptake.text.select import Nothing
from uptake.text.types import Document

DOCUMENTS = [Document(f"d{n}", f"text number {n} of all", f"u{n // 2}") for n in range(6)]
QUESTIONS = [Question(f"q{n}", "which", ("one",), f"d{n}") for n in range(6)]
PRIVATE = DP(epsilon=None, noise=1.0, clip=0.1, steps=2, batch=2, delta=0.01, seed=0)


@pytest.fixture(name="model", scope="module")
def model_fixture(tmp_path_factory: pytest.TempPathFactory) -> Causal:
    folder = tmp_path_factory.mktemp("model")
    toys.module().save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    return uptake.load(str(folder))


def spec(dp: DP = PRIVATE) -> MethodSpec:
    return MethodSpec(Finetune(trainable=LoRA(2), optimizer=SGD(0.1), privacy=dp), Nothing())


def stream(model: Causal, dp: DP = PRIVATE, **more: Any) -> Any:
    given = {"checkpoints": [4], "asking": Asking("{question}", tokens=2)} | more
    return uptake.stream(model, DOCUMENTS, QUESTIONS, {"private": spec(dp)}, **given)


def test_the_report_says_what_is_kept_and_what_is_not(model: Causal, tmp_path: Path) -> None:
    results = stream(model, replace(PRIVATE, seed=None), journal=tmp_path / "journal")
    found = uptake.summary(results)["methods"]["private"]
    claim = found["privacy"]
    assert claim["epsilon"] > 0 and claim["delta"] == 0.01 and claim["unit"] == "document"
    assert claim["sampling"] == "Poisson" and claim["trainings"] == 2 and not found["failures"]
    # The block of two is drawn whole in every step: its claim is the weaker one.
    assert (claim["units"], claim["sampling_rate"], claim["expected_batch"]) == (2, 1.0, 2.0)
    page = tmp_path / "page.html"
    write_page(results, page)
    summary.write_json(results, tmp_path / "r.json")
    whole = json.loads((tmp_path / "r.json").read_text())["methods"]["private"]["privacy"]
    for words in ("differentially private for each document", "Not private: this report itself", "retrieval"):
        assert words in summary.table(results).caption.plain.replace("\n", " ")  # type: ignore[union-attr]
        assert words in page.read_text() and words in whole["said"]
    assert uptake.read_json(tmp_path / "r.json") == results


def test_a_seed_is_told(model: Causal) -> None:
    told = uptake.summary(stream(model))["methods"]["private"]["privacy"]
    assert told["seeded"] and told["said"].startswith("seeded: no privacy")


def test_what_cannot_be_kept_is_refused_before_anything_is_read(model: Causal) -> None:
    def refused(said: str, dp: DP = PRIVATE, **more: Any) -> None:
        with pytest.raises(BadInput, match=said):
            stream(model, dp, **more)

    refused("private: delta 0.3 for 4 documents", replace(PRIVATE, delta=0.3))
    refused("private: epsilon 0.05 over 2 steps needs noise", replace(PRIVATE, epsilon=0.05, noise=None))
    refused("user 'u0' stands on both sides of a checkpoint", replace(PRIVATE, unit="user"), checkpoints=[1])
    refused("and a rehearsal", rehearsal=QUESTIONS)
    assert uptake.summary(stream(model, replace(PRIVATE, unit="user")))["methods"]["private"]["privacy"][
        "units"
    ]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--delta", "1e-6"], "--delta without --epsilon"),
        (["--epsilon", "8", "--methods", "online,in-context"], "in-context reads the documents without any"),
        (["--epsilon", "8", "--methods", "in-context"], "in-context reads the documents without any"),
        (["--set", "privacy.steps=3"], "privacy.steps=3 without --epsilon"),
        (["--set", "online.privacy.steps=3"], "privacy.steps=3 without --epsilon"),
        (["--epsilon", "8", "--delta", "1e-300"], "delta 1e-300 is too small"),
        (["--epsilon", "0"], "epsilon 0.0: use a positive number"),
        (["--epsilon", "8", "--methods", "ttt-nn"], "ttt-nn|reads what it finds in a store"),
        (["--epsilon", "0.01"], "epsilon 0.01 over 50 steps needs noise"),
    ],
)
def test_options_that_cannot_be_kept_are_one_line(
    run: Run, world: World, tmp_path: Path, more: Sequence[str], said: str
) -> None:
    documents = write_lines(tmp_path / "d.jsonl", *[{"id": d.id, "text": d.text} for d in DOCUMENTS])
    asked = [{"id": q.id, "question": "which", "answers": ["one"], "document": q.document} for q in QUESTIONS]
    questions = write_lines(tmp_path / "q.jsonl", *asked)
    ran = run("stream", "-m", world.model, "--documents", documents, "--questions", questions, *more)
    assert ran.code != 0 and any(each in ran.err for each in said.split("|"))
    assert len(ran.err.strip().splitlines()) == 1
