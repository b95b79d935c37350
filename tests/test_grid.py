"""Rows that join and leave one pass: each goes on as by itself, bit for bit, whoever sits beside it."""

import random
from collections.abc import Sequence

import pytest
import torch

import toys
from uptake.adaptation.delta import Delta
from uptake.errors import Mismatch
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.generation import Continuation, Decoding
from uptake.lm.grid import Grid
from uptake.lm.grid_rows import Own, Seat, Unmerged, own
from uptake.lm.side_by_side import side_by_side
from uptake.lm.wrappers import Prefixed
from uptake.methods.contract.naming import method_specs

TEXTS = ["the cat sat on the mat and", "a dog", "", "one fish, two fish, red fish", "x"]


def told(grid: Grid, row: Own, ids: Sequence[int], goes_on: Sequence[int]) -> list[torch.Tensor]:
    """What a row predicts by itself in this grid, step by step."""
    seat = grid.join(row, ids)
    found = [seat.log_probs]
    for token in goes_on:
        grid.step({seat: token})
        found.append(seat.log_probs)
    grid.leave(seat)
    return found


def assert_unchanged_among(lm: Causal, mine: Own, rows: Sequence[Own], drawn: random.Random) -> None:
    """No bit of a row changes while others, drawn from `rows`, come, go on and leave; nothing is left."""
    ids, goes_on = lm.tokenizer.opened(TEXTS[0]), list(range(1, 45))
    alone = told(Grid(lm), mine, ids, goes_on)
    grid, beside = Grid(lm), []
    for _ in range(7):
        beside.append(grid.join(drawn.choice(rows), lm.tokenizer.opened(drawn.choice(TEXTS))))
    seat = grid.join(mine, ids)
    assert torch.equal(seat.log_probs, alone[0])
    for token, wanted in zip(goes_on, alone[1:], strict=True):
        if drawn.random() < 0.5 and len(beside) < 40:
            beside.append(grid.join(drawn.choice(rows), lm.tokenizer.opened(drawn.choice(TEXTS))))
        if beside and drawn.random() < 0.4:
            grid.leave(beside.pop(drawn.randrange(len(beside))))
        some = [one for one in beside if drawn.random() < 0.7 and one.length < 120]
        grid.step({**{one: drawn.randrange(257) for one in some}, seat: token})
        assert torch.equal(seat.log_probs, wanted)
    for one in [*beside, seat]:
        grid.leave(one)
    assert grid.seated == 0 and grid.bytes == 0


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_a_row_predicts_what_its_own_model_does(shape: str) -> None:
    lm = toys.lm(shape, window=128)
    for delta in [Delta(lm.fingerprint), *toys.low_rank(lm)[:2], toys.scales(lm)[0]]:
        plain = lm.overlay(delta)
        row = own_of(lm, delta)
        answers: list[tuple[LM, Own]] = [
            (plain, row),
            (Prefixed(plain, [[0, 5, 6]]), Own(row.parts, (0, 5, 6))),
        ]
        # Past 64 places, so that the row changes its table.
        ids, goes_on = lm.tokenizer.opened(TEXTS[0]), list(range(1, 45))
        for answering, own_row in answers:
            with torch.no_grad():
                wanted = answering.step(torch.tensor([[*ids, *goes_on]]))[0][0, len(ids) - 1 :]
            found = torch.stack(told(Grid(lm), own_row, ids, goes_on))
            torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_a_row_goes_on_from_what_was_read_before_as_from_what_it_reads(shape: str) -> None:
    lm = toys.lm(shape, window=128)
    grid, ids = Grid(lm), lm.tokenizer.opened(TEXTS[0])
    parts = own_of(lm, toys.low_rank(lm)[0]).parts
    for row in (Own(), Own(parts), Own(parts, (0, 5, 6))):
        begun = grid.begin(row, ids)
        grid.begin(own_of(lm, toys.low_rank(lm)[1]), ids)  # another was there meanwhile
        for read in (begun, grid.begin(row, ids[:-1])):  # the second is not what the row reads
            seat = grid.join(row, ids, read)
            found = [seat.log_probs]
            for token in (1, 2):
                grid.step({seat: token})
                found.append(seat.log_probs)
            grid.leave(seat)
            assert all(map(torch.equal, found, told(Grid(lm), row, ids, (1, 2))))


def test_what_is_a_rows_own_is_known_without_its_merged_weights() -> None:
    lm = toys.lm(window=128)
    one, other = toys.low_rank(lm)[:2]
    merged, apart = own(lm.overlay(one).overlay(other)), own(Unmerged(lm).overlay(one).overlay(other))
    assert merged is not None and apart is not None and merged.parts.keys() == apart.parts.keys()
    for name, part in merged.parts.items():
        for tensor, same in zip(part.tensors().values(), apart.parts[name].tensors().values(), strict=True):
            assert torch.equal(tensor, same)
    with pytest.raises(NotImplementedError, match="not merged"):
        Unmerged(lm).step(torch.tensor([[1]]))
    with pytest.raises(Mismatch):
        Unmerged(lm).overlay(Delta("another"))


def test_a_stack_that_a_table_left_holds_nobodys_weights_and_serves_the_next() -> None:
    lm = toys.lm(window=128)
    grid, ids = Grid(lm), lm.tokenizer.opened(TEXTS[0])
    rows = [own_of(lm, delta) for delta in toys.low_rank(lm, (3, 3))]
    grid.leave(grid.join(rows[0], ids))
    (spare,) = grid._spare.values()
    assert spare.stack is not None
    assert not [1 for name, layer in spare.stack._layers.items() for _ in layer.tensors(name)]
    assert all(map(torch.equal, told(grid, rows[1], ids, (1, 2)), told(Grid(lm), rows[1], ids, (1, 2))))
    assert [*grid._spare.values()] == [spare]


def test_what_answers_a_row_by_itself_is_kept_for_so_many_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uptake.lm.grid.SPARE", 2)
    lm = toys.lm(window=128)
    grid, ids = Grid(lm), torch.tensor([lm.tokenizer.opened(TEXTS[0])])
    rows = [own_of(lm, delta) for rank in (1, 2, 3, 5) for delta in toys.low_rank(lm, (rank,))]
    assert len({row.kind for row in rows}) == len(rows)
    with torch.no_grad():
        expected = [Grid(lm).alone(row).step(ids)[0] for row in rows]
        for again in range(2):
            for row, one in zip(rows, expected, strict=True):
                held = grid.alone(row)
                assert torch.equal(held.step(ids)[0], one) and len(grid._alone) <= 2, again


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_neighbours_that_come_and_go_change_no_bit(shape: str) -> None:
    lm, drawn = toys.lm(shape, window=128), random.Random(0)
    deltas = [*toys.low_rank(lm, (3, 3)), toys.low_rank(lm, (3,))[0] + toys.scales(lm)[0], *toys.scales(lm)]
    broken = {name: part.times(float("nan")) for name, part in own_of(lm, deltas[1]).parts.items()}
    rows = [Own(), own_of(lm, deltas[0]), Own(own_of(lm, deltas[2]).parts, (0, 9, 9)), Own(broken)]
    rows += [own_of(lm, delta) for delta in deltas[3:]]
    for mine in [*rows[:3], rows[4]]:
        assert_unchanged_among(lm, mine, rows, drawn)


def own_of(lm: Causal, delta: Delta) -> Own:
    found = own(lm.overlay(delta))
    assert found is not None
    return found


def test_a_row_that_waits_a_step_goes_on_as_if_it_had_not() -> None:
    lm = toys.lm()
    ids = lm.tokenizer.opened(TEXTS[0])
    alone = told(Grid(lm), Own(), ids, [1, 2])
    grid = Grid(lm)
    waits, other = grid.join(Own(), ids), grid.join(Own(), ids[:4])
    for token in (5, 6, 7):
        grid.step({other: token})
    grid.step({waits: 1})
    grid.step({waits: 2, other: 8})
    assert torch.equal(waits.log_probs, alone[2])


def test_what_makes_up_a_row_is_found_in_the_models_that_methods_make() -> None:
    lm = toys.lm()
    one, two = toys.low_rank(lm)[:2]
    rows = side_by_side(lm, [one, two])
    assert own(lm) == Own() and own(rows, 1) == own_of(lm, two)
    assert own(Prefixed(rows, [[0], [0, 7]]), 1) == Own(own_of(lm, two).parts, (0, 7))
    assert own(side_by_side(lm, [one])) == own_of(lm, one)
    # All weights, a mixture, a prefix before a prefix: no pass over the base has these.
    (scale,) = toys.scales(lm, 1)
    assert own(lm.overlay(scale)) == Own({name.path: part for name, part in scale.parts.items()})
    assert own(lm.overlay(scale + scale.owned_by("another"))) is None, "two scales of one layer multiply"
    dense = Delta.dense(
        lm.fingerprint, {name: torch.ones_like(t) for name, t in lm.module.named_parameters()}
    )
    assert own(lm.overlay(dense)) is None
    assert own(Prefixed(Prefixed(lm, [[0]]), [[0]])) is None
    assert own(lm.around(lm.module)) is None


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_the_check_of_a_machine_passes_here_and_sees_a_neighbour(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = toys.lm(shape)
    assert Grid(lm, (4, 8)).check() == ""
    step = Grid.step

    def leaks(self: Grid, tokens: dict[Seat, int]) -> None:
        step(self, tokens)
        for seat in tokens:
            seat.log_probs = seat.log_probs + 1e-7 * len(tokens) * seat.log_probs

    monkeypatch.setattr(Grid, "step", leaks)
    assert "a neighbour changes a row among 8" in Grid(lm, (4, 8)).check()


def test_the_nucleus_is_the_likeliest_tokens_that_suffice() -> None:
    lm = toys.lm()
    log_probs = torch.full((257,), -50.0)
    log_probs[[3, 5, 7, 9]] = torch.tensor([0.1, 0.4, 0.3, 0.2]).log()

    def drawn(top_p: float) -> set[int | None]:
        tokens = set()
        for seed in range(200):
            decoding = Decoding(tokens=1, temperature=1.0, seed=seed, top_p=top_p)
            tokens.add(Continuation(lm.tokenizer, [0], 8, decoding).choose(log_probs).id)
        return tokens

    assert drawn(0.3) == {5} and drawn(0.69) == {5, 7} and drawn(0.85) == {5, 7, 9}
    assert drawn(1.0) == {3, 5, 7, 9}


def test_the_settings_of_a_low_rank_method_make_rows_of_a_grid() -> None:
    lm = toys.lm()
    (spec,) = method_specs(["online"], ["trainable=lora(rank=2)"]).values()
    assert own(spec.method.adapted([spec.method.init(lm)], lm)) == Own()
