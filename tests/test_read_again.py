"""Texts that every method is compared on: the base reads them once, and predicts bit for bit as before."""

from typing import Any

import pytest
import torch

import toys
from uptake.lm import read_again
from uptake.lm.causal import Causal
from uptake.lm.examples import Example, encode, rolling_windows
from uptake.lm.read_again import predictions_again
from uptake.tasks.asking import divergence
from uptake.tasks.edit_asking import drift

TEXT = "a text that is quite a bit longer than the window of the model, which has 64 places for tokens"


def windows(lm: Any) -> list[Example]:
    return [*rolling_windows(encode(lm.tokenizer, "", TEXT), lm.max_input_tokens(0))]


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_a_text_that_is_kept_is_predicted_as_by_the_model(shape: str) -> None:
    lm = toys.lm(shape)
    assert len(windows(lm)) == 2
    for window in windows(lm):
        with torch.no_grad():
            (plain,) = lm.predictions([window])
        for _ in range(2):
            assert torch.equal(predictions_again(lm, window), plain)
    assert set(drift(lm, lm, TEXT).kl) == {0.0} and divergence(lm, lm, TEXT)[0] == 0.0


def test_the_base_reads_a_text_once_whatever_is_compared_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    base, others = toys.lm(), [toys.lm(seed=seed) for seed in (1, 2)]
    found = [drift(base, other, TEXT) for other in others]
    monkeypatch.setattr(Causal, "_run", lambda *_: pytest.fail("the base was read again"))
    before = [predictions_again(base, window) for window in windows(base)]
    monkeypatch.undo()
    assert found == [drift(toys.lm(), other, TEXT) for other in others]
    assert sum(map(len, before)) == len(found[0].kl)


def test_what_is_too_much_to_keep_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_again, "MOST", 0)
    base, other = toys.lm(), toys.lm(seed=1)
    assert drift(base, other, TEXT) == drift(base, other, TEXT)
    kept = base.derived("hidden states of texts read again", lambda: pytest.fail("nothing was looked for"))
    assert not len(kept) and kept.bytes == 0
