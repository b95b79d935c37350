"""Prompts that begin alike: what is shared is read once, and every prompt is answered as if read whole."""

import pytest
import torch

from tests import toys
from uptake.errors import BadInput
from uptake.lm.beginnings import Beginnings, Rows, beginnings

ROOT = (0, 5, 6, 7, 8)
FIRST, SECOND = (*ROOT, 9, 10, 11, 12, 13, 14), (*ROOT, 20, 21)
TEXTS = [(*FIRST, 30, 31), (*FIRST, 40, 41, 42, 43), (*SECOND, 50), (*SECOND, 60, 61, 62), (3, 4)]
SHARED = [len(FIRST), len(FIRST), len(SECOND), len(SECOND), 0]


@pytest.mark.parametrize("shape", toys.SHAPES)
@pytest.mark.parametrize("root", [ROOT, (), (0, 99)])
@torch.no_grad()
def test_rows_are_as_if_each_text_was_read_whole(shape, root):
    lm = toys.lm(shape, dtype=torch.float64)
    read = Beginnings(lm, root)
    for _ in range(2):  # the second time nothing of the beginnings is read
        rows = read.open(TEXTS, SHARED, free=3, last=2)
        texts = [list(text) for text in TEXTS]
        for row, text in zip(rows.log_probs, texts, strict=True):
            whole = lm.step(torch.tensor([text]))[0][0, -2:]
            torch.testing.assert_close(row, whole, atol=1e-10, rtol=0)
        for token, kept in ((70, [4, 0, 2, 3]), (71, [2, 0, 1]), (72, [1])):
            rows.keep(torch.tensor(kept))
            texts = [texts[number] for number in kept]
            after = rows.step(torch.arange(token, token + len(kept)))
            for number, text in enumerate(texts):
                text.append(token + number)
                whole = lm.step(torch.tensor([text]))[0][0, -1]
                torch.testing.assert_close(after[number], whole, atol=1e-10, rtol=0)


@torch.no_grad()
def test_what_was_read_lately_is_kept_within_its_bytes(monkeypatch):
    lm = toys.lm(dtype=torch.float64)
    read, passes = Beginnings(lm, ROOT), []
    monkeypatch.setattr(Beginnings, "_pass", lambda self, ids, before, own=Beginnings._pass: (
        passes.append(len(ids)) or own(self, ids, before)
    ))  # fmt: skip
    read.open(TEXTS[:4], SHARED[:4])
    assert passes == [len(ROOT), len(FIRST) - len(ROOT), len(SECOND) - len(ROOT)]
    read.open(TEXTS[:4], SHARED[:4])
    assert len(passes) == 3
    read.most = 1
    read.open(TEXTS[2:4], SHARED[2:4])
    assert len(read._kept) == 1
    assert read._bytes == sum(each.nbytes for each in read._kept.values())
    read.open(TEXTS[:1], SHARED[:1])
    assert len(passes) == 4


def test_a_text_that_does_not_fit_is_refused_and_no_row_changes_another():
    lm = toys.lm(window=16)
    read = beginnings(lm, ROOT)
    assert read is not None
    with pytest.raises(BadInput, match="window of 16"):
        read.open([[0] * 15], [0], free=2)


def test_models_that_cannot_go_on_from_a_part_are_told():
    assert beginnings(toys.lm()) is not None
    assert beginnings(toys.seq2seq()) is None
    assert beginnings(toys.mixed([toys.lm(), toys.lm(seed=1)], [0.5, 0.5])) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_16_bit_numbers_may_round_rare_tokens_and_no_more(dtype, monkeypatch):
    lm = toys.lm(dtype=dtype)
    step = Rows.step

    def rounded(rows, tokens):
        found = step(rows, tokens).clone()
        return found.scatter_(1, found.topk(20, largest=False).indices, -20.0)

    monkeypatch.setattr(Rows, "step", rounded)
    assert (beginnings(lm) is None) == (dtype == torch.float32)
    monkeypatch.setattr(Rows, "step", lambda rows, tokens: step(rows, tokens + 3))  # reads something else
    assert beginnings(lm) is None
