"""Asking: likelihood and what is said against plain loops over the model, and drift against its formula."""

import math

import pytest
import torch

import toys
from uptake import methods
from uptake.errors import BadInput
from uptake.lm.base import LM, Segment
from uptake.lm.wrappers import Prefixed, Routed
from uptake.methods.contract.method import Context, Evidence
from uptake.tasks.asking import Asking, ask, divergence, generate, speak
from uptake.tasks.questions import Question

QUESTIONS = [
    Question("1", "who?", ("me", "the cat")),
    Question("2", "where is it?", ("here",)),
    Question("3", "how?", ("so",)),
    Question("4", "why? " * 30, ("because",)),  # longer than the window
]
PLAIN = Asking(template="{question}", tokens=6)


def subjects() -> dict[str, LM]:
    base = toys.lm()
    method = type(methods.find("online").method).example()
    (moved,) = method.adapt([method.init(base)], base, [Evidence.of("the cat sat on the mat")], Context())
    return {
        "base": base,
        "moved": method.adapted([moved], base),
        "prefixed": Prefixed(Routed([base]), [[0, 5, 6, 7]]),
    }


@pytest.mark.parametrize("name", ["base", "moved", "prefixed"])
def test_asking_is_scoring_and_generating_one_at_a_time(name: str) -> None:
    lm = subjects()[name]
    found = ask(lm, QUESTIONS, PLAIN)
    for question, answer in zip(QUESTIONS, found, strict=True):
        (scores,) = lm.score([Segment(f" {question.answers[0]}", question.text)])
        assert answer.nats == pytest.approx(-scores.log_probs.sum().item(), abs=1e-4)
        assert answer.tokens == len(question.answers[0]) + 1  # a token a byte, and the space
    for question, answer in list(zip(QUESTIONS, found, strict=True))[:3]:
        assert answer.said == lm.generate(question.text, 6, stop=["\n"]).strip()
        assert 0 <= answer.exact <= answer.f1 <= 1


def test_the_best_answer_is_the_likeliest() -> None:
    lm = toys.lm()
    answers = ("zzzzzz", "me", "cat")
    best = ask(lm, [Question("1", "who?", answers)], Asking("{question}", "best", 0))[0]
    each = [
        ask(lm, [Question("1", "who?", (answer,))], Asking("{question}", tokens=0))[0] for answer in answers
    ]
    assert best.nats == pytest.approx(min(one.nats for one in each), abs=1e-4)
    assert best.said == ""


class Scripted(LM):
    """Says what it is told, one token a step, whatever it is asked."""

    def __init__(self, says: str, cached: bool) -> None:
        base = toys.lm()
        self.tokenizer, self.window, self.device = base.tokenizer, base.window, base.device
        self.fingerprint, self.cached = "scripted", cached
        self.says = [*self.tokenizer.encode(says)[0], self.tokenizer.end]
        self.read = 0

    def start(self):
        return 0 if self.cached else None

    def step(self, ids, cache=None, lengths=None):
        fresh = lengths[0] if lengths else ids.shape[1]
        self.read = cache + fresh if self.cached else fresh
        out = torch.full((*ids.shape, len(self.tokenizer)), -50.0)
        out[:, -1, self.says[min(self.read - self.prompt, len(self.says) - 1)]] = 0.0
        return out, self.read if self.cached else None

    overlay = trainable_copy = with_parameters = None  # never asked for here


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    ("says", "expected"), [(" a cat \nQ", "a cat"), ("\nQ", ""), (" dog", "dog"), (" long winded", "long")]
)
def test_what_is_said_ends_with_the_line_the_text_or_the_last_token(
    says: str, expected: str, cached: bool
) -> None:
    lm = Scripted(says, cached)
    lm.prompt = 1 + len("who?")
    tokens = 5 if "long" in says else 20
    assert generate(lm, ["who?", "how?"], tokens) == [expected] * 2


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_the_confidence_of_what_is_said_is_the_probability_of_its_tokens(shape: str) -> None:
    lm = toys.lm(shape, window=64)
    prompts = ["who is it?", "a longer question, how?", "x"]
    for spoken, prompt in zip(speak(lm, prompts, 6), prompts, strict=True):
        ids, nats = [0, *lm.tokenizer.encode(prompt)[0]], 0.0
        for _ in range(6):  # token by token, each predicted from all before it
            log_probs = lm.step(torch.tensor([ids]))[0][0, -1].double()
            ids.append(int(log_probs.argmax()))
            nats -= float(log_probs[ids[-1]])
            if ids[-1] == lm.tokenizer.end or lm.tokenizer.decode(ids[-1:]) == "\n":
                break
        assert spoken.nats == pytest.approx(nats, rel=1e-4)
        assert spoken.tokens == len(ids) - 1 - len(lm.tokenizer.encode(prompt)[0])
        assert spoken.confidence == pytest.approx(math.exp(-nats), rel=1e-3)
    scripted = Scripted(" a cat \nQ", True)
    scripted.prompt = 1 + len("who?")
    (said,) = speak(scripted, ["who?"], 20)
    assert (said.text, said.nats, said.tokens) == ("a cat", 0.0, len(" a cat \n")), (
        "the end of the line counts"
    )
    (nothing,) = speak(lm, ["who?"], 0)
    assert (nothing.text, nothing.tokens) == ("", 0)


def test_drift_is_the_divergence_of_the_two_models() -> None:
    base, other = toys.lm(dtype=torch.float64), toys.lm(seed=1, dtype=torch.float64)
    text = "a text that is quite a bit longer than the window of the model, which has 64 places for tokens"
    nats, tokens = divergence(base, other, text)
    assert tokens == len(text)
    ids = [0, *base.tokenizer.encode(text)[0]]
    expected = 0.0
    for end in range(1, len(ids)):
        # The second window begins with the last token of the first.
        start = 0 if end <= 64 else 64 - (128 - len(text))
        seen = torch.tensor([ids[max(0, start) : end]])
        p, q = base.step(seen)[0][0, -1], other.step(seen)[0][0, -1]
        expected += float((p.exp() * (p - q)).sum())
    assert nats == pytest.approx(expected, rel=1e-9)
    assert divergence(base, base, text) == (0.0, tokens)
    assert divergence(base, other, "") == (0.0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "Q: {q}"}, r"write \{question\} where"),
        ({"likelihood": "last"}, "use first or best"),
        ({"tokens": -1}, "use 0 or more"),
        ({"batch": 0}, "1 or more"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Asking(**settings)


def test_braces_in_a_question_stay() -> None:
    assert Asking().prompt(Question("1", "what is {x}?", ("y",))) == "Question: what is {x}?\nAnswer:"
