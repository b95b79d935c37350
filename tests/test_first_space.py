"""A continuation that begins with a word begins with its space, which SentencePiece drops in decoding."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

import toys
from test_round_trip import pieces
from uptake.lm.base import LM, Cache
from uptake.lm.causal import Causal
from uptake.lm.generation import Decoding
from uptake.session import Session
from uptake.tasks.asking import generate

SAID = (" a", " ab", "c", ",", " a", "s")  # what the model says after any prompt, word by word
WHOLE = "".join(SAID)


class Scripted(Causal):
    """Says the same after every prompt that ends in "t", a token after another."""

    read_on = LM.read_on

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        inner = self.tokenizer.inner
        words = ["\u2581a", "\u2581ab", "c", ",", "\u2581a", "s"]
        said = [inner.convert_tokens_to_ids(word) for word in words]
        end = inner.convert_tokens_to_ids("t")
        log_probs = torch.full((*ids.shape, len(self.tokenizer)), -30.0)
        for row, line in enumerate(ids.tolist()):
            last = max((place for place, token in enumerate(line) if token == end), default=-1)
            count = len(line) - 1 - last
            log_probs[row, -1, said[count % len(said)]] = 0.0
        return log_probs, None  # no cache: all is read again

    def start(self) -> Cache:
        return None

    def at(self, rows: Sequence[int]) -> "Scripted":
        return self


@pytest.fixture(name="lm", scope="module")
def lm_fixture() -> Scripted:
    module = toys.module(window=128)
    module.resize_token_embeddings(len(pieces()))
    return Scripted(module, pieces(), "scripted")


def test_one_text_many_texts_and_a_stream(lm: Scripted) -> None:
    assert lm.generate("the bat", len(SAID)) == WHOLE
    assert lm.generate("that t", len(SAID), temperature=0.7) == WHOLE
    rows = lm.generate_rows(["the bat", "a cat sat at that", "t"], Decoding(tokens=len(SAID)))
    assert rows == [WHOLE] * 3
    texts = [token.text for token in lm.stream("the bat", Decoding(tokens=len(SAID)))]
    assert "".join(texts) == WHOLE and texts[0] == " a"
    assert [*said_so_far(texts)] == ["".join(SAID[:count]) for count in range(1, len(SAID) + 1)]


def said_so_far(texts: Sequence[str]) -> Iterator[str]:
    for count in range(1, len(texts) + 1):
        yield "".join(texts[:count])


def test_stop_words_see_the_space_too(lm: Scripted) -> None:
    assert lm.generate("the bat", len(SAID), stop=[" ab"]) == " a"
    assert lm.generate("the bat", len(SAID), stop=[" a"]) == ""


def test_a_session_and_its_stream(lm: Scripted) -> None:
    session = Session(lm, "base")
    assert session.generate("the bat", len(SAID)) == WHOLE
    assert "".join(token.text for token in session.stream("the bat", len(SAID))) == WHOLE


def test_the_harness(lm: Scripted) -> None:
    from lm_eval.api.instance import Instance

    from uptake.harness import UptakeLM

    wanted = {"until": ["."], "max_gen_toks": len(SAID)}
    request = Instance("generate_until", {}, ("the bat", wanted), 0)
    assert UptakeLM(lm, method="base").generate_until([request], disable_tqdm=True) == [WHOLE]


def test_an_answer_is_said_without_white_space_around_it(lm: Scripted) -> None:
    assert generate(lm, ["what sat"], len(SAID)) == [WHOLE.strip()]
