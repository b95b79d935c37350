"""GRACE and the LM that decides once for each prompt who answers it."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import toys
from uptake.adaptation.delta import skeleton
from uptake.errors import BadInput
from uptake.lm.base import LM, Segment
from uptake.lm.fact_values import ValueSearch
from uptake.lm.feed_forward import down_projection
from uptake.lm.gated import Asked, Gated
from uptake.lm.generation import Decoding
from uptake.lm.replaced_output import ReplacedOutput, inputs_at
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.grace import Grace
from uptake.text.types import Found, Passage

HOW = ValueSearch(steps=30, kl=0.0, decay=0.0, limit=100.0, contexts=1)
EDITS = [
    Passage(1, "x", "so it is", document="one"),
    Passage(2, "yz", "the other way round", document="two"),
]


def made(method: Grace, lm: Any, *passages: Passage, state: Any = None) -> Any:
    found = Evidence(Found(passages, (0.0,) * len(passages)))
    return method.adapt([state or method.init(lm)], lm, [found], Context())[0]


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_a_near_prompt_is_answered_with_the_value_and_any_other_by_the_base(shape: str) -> None:
    lm = toys.lm(shape)
    method = Grace(depth=1, radius=1e-2, values=HOW)
    state = made(method, lm, *EDITS)
    edited = method.adapted([state], lm)
    for edit in EDITS:
        asked = [Segment(edit.text, edit.prompt)]
        assert edited.score(asked)[0].log_probs.sum() > lm.score(asked)[0].log_probs.sum() + 0.1
    for prompt in ("and it was", "so it is not"):
        asked = [Segment("x and more", prompt)]
        assert torch.equal(edited.score(asked)[0].log_probs, lm.score(asked)[0].log_probs)
        assert edited.generate(prompt, 6) == lm.generate(prompt, 6)


def test_the_answer_is_that_of_a_hook_on_one_whole_pass() -> None:
    lm = toys.lm("gpt2", dtype=torch.float64)
    method = Grace(depth=0, radius=1e-2, values=HOW)
    state = made(method, lm, *EDITS)
    edit, place = EDITS[1], down_projection(lm.module, 0)
    prompt = lm.tokenizer.opened(edit.prompt)
    module = skeleton(lm.module)

    def put(_: object, __: object, output: Any) -> Any:
        output = output.clone()
        output[0, len(prompt) - 1] = state.values["2"]
        return output

    module.get_submodule(place.path).register_forward_hook(put)
    whole = lm.around(module).score([Segment("yzabc", edit.prompt)])[0].log_probs
    edited = method.adapted([state], lm)
    assert torch.allclose(edited.score([Segment("yzabc", edit.prompt)])[0].log_probs, whole, atol=1e-10)
    # The same token by token, with a cache: held after the prompt, and put nowhere else.
    ids = torch.tensor([prompt])
    log_probs, cache = edited.step(ids, edited.start())
    told = [log_probs[0, -1]]
    for token in lm.tokenizer.encode("yzab")[0]:
        log_probs, cache = edited.step(torch.tensor([[token]]), cache)
        told.append(log_probs[0, -1])
    chosen = torch.tensor(lm.tokenizer.encode("yzabc")[0])[:, None]
    assert torch.allclose(torch.stack(told).gather(-1, chosen)[:, 0], whole, atol=1e-10)


def test_rows_of_a_batch_are_answered_apart() -> None:
    lm = toys.lm("llama")
    method = Grace(depth=0, radius=1e-2, values=HOW)
    states = [made(method, lm, EDITS[0]), method.init(lm), made(method, lm, EDITS[1])]
    batch = method.adapted(states, lm)
    prompts = ["so it is", "so it is", "so it is"]
    alone = [method.adapted([state], lm).generate(prompts[0], 5) for state in states]
    assert batch.generate_rows(prompts, Decoding(tokens=5)) == alone
    assert alone[1] == alone[2] == lm.generate("so it is", 5)
    prompts = [lm.tokenizer.opened(edit.prompt) for edit in EDITS]
    inputs = inputs_at(lm, down_projection(lm.module, 0), prompts)
    assert [len(each) for each in inputs] == [len(prompt) for prompt in prompts]
    alone_inputs = inputs_at(lm, down_projection(lm.module, 0), prompts[:1])[0]
    assert torch.allclose(inputs[0], alone_inputs, atol=1e-5)
    picked = ReplacedOutput(lm, down_projection(lm.module, 0), prompts, [None, None]).at([1])
    assert picked.rows == 1


def test_an_edit_taken_back_was_never_made_and_a_later_one_wins() -> None:
    lm = toys.lm("llama")
    method = Grace(depth=1, radius=1e-2, values=HOW)
    other = Passage(3, "q", "so it is")
    whole = made(method, lm, EDITS[0], EDITS[1], other)
    assert [entry.edit for entry in whole.codebook(1e-2).entries] == [1, 2, 3]
    asked = [Segment("q", "so it is")]
    left, never = method.forget(whole, lm, [3]), made(method, lm, *EDITS)
    scores = [method.adapted([each], lm).score(asked)[0].log_probs for each in (whole, left, never)]
    assert torch.equal(scores[1], scores[2]) and scores[0].sum() > scores[1].sum()
    assert [entry.radius for entry in left.codebook(1e-2).entries] == [1e-2, 1e-2]
    with pytest.raises(BadInput, match="radius 0"):
        Grace(radius=0)


class Counting(Gated):
    """Sends prompts that end in a known token elsewhere, and counts what it was asked."""

    def __init__(self, inner: LM, other: LM, token: int) -> None:
        super().__init__(inner)
        self.other, self.token, self.asked = other, token, list[tuple[int, ...]]()

    def choose(self, asked: Sequence[Asked]) -> LM:
        self.asked += [one.prompt for one in asked]
        return self.other if asked[0].prompt[-1] == self.token else self.inner


def test_who_answers_is_decided_once_a_prompt_and_held() -> None:
    base, other = toys.lm("llama"), toys.lm("llama", seed=1)
    (mark,) = base.tokenizer.encode("?")[0]
    scoped = Counting(base, other, mark)
    assert scoped.generate("who? ", 8) == base.generate("who? ", 8)
    assert scoped.generate("who?", 8) == other.generate("who?", 8)
    assert len(scoped.asked) == 2  # a prompt each, though many tokens were written
    text = [Segment("a?b?c? " * 30, "who?")]  # several windows, whose contexts end as they like
    assert torch.equal(scoped.score(text)[0].log_probs, other.score(text)[0].log_probs)
    text = [Segment("a?b?c? " * 30, "who")]
    assert torch.equal(scoped.score(text)[0].log_probs, base.score(text)[0].log_probs)
    assert len(scoped.asked) == 4
    # A whole text without a cache has no prompt.
    ids = torch.tensor([[0, *base.tokenizer.encode("who?")[0]]])
    log_probs, _ = scoped.step(ids)
    assert torch.equal(log_probs, base.step(ids)[0])
