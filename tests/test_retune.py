"""Teaching the form of answers: against a plain loop in float64, and what it is for."""

from pathlib import Path

import pytest
import torch

import toys
import uptake
from uptake.adaptation.delta import LowRank, fingerprint
from uptake.adaptation.optimizers import SGD, AdamW
from uptake.adaptation.trainable import LoRA
from uptake.errors import BadInput
from uptake.tasks.asking import Asking, ask
from uptake.tasks.questions import Question
from uptake.tasks.retune import Retuning, retune, save_retuned
from uptake.text.types import Document

QUESTIONS = [Question(f"{n}", f"what is {n}?", ("red" if n % 2 else "blue",)) for n in range(6)]
ASKING = Asking("{question}", tokens=8)


def test_it_is_the_plain_mean_over_answer_tokens() -> None:
    lm = toys.lm(dtype=torch.float64)
    before = fingerprint(lm.module)
    delta = retune(lm, QUESTIONS[:3], ASKING, Retuning(optimizer=SGD(0.1), batch=3, clip=None))
    assert fingerprint(lm.module) == before
    module = toys.module(dtype=torch.float64)
    nats, count = torch.zeros((), dtype=torch.float64), 0
    for question in QUESTIONS[:3]:
        prompt = lm.tokenizer.encode(question.text)[0]
        answer = lm.tokenizer.encode(f" {question.answers[0]}\n")[0]
        ids = torch.tensor([[0, *prompt, *answer]])
        log_probs = module(input_ids=ids).logits.log_softmax(-1)[0]
        for place in range(len(prompt) + 1, ids.shape[1]):
            nats = nats - log_probs[place - 1, ids[0, place]]
            count += 1
    (nats / count).backward()
    for name, parameter in module.named_parameters():
        assert torch.allclose(delta.difference(name), -0.1 * parameter.grad, atol=1e-12), name


def test_it_learns_to_answer_and_to_stop() -> None:
    lm = toys.lm()
    delta = retune(
        lm, QUESTIONS, ASKING, Retuning(optimizer=AdamW(3e-3, weight_decay=0.0), passes=60, batch=3)
    )
    found = ask(lm.overlay(delta), QUESTIONS, ASKING)
    assert [answer.said for answer in found] == [question.answers[0] for question in QUESTIONS]


def test_the_seed_fixes_it_and_the_moves_bound_it() -> None:
    lm = toys.lm()
    first, again = (retune(lm, QUESTIONS, ASKING, Retuning(batch=2, seed=3)) for _ in range(2))
    assert all(torch.equal(first.difference(name), again.difference(name)) for name in first.names)
    small = retune(lm, QUESTIONS, ASKING, Retuning(trainable=LoRA(2)))
    assert small.kinds == {LowRank}


def test_documents_and_long_questions_fit_the_window() -> None:
    lm = toys.lm()
    steps: list[int] = []
    long = Question("long", "why? " * 40, ("so",))
    retune(
        lm, [long], ASKING, Retuning(batch=1), [Document("d", "x" * 150)],
        progress=lambda done, total: steps.append(total),
    )  # fmt: skip
    assert steps == [4, 4, 4, 4]  # the question, and three windows of the document


def test_a_retuned_model_is_a_model(tmp_path: Path) -> None:
    lm = toys.lm()
    delta = retune(lm, QUESTIONS, ASKING)
    save_retuned(lm, delta, tmp_path / "tuned")
    loaded = uptake.load(str(tmp_path / "tuned"))
    pair = zip(ask(loaded, QUESTIONS, ASKING), ask(lm.overlay(delta), QUESTIONS, ASKING), strict=True)
    assert all(one.nats == pytest.approx(other.nats, abs=1e-4) for one, other in pair)
    with pytest.raises(BadInput, match="there already"):
        save_retuned(lm, delta, tmp_path / "tuned")


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(BadInput, match="no question to learn from"):
        retune(toys.lm(), [])
    with pytest.raises(BadInput, match="use 1 or more"):
        Retuning(passes=0)
