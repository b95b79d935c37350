"""RAG over a causal model: sums over documents, by hand, and what becomes of one passage or none."""

import itertools
import math

import pytest
import torch

from toys import lm
from uptake.errors import BadInput
from uptake.lm.base import LM, Segment
from uptake.methods.contract.method import Context, Evidence, Method
from uptake.methods.in_context import InContext
from uptake.methods.rag import Rag, RagState
from uptake.text.types import Found, Passage

TEXTS = ["the cat sat", "a dog ran", "one fish, two fish"]
SCORES = (3.0, 1.0, 2.0)
SEGMENT = Segment("the cat ran", "so ")


def evidence(count: int) -> Evidence:
    passages = tuple(Passage(n, text) for n, text in enumerate(TEXTS[:count]))
    return Evidence(Found(passages, SCORES[:count], (0.0,) * count, (0.0,) * count), "so ")


def answering(base: LM, method: Method[RagState], count: int) -> LM:
    (state,) = method.adapt([method.init(base)], base, [evidence(count)], Context())
    return method.adapted([state], base)


def after_each(base: LM) -> list[list[float]]:
    """Return the log-probability of each token of the segment after each passage by itself."""
    method, found = InContext(), []
    for text in TEXTS:
        (state,) = method.adapt([method.init(base)], base, [Evidence.of(text, query="so ")], Context())
        found.append(method.adapted([state], base).score([SEGMENT])[0].log_probs.tolist())
    return found


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_the_text_is_summed_over_documents(temperature: float | None) -> None:
    base = lm("llama")
    logs = after_each(base)
    prior = torch.tensor(SCORES, dtype=torch.float64).div(temperature or math.inf).softmax(0).tolist()
    whole = sum(p * math.exp(math.fsum(own)) for p, own in zip(prior, logs, strict=True))
    (scores,) = answering(base, Rag(marginal="sequence", temperature=temperature), 3).score([SEGMENT])
    assert scores.log_probs.sum().item() == pytest.approx(math.log(whole), abs=1e-5)
    # RAG-token is the sum over every sequence of documents, one a token.
    few = [own[:4] for own in logs]
    paths = itertools.product(range(3), repeat=4)
    token = sum(math.prod(prior[z] * math.exp(few[z][i]) for i, z in enumerate(path)) for path in paths)
    (scores,) = answering(base, Rag(marginal="token", temperature=temperature), 3).score([SEGMENT])
    assert scores.log_probs[:4].sum().item() == pytest.approx(math.log(token), abs=1e-5)


@pytest.mark.parametrize("marginal", ["sequence", "token", "switching"])
def test_one_passage_is_in_context_and_none_is_the_base(marginal: str) -> None:
    base = lm("llama")
    method = Rag(marginal=marginal)  # type: ignore[arg-type]
    (one,), (alone,) = answering(base, method, 1).score([SEGMENT]), base.score([SEGMENT])
    (context,) = answering(base, InContext(), 1).score([SEGMENT])  # type: ignore[arg-type]
    assert torch.allclose(one.log_probs, context.log_probs, atol=1e-6)
    (none,) = answering(base, method, 0).score([SEGMENT])
    assert torch.equal(none.log_probs, alone.log_probs)


def test_the_passage_that_explains_the_text_gains_weight() -> None:
    base = lm("llama")
    logs = after_each(base)
    best, worst = max(map(math.fsum, logs)), min(map(math.fsum, logs))
    (scores,) = answering(base, Rag(marginal="sequence"), 3).score([SEGMENT])
    assert (
        worst < scores.log_probs.sum().item() and best - math.log(3) <= scores.log_probs.sum().item() + 1e-6
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"marginal": "both"}, "marginal 'both'"), ({"temperature": 0.0}, "temperature 0.0")],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(BadInput, match=named):
        Rag(**settings)  # type: ignore[arg-type]
