"""The scope by vectors: which edits it finds, against a naive search; what it refuses; the gate it makes."""

import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

import toys
from uptake.errors import BadInput, Missing
from uptake.lm.base import Segment
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.gated_memory import GatedMemory
from uptake.methods.gated_memory.scope import Words
from uptake.methods.gated_memory.vectors import Vectors
from uptake.settings import apply
from uptake.text.encoders import make_encoder
from uptake.text.types import Found, Passage

PROMPTS = {
    "Anna Berg": "the home of Anna Berg is",
    "Boris Berg": "the home of Boris Berg is",
    "": "water boils at",
}
EDITS = [
    Passage(n, "xyz"[n], prompt, document=str(n), meta={"subject": name} if name else {})
    for n, (name, prompt) in enumerate(PROMPTS.items())
]
ASKED = ["where does Anna Berg live", "the home of Zoe is", "water boils at", "", "the home of Boris Berg is"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    toys.module().save_pretrained(folder)
    toys.tokenizer().save_pretrained(folder)
    return f"lm:{folder}"


def naive(scope: Vectors, prompt: str) -> list[tuple[float, int]]:
    """The score of each edit, by plain sums over its words and the encoder's vectors of its prompt."""
    known = [(edit.meta.get("subject") or edit.prompt).lower().split() for edit in EDITS]
    whole = [set(edit.prompt.lower().split()) | set(own) for edit, own in zip(EDITS, known, strict=True)]

    def weight(word: str) -> float:
        having = sum(word in words for words in whole)
        return math.log(1 + (len(EDITS) - having + 0.5) / (having + 0.5))

    encoded = make_encoder(scope.encoder, dtype="float32")
    vector = encoded.embed([prompt])[0]
    found = []
    for place, edit in enumerate(EDITS):
        words = prompt.lower().split()
        share = sum(weight(w) for w in known[place] if w in words) / sum(map(weight, known[place]))
        cosine = float(np.dot(vector, encoded.embed([edit.prompt])[0]))
        found.append(((1 - scope.words) * cosine + scope.words * share, place))
    return sorted(found, key=lambda one: (-one[0], one[1]))


@pytest.mark.parametrize("words", [0.0, 0.5, 1.0])
def test_it_finds_what_a_naive_search_finds_in_any_order_of_edits(encoder: str, words: float) -> None:
    lm = toys.lm("llama")
    for prompt in ASKED:
        scores = naive(Vectors(encoder, words=words), prompt)
        for least in (0.3, 0.6, 0.9):
            scope = Vectors(encoder, least, words)
            right = [place for score, place in scores if score >= least]
            for order in permutations(EDITS):
                found = scope.memory(order, lm).find(prompt, 3)
                assert [one.id for one in found] == right
            assert [one.id for one in scope.memory(EDITS, lm).find(prompt, 1)] == right[:1]
        assert all(abs(score - least) > 1e-4 for score, _ in scores for least in (0.3, 0.6, 0.9))


def test_by_words_alone_it_opens_where_the_scope_of_words_does(encoder: str) -> None:
    lm = toys.lm("llama")
    by_words = Words(least=0.8, least_prompt=0.8).memory(EDITS, lm)
    scope = Vectors(encoder, least=0.8, words=1.0).memory(EDITS, lm)
    opened = [bool(scope.find(prompt, 3)) for prompt in ASKED]
    assert opened == [bool(by_words.find(prompt, 3)) for prompt in ASKED] and len(set(opened)) == 2


def test_a_closed_prompt_is_the_bases_bit_for_bit(encoder: str) -> None:
    lm = toys.lm("llama")
    method = apply(GatedMemory(), f"scope=vectors(encoder={encoder!r},least=0.75)")
    read = Evidence(Found(tuple(EDITS), (0.0,) * len(EDITS)))
    (state,) = method.adapt([method.init(lm)], lm, [read], Context())
    model = method.adapted([state], lm)
    for prompt, opens in ((ASKED[1], False), (ASKED[4], True)):
        asked = [Segment("x and more", prompt)]
        same = torch.equal(model.score(asked)[0].log_probs, lm.score(asked)[0].log_probs)
        assert same is not opens


def test_what_was_read_again_counts_once_and_none_find_none(encoder: str) -> None:
    lm, scope = toys.lm("llama"), Vectors(encoder, least=-1.0)
    later = replace(EDITS[0], text="later")
    found = scope.memory([*EDITS, later], lm).find(ASKED[0], 9)
    assert sorted(one.id for one in found) == [0, 1, 2] and later in found
    assert scope.memory([], lm).find(ASKED[0], 9) == []


def test_what_is_refused(tmp_path: Path) -> None:
    for wrong in ({"least": 1.5}, {"words": -0.1}, {"least": float("nan")}):
        with pytest.raises(BadInput, match="use"):
            Vectors(**wrong)  # type: ignore[arg-type]
    with pytest.raises(Missing, match="no such folder"):
        Vectors(str(tmp_path / "none")).memory(EDITS, toys.lm("llama"))
