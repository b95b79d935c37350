"""A frozen reader: its table on the disk, and the mixture of what it says after several passages."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests import toys
from uptake.adaptation.delta import skeleton
from uptake.errors import BadInput
from uptake.lm.base import Segment
from uptake.lm.beginnings import Beginnings
from uptake.lm.causal import Causal
from uptake.retrievers.attention import AttentionTable, attention
from uptake.retrievers.reader import Prompt, Reader
from uptake.retrievers.table import Entry, ReaderTable
from uptake.tasks.asking import generate

PROMPT = Prompt((("It is red.", "Colour?", "red"),), characters=40)
ENTRIES = [Entry(f"Who {n}?", f"passage {m} of some words", f"name {n}") for n in range(3) for m in range(4)]


@pytest.fixture(scope="module")
def lm():
    return toys.lm(window=256, dtype=torch.float64)


def test_a_prompt_is_what_it_says():
    assert PROMPT.of("Who?", "x" * 50) == (
        "It is red.\nQuestion: Colour?\nAnswer: red\n\n" + "x" * 40 + "\nQuestion: Who?\nAnswer:"
    )
    assert "{question}" in Prompt().of("Who?", "a {question} in a passage")
    with pytest.raises(BadInput, match="template"):
        Prompt(template="no slots")


def test_a_table_is_what_scoring_gives_and_goes_on_where_it_stopped(lm, tmp_path):
    path = tmp_path / "reader.table"
    first = ReaderTable(lm, PROMPT, path)
    assert first.fill(ENTRIES[:5]) == 5
    again = ReaderTable(lm, PROMPT, path)
    assert again.count == 5
    assert again.fill(ENTRIES) == len(ENTRIES) - 5
    for entry in ENTRIES:
        (scores,) = lm.score([Segment(f" {entry.answer}\n", PROMPT.of(entry.question, entry.passage))])
        found = again.tokens(entry.question, [entry.passage], entry.answer)[0]
        np.testing.assert_allclose(found, scores.log_probs.numpy(), atol=1e-6)


def test_a_table_of_another_prompt_is_refused_and_a_changed_line_is_done_again(lm, tmp_path):
    path = tmp_path / "reader.table"
    ReaderTable(lm, PROMPT, path).fill(ENTRIES)
    with pytest.raises(BadInput, match="prompt"):
        ReaderTable(lm, Prompt(), path)
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"-", b"+", 1)
    path.write_bytes(b"\n".join(lines))
    with pytest.warns(UserWarning, match="line 2"):
        left = ReaderTable(lm, PROMPT, path)
    assert left.count == 0
    assert left.fill(ENTRIES) == len(ENTRIES)


def naive(lm, prompts, log_prior, sequence, tokens):
    """Say the likeliest token of the mixture, one pass a prompt and token, in float64."""
    rows = [lm.tokenizer.opened(text) for text in prompts]
    weights, said = log_prior.double().log_softmax(0), []
    last = weights
    for _ in range(tokens):
        after = torch.stack([lm.step(torch.tensor([row]))[0][0, -1] for row in rows])
        chosen = int((after + weights[:, None]).logsumexp(0).argmax())
        if sequence:
            weights = (weights + after[:, chosen]).log_softmax(0)
        if chosen == lm.tokenizer.end or "\n" in lm.tokenizer.decode([*said, chosen]):
            break
        said.append(chosen)
        last = weights
        rows = [[*row, chosen] for row in rows]
    return lm.tokenizer.decode(said).strip(), last.exp()


PASSAGES = [
    ["one word", "two words here and there", "three"],
    ["four"],
    ["five more", "two words here and there"],
]
QUESTIONS = [f"Who {n}?" for n in range(3)]


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("marginal", ["sequence", "token"])
@torch.no_grad()
def test_a_mixture_is_that_of_every_passage_read_by_itself(lm, marginal, shares):
    prompts = [[PROMPT.of(q, text) for text in some] for q, some in zip(QUESTIONS, PASSAGES, strict=True)]
    priors = [torch.linspace(0, 1, len(some), dtype=torch.float64) for some in PASSAGES]
    reader = Reader(lm, PROMPT, shares=shares)
    together = reader.say(QUESTIONS, PASSAGES, priors, marginal, tokens=6, rows=64)
    alone = reader.say(QUESTIONS, PASSAGES, priors, marginal, tokens=6, rows=1)
    for some, prior, one, other in zip(prompts, priors, together, alone, strict=True):
        text, weights = naive(lm, some, prior, marginal == "sequence", 6)
        assert one.text == other.text == text
        np.testing.assert_allclose(one.weights, weights.numpy(), atol=1e-9)
        np.testing.assert_allclose(other.weights, weights.numpy(), atol=1e-9)


def test_one_passage_is_the_passage_in_context(lm):
    questions, passages = ["Who?", "What is it?"], ["somebody", "something longer than that"]
    prompts = [PROMPT.of(*one) for one in zip(questions, passages, strict=True)]
    reader = Reader(lm, PROMPT)
    mixed = reader.say(questions, [[one] for one in passages], [torch.zeros(1)] * 2, tokens=6)
    assert [one.text for one in mixed] == generate(lm, prompts, 6)
    with pytest.raises(BadInput, match="no passage"):
        reader.say(["Who?"], [[]], [torch.zeros(0)])


def test_an_answer_that_must_not_be_empty_is_the_likeliest_that_says_something(lm):
    class Silent(Causal):
        """Prefers an end of line, then a blank, to everything."""

        def read_on_at(self, ids, cache, last, **more):
            log_probs = super().read_on_at(ids, cache, last, **more)
            for rank, text in enumerate((" ", "\n"), 1):
                log_probs[..., self.tokenizer.encode(text)[0][0]] = 100.0 * rank
            return log_probs

    silent = Silent(lm.module, lm.tokenizer)
    reader, asked = Reader(silent, PROMPT), (["Who?"], [["somebody"]], [torch.zeros(1)])
    reader._beginnings = Beginnings(silent)
    assert reader.say(*asked, tokens=6)[0].text == ""
    text = reader.say(*asked, tokens=6, empty=False)[0].text
    with torch.no_grad():
        after = lm.step(torch.tensor([lm.tokenizer.opened(PROMPT.of("Who?", "somebody"))]))[0][0, -1]
    said = [t for t in after.argsort(descending=True).tolist() if lm.tokenizer.decode([t]).strip()]
    assert text == lm.tokenizer.decode([next(t for t in said if t != lm.tokenizer.end)]).strip()


@pytest.mark.parametrize("batch_tokens", [None, 100])
def test_answers_are_as_likely_where_prompts_share_what_is_read(lm, batch_tokens):
    asked = [
        (q, text) for text in ("a", "b " * 30, "c " * 10) for q in ("Who?", "What is " + "it " * 40, "x")
    ]
    asked.append(("long " * 60, "b " * 30))  # fits no window
    answers = [f"name {'x' * n}" for n in range(len(asked))]
    found = Reader(lm, PROMPT).log_probs(*zip(*asked, strict=True), answers, batch_tokens)
    for one, (question, passage), answer in zip(found, asked, answers, strict=True):
        (scores,) = lm.score([Segment(f" {answer}\n", PROMPT.of(question, passage))])
        np.testing.assert_allclose(one.numpy(), scores.log_probs.numpy(), atol=1e-9)


def test_a_table_line_is_json_behind_its_sum(lm, tmp_path):
    path = tmp_path / "reader.table"
    ReaderTable(lm, PROMPT, path).fill(ENTRIES[:1])
    (made,) = [json.loads(line.partition(b" ")[2]) for line in path.read_bytes().splitlines()[1:]]
    one = ENTRIES[0]
    expected = Reader(lm, PROMPT).log_probs([one.question], [one.passage], [one.answer])
    np.testing.assert_allclose(made[ENTRIES[0].key], expected[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_attention_to_passages_in_a_row_is_that_of_one_plain_pass(shape):
    model = toys.lm(shape, window=256, dtype=torch.float64)
    passages, prompt = ["the cat sat", "a red house of ours", "seven"], replace(PROMPT, characters=8)
    found = attention(model, prompt, "Who?", passages, "seven")
    text, spans = prompt.in_a_row("Who?", passages)
    assert [text[start:end] for start, end in spans] == ["the cat", "a red ho", "seven"]
    assert text.startswith(prompt.shown) and text.endswith("\n\nseven\nQuestion: Who?\nAnswer:")
    ids, characters = model.tokenizer.encode(text)
    answer = model.tokenizer.encode(" seven\n")[0]
    whole = torch.tensor([[model.tokenizer.opening, *ids, *answer[:-1]]])
    plain = skeleton(model.module)
    plain.set_attn_implementation("eager")
    out = plain(input_ids=whole, output_attentions=True, use_cache=True)
    expected = np.zeros(3)
    for weights, layer in zip(out.attentions, out.past_key_values.layers, strict=True):
        heads, groups = weights.shape[1], weights.shape[1] // layer.values.shape[1]
        for head in range(heads):
            norms = layer.values[0, head // groups].norm(dim=-1)
            for query in range(len(ids), len(ids) + len(answer)):
                for place, (start, _) in enumerate(characters):
                    for number, (first, last) in enumerate(spans):
                        if first <= start < last:
                            share = weights[0, head, query, place + 1] * norms[place + 1]
                            expected[number] += float(share)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-6)  # their softmax is in float32
    assert model.module.config._attn_implementation != "eager", "the model itself stays as it was"


def test_a_table_of_attention_goes_on_and_what_cannot_be_is_said_in_a_line(lm, tmp_path):
    asked = [(f"Who {n}?", [f"passage {m} of words" for m in range(3)], f"name {n}") for n in range(3)]
    path = tmp_path / "attention.table"
    assert AttentionTable(lm, PROMPT, path).fill(asked[:2]) == 2
    again = AttentionTable(lm, PROMPT, path)
    assert again.fill(asked) == 1
    for one in asked:
        np.testing.assert_allclose(again.of(*one), attention(lm, PROMPT, *one), rtol=1e-6)
    with pytest.raises(BadInput, match=r"the window holds 256: give fewer or shorter passages"):
        attention(lm, PROMPT, "Who?", ["words of many letters"] * 9, "name")
    with pytest.raises(BadInput, match="is a causal model's, and Seq2Seq is none: use pdist"):
        attention(toys.seq2seq(), PROMPT, "Who?", ["words"], "name")


def test_an_encoder_decoder_is_a_reader_too(tmp_path):
    model = toys.seq2seq(window=256, dtype=torch.float64)
    table = ReaderTable(model, PROMPT, tmp_path / "reader.table")
    table.fill(ENTRIES[:4])
    for entry in ENTRIES[:4]:
        (scores,) = model.score([Segment(f" {entry.answer}\n", PROMPT.of(entry.question, entry.passage))])
        found = table.tokens(entry.question, [entry.passage], entry.answer)[0]
        np.testing.assert_allclose(found, scores.log_probs.numpy(), atol=1e-6)
