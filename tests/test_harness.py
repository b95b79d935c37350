"""The lm-evaluation-harness plug-in: as the base it scores as `hf` does, else as the model that has read."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="needs lm_eval")

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import toys
from uptake import api
from uptake.errors import BadInput
from uptake.harness import UptakeLM
from uptake.store.datastore import Datastore
from uptake.text.types import Document

PAIRS = [
    ("so ", "the cat"),
    ("so", " the cat"),
    ("", "the cat"),
    ("the cat sat on the ", "mat"),
    ("the cat sat on the ", "dog"),
    ("long enough to be cut at its beginning, " * 4, "and then what"),
    ("naïve café ", "日本"),
]
LEARN = "optimizer=sgd(learning_rate=0.1);chunk_tokens=32"


def asked(kind: str, *arguments: Any) -> list[Instance]:
    return [
        Instance(kind, {}, given if isinstance(given, tuple) else (given,), i, metadata=("t", i, 1))
        for i, given in enumerate(arguments)
    ]


def store_of(path: Path) -> Datastore:
    store = Datastore.create(path, retriever="lexical")
    store.add([Document(f"d{i}", f"the cat sat on the mat number {i} and slept. ") for i in range(6)])
    return store


def hf(shape: str) -> HFLM:
    return HFLM(
        pretrained=toys.module(shape), tokenizer=toys.tokenizer(), batch_size=1, device="cpu", max_length=64
    )


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_the_base_scores_as_the_harness_does(shape: str) -> None:
    ours, theirs = UptakeLM(toys.lm(shape), method="base"), hf(shape)
    greedy = theirs.generate_until(
        asked("generate_until", ("so it", {"until": ["@"], "max_gen_toks": 3, "do_sample": False})),
        disable_tqdm=True,
    )
    pairs = [*PAIRS, ("so it", greedy[0])]
    found = ours.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    expected = theirs.loglikelihood(asked("loglikelihood", *pairs), disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-5)
    assert [likeliest for _, likeliest in found] == [likeliest for _, likeliest in expected]
    texts = ["a short one", "long enough for several windows, " * 9, "x", "naïve café " * 20]
    rolling = asked("loglikelihood_rolling", *texts)
    assert ours.loglikelihood_rolling(rolling, disable_tqdm=True) == pytest.approx(
        theirs.loglikelihood_rolling(rolling, disable_tqdm=True), rel=1e-5
    )


@pytest.mark.parametrize("method", ["ttt-nn", "in-context"])
def test_a_request_is_answered_by_the_model_that_read_its_neighbours(method: str, tmp_path: Path) -> None:
    lm, store = toys.lm(), store_of(tmp_path / "s")
    settings = LEARN if method == "ttt-nn" else ""
    ours = UptakeLM(lm, store, method, k=2, set=settings, leak_filter=False)
    base = UptakeLM(lm, method="base")
    requests = asked("loglikelihood", *PAIRS)
    found, plain = (
        [score for score, _ in each.loglikelihood(requests, disable_tqdm=True)] for each in (ours, base)
    )
    changed = [one != pytest.approx(other, rel=1e-6) for one, other in zip(found, plain, strict=True)]
    # No context, or one that finds nothing: the base.
    assert changed == [False, False, False, True, True, False, False]
    # Not what is scored, but the context alone decides what is read.
    alone = ours.loglikelihood(requests[3:4], disable_tqdm=True)
    assert alone[0][0] == pytest.approx(found[3], rel=1e-6)


def test_generation_is_the_adapted_models(tmp_path: Path) -> None:
    lm, store = toys.lm(), store_of(tmp_path / "s")
    ours = UptakeLM(lm, store, k=3, set=["optimizer=sgd(learning_rate=2)"], leak_filter=False)
    how = {"until": ["#"], "max_gen_toks": 12, "do_sample": False}
    (text,) = ours.generate_until(asked("generate_until", ("the cat", how)), disable_tqdm=True)
    settings = ["optimizer=sgd(learning_rate=2)"]
    session = api.adapt(lm, "the cat", "ttt-nn", store=store, k=3, settings=settings)
    assert len(session.neighbours) == 3
    assert text == session.generate("the cat", 12, stop=["#"])
    assert text != lm.generate("the cat", 12, stop=["#"])
    sampled = {**how, "do_sample": True, "temperature": 1.0}
    twice = asked("generate_until", ("the cat", sampled), ("the cat", sampled))
    drawn = ours.generate_until(twice, disable_tqdm=True)
    assert drawn[0] != drawn[1] and drawn == ours.generate_until(twice, disable_tqdm=True)


def test_what_stopped_reading_is_counted_and_told(tmp_path: Path) -> None:
    lm, store = toys.lm(), store_of(tmp_path / "s")
    wild = UptakeLM(lm, store, k=3, set=["optimizer=sgd(learning_rate=1e38)"], leak_filter=False)
    requests = asked("loglikelihood", ("the cat", " sat"), ("so the cat", " ran"))
    with pytest.warns(UserWarning, match="smaller learning rate.*the base answers") as told:
        answers = wild.loglikelihood(requests, disable_tqdm=True)
    assert len(told) == 1 and wild.get_model_info() == {"uptake_stopped": {"diverged": 2}}
    assert answers == UptakeLM(lm, method="base").loglikelihood(requests, disable_tqdm=True)
    short = UptakeLM(lm, store, k=3, max_steps=1, leak_filter=False)
    with pytest.warns(UserWarning, match="1 of 1 steps are taken.*not all that was found"):
        short.adapted("the cat")
    assert short.get_model_info() == {"uptake_stopped": {"budget": 1}}


def test_rolling_windows_are_found_by_the_window_before(tmp_path: Path) -> None:
    lm, store = toys.lm(), store_of(tmp_path / "s")
    ours = UptakeLM(lm, store, k=1, set=LEARN, leak_filter=False)
    first, second = "the cat sat on the mat, and so on " + "x" * 30, "y" * 40
    assert len(lm.tokenizer.encode(first)[0]) == 64 == lm.window
    contexts = []
    adapted = ours.adapted
    ours.adapted = lambda context, whole="": contexts.append((context, whole)) or adapted(context, whole)  # type: ignore
    (found,) = ours.loglikelihood_rolling(asked("loglikelihood_rolling", first + second), disable_tqdm=True)
    assert contexts == [(first, first + second)]
    (plain,) = UptakeLM(lm, method="base").loglikelihood_rolling(
        asked("loglikelihood_rolling", first + second), disable_tqdm=True
    )
    assert found != pytest.approx(plain, rel=1e-6) and math.isfinite(found)
    # What overlaps with the text is withheld unless asked otherwise.
    copied = Datastore.create(tmp_path / "copied", retriever="lexical")
    copied.add([Document("copy", first + second)])
    strict = UptakeLM(lm, copied, k=1, set=LEARN)
    assert strict.loglikelihood_rolling(
        asked("loglikelihood_rolling", first + second), disable_tqdm=True
    ) == pytest.approx([plain], rel=1e-6)


def task(folder: Path) -> dict[str, Any]:
    lines = [
        {"question": "the cat sat on the", "choices": [" mat", " dog", " xyz"], "answer": 0},
        {"question": "a dog ran over the", "choices": [" sea", " hill", " xyz"], "answer": 1},
    ]
    (folder / "tiny.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "task": "tiny",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "tiny.jsonl")}, "cache_dir": str(folder)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}],
    }


def test_a_task_of_the_harness_runs(tmp_path: Path) -> None:
    assert get_model("uptake") is UptakeLM and get_model("hf") is HFLM
    lm, given = toys.lm(), task(tmp_path)
    told = {}
    for name, model in {
        "hf": hf("llama"),
        "base": UptakeLM(lm, method="base"),
        "ttt-nn": UptakeLM(lm, store_of(tmp_path / "s"), k=2, set=LEARN, leak_filter=False),
    }.items():
        results = lm_eval.simple_evaluate(
            model, tasks=[given], task_manager=TaskManager(include_defaults=False), bootstrap_iters=0
        )
        samples = results["samples"]["tiny"]
        told[name] = [float(answer[0]) for sample in samples for answer in sample["filtered_resps"]]
        assert len(told[name]) == 6 and 0 <= results["results"]["tiny"]["acc,none"] <= 1
    assert told["base"] == pytest.approx(told["hf"], rel=1e-5)
    assert told["ttt-nn"] != pytest.approx(told["base"], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("no method 'ttt'", {"method": "ttt"}),
        ("there is no store: give store=DIR", {}),
        ("model argument 'learning_rate'", {"learning_rate": 1e-3}),
        ("learns while it scores", {"method": "dynamic-evaluation"}),
        ("carries state from query to query", {"set": "reference=true"}),
        ("did you mean 'learning_rate'", {"set": "learning_rat=1"}),
    ],
)
def test_what_cannot_be_run_is_refused(words: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=words):
        UptakeLM(toys.lm(), **arguments)


PROGRAM = "import sys, uptake.harness as h; sys.argv = ['lm_eval', 'run', '--help']; h.main()"


@pytest.mark.parametrize("command", [["-c", PROGRAM], ["-m", "uptake.harness", "run", "--help"]])
def test_the_command_line_of_the_harness_has_our_model(command: list[str]) -> None:
    told = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert told.returncode == 0 and "--model_args" in told.stdout, told.stderr
