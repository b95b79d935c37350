"""The attack of recipes/privacy.py: what it makes of likelihoods, and that it sees what was learnt openly."""

import json
import math
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from privacy import entered_of, log_probs, train_long
from privacy_data import Data, read
from privacy_figures import advantage, best_of, chance, figures
from privacy_runs import Run, runs_of

import toys
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.privacy.dp import DP
from uptake.adaptation.trainable import LoRA, Top
from uptake.adaptation.trainable.ia3 import IA3
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.text.types import Document, Found, Passage


@given(st.lists(st.booleans(), min_size=4, max_size=30).filter(lambda found: 0 < sum(found) < len(found)))
def test_the_advantage_is_the_true_less_the_false_positive_rate(drawn: list[bool]) -> None:
    members = np.array(drawn)
    assert advantage(np.where(members, 1.0, 0.0), members) == 1.0
    called = np.argsort(-np.arange(len(members)))[::-1] < members.sum()  # the last ones are the likeliest
    naive = called[::-1][members].mean() - called[::-1][~members].mean()
    assert advantage(np.arange(len(members), dtype=float), members) == pytest.approx(naive)


def test_chance_is_what_guessing_gives() -> None:
    members = np.arange(64) < 32
    low, high = chance(members, draws=500)
    assert low == pytest.approx(-high, abs=0.07) and 0.15 < high < 0.35
    generator = np.random.default_rng(1)
    inside = [low <= advantage(generator.random(64), members) <= high for _ in range(200)]
    assert np.mean(inside) > 0.9


def test_half_of_what_is_planted_is_drawn_by_the_seed() -> None:
    data = Data((), {}, tuple(Document(str(n), "text") for n in range(10)))
    assert data.members(0).sum() == 5 and (data.members(0) != data.members(1)).any()


@pytest.mark.long
def test_the_attack_sees_what_was_learnt_openly_and_not_what_was_learnt_in_private() -> None:
    lm = toys.lm()
    words = ["pear", "moss", "iron", "blue", "west", "salt", "corn", "dusk"]
    draws = np.random.default_rng(0)
    planted = [
        Document(f"p{n}", " ".join(words[place] for place in draws.integers(0, 8, 6))) for n in range(24)
    ]
    members = np.arange(24) % 2 == 0
    read = tuple(Passage.whole(document) for document, there in zip(planted, members, strict=True) if there)
    before = log_probs(lm, lm.tokenizer, planted)

    def attacked(dp: DP) -> float:
        method = Finetune(trainable=Top(1), optimizer=AdamW(learning_rate=1e-2), privacy=dp)
        evidence = Evidence(Found(read, (0.0,) * len(read)))
        (state,) = method.adapt([method.init(lm)], lm, [evidence], Context())
        return advantage(log_probs(method.adapted([state], lm), lm.tokenizer, planted) - before, members)

    torch.set_num_threads(1)
    openly = DP(epsilon=None, noise=0.0, clip=math.inf, steps=100, batch=12, seed=0)
    low, high = chance(members)
    assert attacked(openly) > max(high, 0.8)
    assert low <= attacked(replace(openly, noise=20.0, clip=0.1, delta=0.01)) <= high


def test_an_arm_is_told_at_the_settings_that_are_best_on_validation_text() -> None:
    runs = [Run("8", seed, steps, 4, 1, 1, 0.01) for steps in (2, 3) for seed in range(2)]
    valid = {"8 0 2 4 1 1 0.01": -3.0, "8 1 2 4 1 1 0.01": -9.0, "8 0 3 4 1 1 0.01": -4.0}
    rows = {key: {"valid": [value]} for key, value in (valid | {"8 1 3 4 1 1 0.01": -5.0}).items()}
    assert {run.steps for run in best_of(runs, rows)} == {3}
    more = Run("8", 0, 2, 4, 1, 0, 0.1, 1.0, 2000), Run("none", 1, 2, 440, 2, 4)
    more += (Run("8", 0, 2, 4, 1, 1, 0.1, parts=("o_proj", "down_proj")),)
    assert all(Run.of(run.key) == run for run in [*runs, *more])


def test_a_pass_is_as_many_steps_as_read_the_stream_once() -> None:
    common = {"seeds": 2, "arms": ["none", "8"], "layers": 1, "rank": 1, "rate": [0.1, 0.2], "steps": 7}
    common |= {"clip": [0.1], "documents": 0, "parts": ["o_proj", "down_proj"]}
    once = runs_of(Namespace(**common, batch=[10, 30], passes=1), 100)
    assert {(run.batch, run.steps) for run in once} == {(10, 10), (30, 3)} and len(once) == 16
    assert {run.steps for run in runs_of(Namespace(**common, batch=[10], passes=0), 100)} == {7}


def test_several_seeds_of_an_arm_are_one_figure() -> None:
    documents = tuple(Document(str(n), "text", f"file {n // 2}") for n in range(8))
    data = Data((), {"test": documents}, documents)
    base = {"test": [-10.0] * 8, "valid": [-10.0], "planted": [-5.0] * 8}
    runs = [Run(arm, seed, 2, 4, 1, 1) for arm in ("none", "8") for seed in range(2)]

    def row(run: Run, saved: float) -> dict[str, object]:
        members = data.members(run.seed)
        return {
            "test": [-10.0 + saved] * 8,
            "valid": [-10.0 + saved],
            # The first seed's attack is right about all, the second's about none.
            "planted": np.where(members == (run.seed == 0), -1.0, -5.0).tolist(),
            "members": members.tolist(),
            "cpu_seconds": 1.0,
            **dict.fromkeys(("claim", "said", "tokens_trained", "parameters")),
        }

    saved = {"none 0": 4.0, "none 1": 6.0, "8 0": 3.0, "8 1": 5.0}
    rows = {run.key: row(run, saved[f"{run.arm} {run.seed}"]) for run in runs}
    arms = figures(data, rows, base, runs)["arms"]
    assert arms["none"]["gain"] == pytest.approx(0.5) and arms["8"]["gain"] == pytest.approx(0.4)
    assert arms["8"]["share"] == pytest.approx(0.8) and arms["8"]["attack"] == 0.0
    assert arms["8"]["tried"].keys() == {"8 0 2 4 1 1", "8 1 2 4 1 1"}
    assert arms["8"]["tried"]["8 1 2 4 1 1"] == pytest.approx(0.5)
    assert "share" not in arms["none"] and "share_of_openly" not in arms["8"]


def test_more_documents_are_definitions_of_files_that_nothing_held_out_is_of(tmp_path: Path) -> None:
    def written(name: str, rows: list[dict[str, str]]) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")

    def fact(file: str, line: int) -> dict[str, str]:
        return {
            "id": f"p-1/{file}.py#{line}",
            "text": f"# p, {file}.py: f\ndef f(): pass\n",
            "group": f"p-1/{file}.py",
        }

    code = "def f(): pass\n\n\ndef g(): pass\n"
    for part, file in (("train", "a"), ("valid", "b"), ("test", "c")):
        written(f"facts/{part}/passages.jsonl", [fact(file, 1)])
    written("store.jsonl", [{"id": f"p-1/{file}.py", "package": "p", "text": code} for file in "abcd"])
    data = read(tmp_path, 24, 4)
    assert data.stream[0].id == "p-1/a.py#1"
    assert {each.id for each in data.stream[1:]} == {"p-1/a.py#4", "p-1/d.py#1", "p-1/d.py#4"}
    assert {each.text for each in data.stream if each.id.endswith("d.py#4")} == {"# p, d.py: g\ndef g(): pa"}
    assert len(read(tmp_path, 24).stream) == 1
    with pytest.raises(SystemExit, match="has 4 documents for a stream"):
        read(tmp_path, 24, 5)


def test_an_arm_without_noise_clips_and_one_without_clipping_does_neither() -> None:
    run = Run("clipped", 0, 2, 4, 1, 1, 0.1, 0.5)
    assert (run.dp(100).clip, run.dp(100).noise) == (0.5, 0.0)
    assert (replace(run, arm="none").dp(100).clip, replace(run, arm="none").dp(100).noise) == (math.inf, 0.0)
    assert replace(run, arm="8").dp(100).epsilon == 8
    # A tenth of one over the number of documents, where there are more.
    assert replace(run, arm="8", documents=5000).dp(5000).delta == pytest.approx(2e-5)
    assert replace(run, rank=0).trainable == IA3(layers=1) and run.trainable == LoRA(1, 8, layers=1)


def test_a_training_from_what_is_kept_of_frozen_blocks_is_bit_for_bit_one_that_computes_it(
    tmp_path: Path,
) -> None:
    def texts(*names: str) -> tuple[Document, ...]:
        return tuple(Document(name, f"the {name} sat on the mat", name) for name in names)

    data = Data(texts("cat", "dog", "cow"), {"valid": texts("hen"), "test": texts("fox")}, texts("a", "b"))
    run = Run("none", 0, 3, 2, 1, 1, 0.1, parts=("o_proj", "down_proj"))
    torch.set_num_threads(1)

    def told(keep: bool) -> dict[str, object]:
        lm = toys.lm()
        kept = entered_of(lm, data, 1, tmp_path / "kept") if keep else None
        assert kept is None or kept.find((1, 2, 3)) is None
        row = train_long(lm, data, run, kept)
        return {name: value for name, value in row.items() if name != "cpu_seconds"}

    plain = told(False)
    assert told(True) == plain and (tmp_path / "kept").exists()  # written
    read_again = told(True)
    assert read_again == plain and plain["parameters"] == 2 * toys.lm().module.config.hidden_size
    # Another text is added to the file, and what another model wrote there is not used.
    more = replace(data, stream=(*data.stream, *texts("owl")))
    kept = entered_of(toys.lm(), more, 1, tmp_path / "kept")
    assert kept is not None and len(kept.hidden) == 8
    other = entered_of(toys.lm(seed=1), data, 1, tmp_path / "kept")
    assert other is not None and not all(
        torch.equal(hidden, kept.hidden[ids]) for ids, hidden in other.hidden.items()
    )
