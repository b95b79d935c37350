"""Token weights by rule: spans, spelling, TF-IDF with a cut, and weights moved from tokens to tokens."""

import math
import re
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

import toys
from uptake.adaptation.token_weights import SalientSpans, TfIdf, TokenWeights
from uptake.adaptation.token_weights.base import Spans, covering
from uptake.adaptation.token_weights.network import aligned
from uptake.adaptation.token_weights.salient import by_spelling
from uptake.errors import BadInput, Missing
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.settings import apply, parse
from uptake.text import terms
from uptake.text.types import Passage


def by_words(text: str) -> list[tuple[int, int]]:
    """Spans of words, each with the space before it, as byte-level tokenizers make them."""
    spans, at = [], 0
    for word in text.split(" "):
        spans.append((max(0, at - 1), at + len(word)))
        at += len(word) + 1
    return spans


def kept(weights: TokenWeights, text: str, *before: str) -> list[str]:
    found = weights.of(
        Passage(0, text), by_words(text), [Passage(i, earlier) for i, earlier in enumerate(before)]
    )
    return [word for word, weight in zip(text.split(" "), found.tolist(), strict=True) if weight]


def test_a_token_counts_where_it_shares_a_character_with_a_span() -> None:
    spans = [(0, 3), (3, 4), (4, 9), (9, 9), (9, 12)]
    assert covering(spans, [(8, 10), (2, 3), (5, 5)]).tolist() == [1, 0, 1, 0, 1]
    assert covering(spans, [(0, 12), (1, 2)]).tolist() == [1, 1, 1, 0, 1]
    assert covering([], [(0, 1)]).tolist() == [] and covering(spans, []).tolist() == [0] * 5


def test_spelling_finds_names_and_numbers_but_not_what_opens_a_sentence() -> None:
    text = "The king met Anna of Prussia in 1807 there. Later Napoleon paid $3,000 and The Hague saw it."
    assert kept(SalientSpans(), text) == [
        *["Anna", "of", "Prussia", "1807", "Later", "Napoleon", "$3,000", "The", "Hague"]
    ]


def test_capitals_of_other_scripts_are_capitals() -> None:
    russian = "Король встретил Анну в 1807 году. Потом Йозеф Гайдн уехал в Вену."
    assert kept(SalientSpans(), russian) == ["Анну", "1807", "Потом", "Йозеф", "Гайдн", "Вену."]
    assert kept(SalientSpans(), "国王 于 1807 年 见 安娜") == ["1807"]
    assert list(by_spelling("国王于1807年任命他为大臣，付了20元。")) == [(3, 8), (17, 20)]
    assert list(by_spelling("the 3rd of 20km")) == [(4, 7), (11, 15)]


def test_a_pipeline_that_is_not_there_is_told_of() -> None:
    with pytest.raises(Missing, match="rules"):
        SalientSpans("no_such_pipeline").of(Passage(0, "x"), [(0, 1)])
    with pytest.raises(BadInput, match="needs a spaCy pipeline"):
        SalientSpans(phrases=True)


def test_salient_spans_are_what_a_pipeline_names(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy")

    @spacy.Language.component("uptake-test-parser")
    def parse_by_hand(doc: Any) -> Any:
        """Every word hangs on the second: what stands before it is its subject."""
        for token in doc:
            token.head = doc[min(1, len(doc) - 1)]
            token.dep_, token.pos_ = ("nsubj", "NOUN") if token.i == 0 else ("ROOT", "VERB")
        return doc

    names = spacy.blank("en")
    names.add_pipe("entity_ruler").add_patterns([{"label": "WORK", "pattern": "grey sea"}])
    names.to_disk(tmp_path / "names")
    text = "whales swim in the grey sea"
    only = SalientSpans(str(tmp_path / "names"))
    assert kept(only, text) == ["grey", "sea"]
    assert (
        apply(Finetune(), f"token_weights=salientspans(pipeline={tmp_path / 'names'})").token_weights == only
    )
    with pytest.raises(BadInput, match="parses nothing"):
        kept(SalientSpans(str(tmp_path / "names"), phrases=True), text)

    names.add_pipe("uptake-test-parser")
    names.to_disk(tmp_path / "phrases")
    assert kept(SalientSpans(str(tmp_path / "phrases"), phrases=True), text) == ["whales", "grey", "sea"]
    assert kept(SalientSpans(str(tmp_path / "phrases")), text) == ["grey", "sea"]
    with pytest.raises(Missing, match="no spaCy pipeline"):
        kept(SalientSpans(str(tmp_path / "none")), text)


def test_tf_idf_keeps_the_words_that_stand_out_by_hand(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the cat sat\nthe dog ran\n\nthe cat ran\n")
    text = "the cat and the owl owl"
    # the: 2 ln(4/4) = 0; cat: ln(4/3); and: ln 4; owl: 2 ln 4
    assert math.log(4 / 3) < math.log(4)
    assert kept(TfIdf(0.25, str(corpus)), text) == ["owl", "owl"]
    assert kept(TfIdf(0.5, str(corpus)), text) == ["and", "owl", "owl"]
    assert kept(TfIdf(0.75, str(corpus)), text) == ["cat", "and", "owl", "owl"]
    assert kept(TfIdf(0.5), text, "the cat sat", "the dog ran", "The Cat ran") == ["and", "owl", "owl"]
    (tmp_path / "corpus.jsonl").write_text('{"text": "and and"}\n{"text": "and the"}\n')
    assert kept(TfIdf(0.25, str(tmp_path / "corpus.jsonl")), text) == ["owl", "owl"]
    with pytest.raises(BadInput, match="cannot read"):
        kept(TfIdf(0.25, str(tmp_path / "none.txt")), text)
    for number, line in enumerate(('{"no": 1}', '{"text": 1}', "[1]", "{", "[" * 100_000)):
        bad = tmp_path / f"bad{number}.jsonl"
        bad.write_text(f"{line}\n")
        with pytest.raises(BadInput, match="lines of text"):
            kept(TfIdf(0.25, str(bad)), text)
    with pytest.raises(BadInput, match="share above 0"):
        TfIdf(0.0)


def test_tf_idf_of_text_without_spaces_goes_by_pairs_of_characters() -> None:
    text, earlier = "今天他在北京吃火锅", "今天他在家里看书"
    weights = TfIdf(0.6).of(Passage(0, text), [(i, i + 1) for i in range(len(text))], [Passage(1, earlier)])
    said = "".join(c for c, weight in zip(text, weights.tolist(), strict=True) if weight)
    assert said == "在北京吃火锅", "what the earlier text says too weighs nothing"


def test_what_an_english_text_quotes_is_a_word_like_any_other() -> None:
    text = "the statutes 大元通制 of the Yuan the"
    assert [word for word, _ in terms.spans(text)] == re.findall(r"\w+", text.lower())
    assert [word for word, _ in terms.spans("हिन्दी में लिखना")] == ["हिन्दी", "में", "लिखना"]


def test_tf_idf_of_a_stream_counts_what_was_read_before_and_nothing_later() -> None:
    lm = toys.lm()
    seen: list[list[str]] = []

    class Spy(TfIdf):
        def of(self, passage: Passage, spans: Spans, before: object = ()) -> Tensor:
            seen.append([earlier.text for earlier in before])  # type: ignore[attr-defined]
            return super().of(passage, spans, before)  # type: ignore[arg-type]

    method = Finetune(token_weights=Spy())
    state = method.init(lm)
    for texts in (["the cat", "a dog"], ["one fish"]):
        (state,) = method.adapt([state], lm, [Evidence.of(*texts)], Context())
    assert seen == [[], ["the cat"], ["the cat", "a dog"]]
    changed = parse(TokenWeights, "tfidf(keep=0.1)", "token_weights")
    assert changed == TfIdf(0.1) == apply(method, "token_weights=tfidf(keep=0.1)").token_weights
    assert apply(method, "token_weights=salientspans").token_weights == SalientSpans()


def naive(weights: list[float], own: Spans, spans: Spans) -> list[float]:
    """Character by character."""

    def character(c: int) -> float:
        over = [w for w, (start, end) in zip(weights, own, strict=True) if start <= c < end]
        return sum(over) / len(over) if over else 0.0

    return [
        sum(character(c) for c in range(start, end)) / (end - start) if end > start else 0.0
        for start, end in spans
    ]


def test_weights_move_between_tokenizers_by_characters() -> None:
    random = Random(0)
    for _ in range(20):
        length = random.randint(1, 20)

        def cut(length: int = length) -> list[tuple[int, int]]:
            marks = sorted({0, length, *random.sample(range(length), random.randint(0, length // 2))})
            return list(pairwise(marks))

        own, spans = cut(), cut()
        weights = torch.tensor([random.random() for _ in own], dtype=torch.float64)
        moved = aligned(weights, own, spans)
        assert torch.allclose(moved, torch.tensor(naive(weights.tolist(), own, spans)).double(), atol=1e-12)
        assert torch.allclose(aligned(weights, own, own), weights, atol=1e-12), "the same tokens"
        lengths, others = (torch.tensor([b - a for a, b in each]) for each in (own, spans))
        assert torch.allclose((weights * lengths).sum(), (moved * others).sum(), atol=1e-12)
    # Two tokens of one character, as byte-level tokenizers make of rare ones; a gap; nothing at all.
    own = [(0, 1), (0, 1), (2, 4)]
    weights = torch.tensor([1.0, 3.0, 5.0])
    assert aligned(weights, own, [(0, 2), (1, 2), (3, 3), (1, 4)]).tolist() == pytest.approx(
        naive(weights.tolist(), own, [(0, 2), (1, 2), (3, 3), (1, 4)])
    )
    assert aligned(torch.zeros(0), [], [(0, 2)]).tolist() == [0.0]
