"""Rows in few passes: what each by itself would give, in bits that no number of neighbours changes."""

import pytest
import torch

import toys
from uptake.adaptation.delta import Delta, LowRank
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.few_passes import Filled, Grouped, in_few_passes
from uptake.lm.generation import Decoding
from uptake.lm.rows import left_padded
from uptake.lm.side_by_side import SideBySide, side_by_side
from uptake.lm.wrappers import Routed

TEXTS = ["so the cat", "so a", "so one fish, two", "a b", "and the dog is", "t"]


@pytest.fixture(name="lm", scope="module")
def lm_fixture() -> Causal:
    return toys.lm("llama", window=96)


def deltas(lm: Causal, count: int) -> list[Delta]:
    draws = torch.Generator().manual_seed(3)
    name = next(name for name, _ in lm.module.named_parameters() if name.endswith("down_proj.weight"))
    out, into = lm.module.get_parameter(name).shape

    def one() -> LowRank:
        return LowRank(
            torch.randn(out, 2, generator=draws), 0.3 * torch.randn(2, into, generator=draws), 1.0, False
        )

    return [Delta.of(lm.fingerprint, {name: one()}, "t") for _ in range(count)]


def told(lm: LM, texts: list[str]) -> list[torch.Tensor]:
    """Return what follows each text and one more token, read into a cache."""
    rows = [lm.tokenizer.opened(text) for text in texts]
    with torch.no_grad():
        ids, lengths = left_padded(rows, lm.device)
        first, cache = lm.step(ids, lm.start(), lengths or [ids.shape[1]])
        second, _ = lm.step(torch.full((len(rows), 1), 60), cache)
    return [torch.cat([a[-1:], b]) for a, b in zip(first, second, strict=True)]


@pytest.mark.parametrize("kind", ["one model", "side by side", "two models", "one state"])
def test_many_rows_are_each_as_by_itself_and_no_neighbour_changes_a_bit(lm: Causal, kind: str) -> None:
    if kind == "one model":
        model: LM = lm.overlay(deltas(lm, 1)[0])
        rows, expected = [0, 0, 0, 0, 0, 0], Filled
    elif kind == "side by side":
        model, rows, expected = side_by_side(lm, deltas(lm, 3)), [0, 1, 2, 2, 1, 0], SideBySide
    elif kind == "two models":
        model = Routed([lm.overlay(each) for each in deltas(lm, 2)])
        rows, expected = [0, 1, 1, 0, 1, 0], Grouped
    else:
        model, rows, expected = side_by_side(lm, deltas(lm, 2)), [1] * 6, SideBySide
    few = in_few_passes(model, rows, 6)
    assert isinstance(few, expected) and few.rows == 6
    whole = told(few, TEXTS)
    for row, text in enumerate(TEXTS):
        alone = told(model.at([rows[row]]), [text])[0]
        assert torch.allclose(whole[row], alone, atol=1e-4)
        assert few.generate_rows(TEXTS, Decoding(tokens=8))[row] == model.at([rows[row]]).generate(text, 8)
    fewer = in_few_passes(model, rows[1:4], 6)  # the same grid: the widest text is there
    for row, found in enumerate(told(fewer, TEXTS[1:4]), 1):
        assert torch.equal(found, whole[row]), "fewer neighbours changed a bit"


def test_a_row_alone_in_its_batch_is_what_it_is_by_itself(lm: Causal) -> None:
    model = side_by_side(lm, deltas(lm, 3))
    assert in_few_passes(model, [1], 1) is model.at([1])


def test_one_answers_all_of_its_rows_in_one_pass(lm: Causal) -> None:
    passes = list[int]()

    class Counted(Causal):
        read_on = LM.read_on

        def step(self, ids, cache=None, lengths=None):  # type: ignore[no-untyped-def]
            passes.append(len(ids))
            return super().step(ids, cache, lengths)

    one, two = (Counted(lm.module, lm.tokenizer, name) for name in "ab")
    told(in_few_passes(Routed([one, two]), [0, 1, 0, 0, 1, 0], 6), TEXTS)
    assert passes == [4, 4, 4, 4], "of two models each has two passes, of no fewer rows than the grid"
