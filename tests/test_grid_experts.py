"""Mixtures in the grid: each expert of a row has a seat of its own, and how they are weighed is the row's."""

import random

import pytest
import torch

import toys
from test_grid import TEXTS, assert_unchanged_among, own_of, told
from uptake.adaptation.delta import Delta
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.experts import Experts, FixedShare
from uptake.lm.grid import Grid
from uptake.lm.grid_rows import Own, own
from uptake.lm.wrappers import Prefixed

SHARING = FixedShare((0.5, 0.2, 0.2, 0.1), (0.0, 0.1, 0.5))


def experts(lm: Causal) -> list[LM]:
    """The base, two changes of one kind, and a text that stands before."""
    one, two = toys.low_rank(lm, (3, 3))[:2]
    return [lm, lm.overlay(one), lm.overlay(two), Prefixed(lm, [[0, 5, 6]])]


def whole(lm: LM) -> Own:
    found = own(lm)
    assert found is not None
    return found


def naive(parts: torch.Tensor, ids: list[int], sharing: FixedShare, most: int) -> torch.Tensor:
    """Return what follows each of the last places, from each expert's probabilities, in float64.

    `parts` are [experts, places, vocabulary].
    """
    count, shares = len(sharing.prior), sharing.shares
    weights = [[prior / len(shares) for prior in sharing.prior] for _ in shares]
    found = []
    for place, token in enumerate([*ids[1:], -1]):
        probabilities = parts[:, place].double().exp()
        every = [sum(row[expert] for row in weights) for expert in range(count)]
        found.append(sum(w * p for w, p in zip(every, probabilities, strict=True)))
        if token < 0:
            break
        weights = [[w * float(p[token]) for w, p in zip(row, probabilities, strict=True)] for row in weights]
        sums = sum(map(sum, weights))
        weights = [[w / sums for w in row] for row in weights]
        weights = [
            [(1 - share) * w + share * prior * sum(row) for w, prior in zip(row, sharing.prior, strict=True)]
            for share, row in zip(shares, weights, strict=True)
        ]
    return torch.stack(found[-most:]).log()


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_a_row_of_experts_predicts_what_the_mixture_does(shape: str) -> None:
    lm = toys.lm(shape, window=128)
    answering = Experts(experts(lm), SHARING)
    ids, goes_on = lm.tokenizer.opened(TEXTS[0]), list(range(1, 45))
    text = [*ids, *goes_on]
    with torch.no_grad():
        wanted = answering.step(torch.tensor([text]))[0][0, len(ids) - 1 :]
        parts = torch.stack([each.step(torch.tensor([text]))[0][0] for each in answering.experts])
    row = whole(answering)
    assert row.behind == 3 and Grid(lm).takes(row)
    found = torch.stack(told(Grid(lm), row, ids, goes_on))
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found, naive(parts, text, SHARING, len(found)).float(), atol=1e-3, rtol=1e-3)
    # The weights matter: by the prior alone it would say something else.
    prior = torch.tensor(SHARING.prior).double()[:, None, None]
    flat = (parts.double().exp() * prior).sum(0).log()[len(ids) - 1 :]
    assert (found - flat).abs().max() > 1e-2


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_neighbours_change_no_bit_of_a_row_of_experts_nor_it_of_theirs(shape: str) -> None:
    lm, drawn = toys.lm(shape, window=128), random.Random(0)
    mixture = whole(Experts(experts(lm), SHARING))
    delta = toys.low_rank(lm, (3, 3))[1]
    broken = Own({name: part.times(float("nan")) for name, part in own_of(lm, delta).parts.items()})
    spoilt = Own(experts=(Own(), broken), sharing=FixedShare((0.5, 0.5), (0.1,)))
    rows = [Own(), own_of(lm, delta), broken, mixture, spoilt]
    for mine in [mixture, rows[1]]:
        assert_unchanged_among(lm, mine, rows, drawn)


def test_an_expert_that_cannot_be_read_leaves_no_seat_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = toys.lm(window=128)
    grid, row = Grid(lm), whole(Experts(experts(lm), SHARING))
    read = grid._read

    def fails(each: Own, ids: list[int], every: bool, keyed: bool) -> object:
        if each.prefix:
            raise RuntimeError("no room")
        return read(each, ids, every, keyed)

    monkeypatch.setattr(grid, "_read", fails)
    with pytest.raises(RuntimeError, match="no room"):
        grid.join(row, lm.tokenizer.opened(TEXTS[0]))
    assert grid.seated == 0


def test_which_mixtures_make_up_a_row() -> None:
    lm = toys.lm(window=128)
    (scale,) = toys.scales(lm, 1)
    weights = {name: torch.ones_like(each) for name, each in lm.module.named_parameters()}
    two = FixedShare((0.5, 0.5))
    inner = Experts([lm, lm.overlay(scale)], two)
    assert whole(inner) == Own(experts=(Own(), own_of(lm, scale)), sharing=two)
    assert own(Experts([lm, inner], two)) is None, "experts of experts"
    assert own(Prefixed(inner, [[0]])) is None
    assert own(Experts([lm, lm.overlay(Delta.dense(lm.fingerprint, weights))], two)) is None
