"""The algebra of editors, each closed form against a naive version in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uptake.adaptation.editing.closed_form import Factored, memit, memit_dense, projected, rome
from uptake.adaptation.editing.codebook import Codebook
from uptake.adaptation.editing.covariance import KeyCovariance
from uptake.adaptation.editing.moments import Moments
from uptake.adaptation.editing.null_space import null_space
from uptake.adaptation.editing.shards import random_mask, ties_merge
from uptake.adaptation.editing.ultra import Turn
from uptake.errors import BadInput, Mismatch

CLOSE = 1e-10
SIZES = st.tuples(st.integers(1, 6), st.integers(2, 9), st.integers(1, 5), st.integers(0, 1 << 16))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(sizes: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys, residuals and a covariance of ordinary inputs."""
    edits, into, out, seed = sizes
    ordinary = drawn(seed + 2, 4 * into, into)
    return (
        drawn(seed, edits, into),
        drawn(seed + 1, edits, out),
        KeyCovariance.empty(into).seen(ordinary).matrix(1e-3),
    )


def gap(left: Tensor, right: Tensor) -> float:
    return float((left - right).abs().max() / right.abs().max().clamp(min=1))


@given(SIZES, st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_covariance_in_parts_is_that_of_all(sizes: tuple[int, int, int, int], cut: int) -> None:
    rows = drawn(sizes[3], 20, sizes[1])
    first = KeyCovariance.empty(sizes[1]).seen(rows[:cut])
    second = KeyCovariance.empty(sizes[1]).seen(rows[cut:].reshape(1, -1, sizes[1]))
    whole = sum(torch.outer(row, row) for row in rows) / 20
    assert gap(first.merged(second).matrix(), whole) <= CLOSE
    assert gap(second.merged(first).matrix(), whole) <= CLOSE


def test_covariance_refuses_other_widths_and_nothing() -> None:
    with pytest.raises(BadInput, match="give some text"):
        KeyCovariance.empty(3).matrix()
    with pytest.raises(Mismatch, match="width 4"):
        KeyCovariance.empty(3).seen(torch.zeros(2, 4))
    with pytest.raises(Mismatch, match="merged"):
        KeyCovariance.empty(3).merged(KeyCovariance.empty(4))


@given(SIZES)
@settings(max_examples=30, deadline=None)
def test_rome_writes_its_key_and_moves_ordinary_inputs_least(sizes: tuple[int, int, int, int]) -> None:
    keys, residuals, covariance = problem(sizes)
    change = rome(keys[0], residuals[0], covariance).difference()
    assert gap(change @ keys[0], residuals[0]) <= CLOSE
    u = torch.linalg.inv(covariance) @ keys[0]
    assert gap(change, torch.outer(residuals[0], u) / (u @ keys[0])) <= 1e-8
    # Any other change that writes the key costs more: tr(Δ C Δᵀ) grows in every direction that keeps it.
    other = drawn(sizes[3] + 9, *change.shape)
    other -= torch.outer(other @ keys[0], keys[0]) / (keys[0] @ keys[0])

    def cost(matrix: Tensor) -> float:
        return float(torch.trace(matrix @ covariance @ matrix.T))

    assert cost(change) <= cost(change + 1e-2 * other) + 1e-12
    with pytest.raises(BadInput, match="key of an edit is zero"):
        rome(torch.zeros_like(keys[0]), residuals[0], covariance)


@given(SIZES, st.sampled_from([1e-2, 1.0, 50.0]))
@settings(max_examples=40, deadline=None)
def test_memit_is_the_least_squares_solution_by_either_way(
    sizes: tuple[int, int, int, int], strength: float
) -> None:
    keys, residuals, covariance = problem(sizes)
    low = memit(keys, residuals, covariance, strength)
    assert low.up.shape[1] == len(keys)
    change = low.difference()
    assert gap(change, memit_dense(keys, residuals, covariance, strength)) <= CLOSE
    # The normal equation: (W + Δ) K Kᵀ + λ Δ C = V Kᵀ, with V = W K + R.
    weight = drawn(sizes[3] + 5, *change.shape)
    values = keys @ weight.T + residuals
    left = (weight + change) @ keys.T @ keys + strength * change @ covariance
    assert gap(left, values.T @ keys) <= CLOSE


@given(SIZES, st.permutations(range(6)))
@settings(max_examples=30, deadline=None)
def test_memit_knows_no_order(sizes: tuple[int, int, int, int], order: list[int]) -> None:
    keys, residuals, covariance = problem(sizes)
    places = [place for place in order if place < len(keys)]
    moved = memit(keys[places], residuals[places], covariance, 2.0).difference()
    assert gap(moved, memit(keys, residuals, covariance, 2.0).difference()) <= CLOSE


@given(SIZES)
@settings(max_examples=30, deadline=None)
def test_memit_one_after_another_is_the_batch(sizes: tuple[int, int, int, int]) -> None:
    """With C <- C + k kᵀ / λ after each edit, and what its value lacks under the weights so far."""
    keys, residuals, covariance = problem(sizes)
    weight = drawn(sizes[3] + 5, residuals.shape[1], keys.shape[1])
    values, edited, grown, strength = keys @ weight.T + residuals, weight, covariance, 3.0
    for key, value in zip(keys, values, strict=True):
        lacking = (value - edited @ key)[None]
        edited = edited + memit(key[None], lacking, grown, strength).difference()
        grown = grown + torch.outer(key, key) / strength
    assert gap(edited - weight, memit(keys, residuals, covariance, strength).difference()) <= CLOSE


@given(SIZES)
@settings(max_examples=20, deadline=None)
def test_a_factored_covariance_solves_alike(sizes: tuple[int, int, int, int]) -> None:
    keys, residuals, covariance = problem(sizes)
    factored = Factored.of(covariance)
    for found, expected in (
        (memit(keys, residuals, factored, 2.0), memit(keys, residuals, covariance, 2.0)),
        (rome(keys[0], residuals[0], factored), rome(keys[0], residuals[0], covariance)),
    ):
        assert gap(found.difference(), expected.difference()) <= CLOSE
    with pytest.raises(BadInput, match="singular"):
        Factored.of(torch.zeros(2, 2, dtype=torch.float64))


def test_memit_with_hardly_any_strength_writes_every_key() -> None:
    keys, residuals, covariance = problem((4, 9, 5, 3))
    change = memit(keys, residuals, covariance, 1e-9).difference()
    assert gap(change @ keys.T, residuals.T) <= 1e-6
    for strength in (0.0, float("nan"), float("inf")):
        with pytest.raises(BadInput, match="positive number"):
            memit(keys, residuals, covariance, strength)
    with pytest.raises(Mismatch, match="4 keys for 3 values"):
        memit(keys, residuals[:3], covariance, 1.0)


@given(SIZES)
@settings(max_examples=30, deadline=None)
def test_a_projected_change_leaves_what_is_outside(sizes: tuple[int, int, int, int]) -> None:
    keys, residuals, _ = problem(sizes)
    into = keys.shape[1]
    basis = torch.linalg.qr(drawn(sizes[3] + 7, into, into))[0][:, : max(1, into // 2)]
    p = basis @ basis.T
    assert gap(p @ p, p) <= CLOSE
    change = projected(keys, residuals, basis, 10.0).difference()
    assert gap(change @ p, change) <= CLOSE
    outside = (torch.eye(into, dtype=torch.float64) - p) @ drawn(sizes[3] + 8, into)
    assert float((change @ outside).abs().max()) <= CLOSE
    # The published form: Δᵀ = (P K Kᵀ + s I)⁻¹ P K Rᵀ.
    published = torch.linalg.solve(
        p @ keys.T @ keys + 10.0 * torch.eye(into, dtype=torch.float64), p @ keys.T @ residuals
    )
    assert gap(change, published.T) <= CLOSE


@given(SIZES)
@settings(max_examples=30, deadline=None)
def test_projected_edits_in_turns_with_earlier_keys_protected_are_the_batch(
    sizes: tuple[int, int, int, int],
) -> None:
    keys, residuals, _ = problem(sizes)
    into = keys.shape[1]
    basis = torch.linalg.qr(drawn(sizes[3] + 7, into, into))[0][:, : max(1, into // 2)]
    p, strength = basis @ basis.T, 10.0
    weight = drawn(sizes[3] + 5, residuals.shape[1], into)
    values, edited = keys @ weight.T + residuals, weight
    before = torch.zeros(into, into, dtype=torch.float64)  # K_p K_pᵀ
    for key, value in zip(keys, values, strict=True):
        here = torch.outer(key, key)
        inner = p @ (here + before) + strength * torch.eye(into, dtype=torch.float64)
        edited = edited + torch.linalg.solve(inner, torch.outer(p @ key, value - edited @ key)).T
        before = before + here
    assert gap(edited - weight, projected(keys, residuals, basis, strength).difference()) <= CLOSE


def test_the_null_space_is_chosen_by_energy_and_told() -> None:
    axes = torch.linalg.qr(drawn(1, 6, 6))[0]
    sizes = torch.tensor([1e-6, 1e-5, 1e-4, 1.0, 2.0, 3.0], dtype=torch.float64)
    covariance = axes @ torch.diag(sizes) @ axes.T
    found = null_space(covariance, 1e-3)
    assert found.basis.shape == (6, 3) and found.energy == pytest.approx(1.11e-4 / 6, rel=1e-3)
    assert gap(found.projection, axes[:, :3] @ axes[:, :3].T) <= 1e-8
    assert str(found).startswith("3 of 6 directions")
    with pytest.raises(BadInput, match="use more"):
        null_space(covariance, 1e-9)
    with pytest.raises(BadInput, match="share between 0 and 1"):
        null_space(covariance, 1.0)
    assert null_space(covariance, 1 - 1e-16).basis.shape == (6, 5)


@given(SIZES, st.lists(st.integers(0, 12), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_moments_merged_are_two_pass(sizes: tuple[int, int, int, int], cuts: list[int]) -> None:
    rows = 5 + 3 * drawn(sizes[3], 12, sizes[1])
    found, start = Moments.empty(sizes[1]), 0
    for cut in (*sorted(cuts), 12):
        found, start = found.merged(Moments.of(rows[start:cut])), cut
    assert found.count == 12
    assert gap(found.mean, rows.mean(0)) <= CLOSE
    assert gap(found.squares / 11, rows.var(0)) <= CLOSE
    assert gap(found.standardised(rows, 0.0), (rows - rows.mean(0)) / rows.std(0)) <= CLOSE


def test_moments_of_one_row_are_numbers() -> None:
    row = drawn(0, 1, 4)
    assert torch.equal(Moments.of(row).standardised(row), row)
    assert Moments.empty(4).merged(Moments.empty(4)).count == 0
    assert torch.equal(Moments.of(row).merged(Moments.of(row)).standardised(row), torch.zeros(1, 4))


@given(SIZES)
@settings(max_examples=30, deadline=None)
def test_ultraedit_primal_is_dual(sizes: tuple[int, int, int, int]) -> None:
    edits, into, out, seed = sizes
    turn = Turn(drawn(seed, 4 * edits, into), drawn(seed + 1, 4 * edits, out))
    moments = Moments.of(turn.joined)
    wanted = turn.wanted(moments, 0.1)
    assert gap(turn.dual(wanted).difference(), turn.primal(wanted)) <= CLOSE
    hat = moments.standardised(turn.joined)
    naive = torch.stack([-0.1 * (h[:into] @ h[:into]) * h[into:] for h in hat])
    assert gap(wanted, naive) <= CLOSE


def key(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_grace_adds_what_is_far() -> None:
    book = Codebook.of([(1, key(0, 0), "a"), (2, key(2.5, 0), "a")])
    assert [(entry.edit, entry.radius) for entry in book.entries] == [(1, 1.0), (2, 1.0)]
    # The boundary: at exactly the two radii it is not far.
    assert len(Codebook.of([(1, key(0, 0), "a"), (2, key(2, 0), "a")]).entries) == 1


def test_grace_parts_what_is_near_and_says_something_else() -> None:
    book = Codebook.of([(1, key(0, 0), "ab"), (2, key(1, 0), "ba")])
    assert [entry.radius for entry in book.entries] == [0.5 - 1e-5, 0.5]
    assert [book.hit(key(x, 0)).edit for x in (0.2, 0.5, 0.9, 1.5)] == [1, 2, 2, 2]  # type: ignore[union-attr]
    # The same key with another target: the later one answers.
    again = Codebook.of([(1, key(0, 0), "a"), (2, key(0, 0), "b")])
    assert again.hit(key(0, 0)).edit == 2  # type: ignore[union-attr]


def test_grace_widens_what_is_near_and_says_the_same() -> None:
    book = Codebook.of([(1, key(0, 0), "a"), (2, key(1.5, 0), "a")])
    assert [(entry.edit, entry.radius) for entry in book.entries] == [(1, 1.5)]
    near = Codebook.of([(1, key(0, 0), "a"), (2, key(0.5, 0), "a")])
    assert near.entries[0].radius == 1.0


def test_grace_answers_within_its_radius_alone() -> None:
    book = Codebook.of([(7, key(0, 0), "a")])
    assert book.hit(key(0, 1)) is book.entries[0]
    assert book.hit(key(0, 1 + 1e-9)) is None
    assert Codebook().hit(key(0, 0)) is None


def naive_ties(parts: list[list[float]], density: float) -> list[float]:
    kept = []
    for part in parts:
        sizes = sorted((abs(value) for value in part if value), reverse=True)
        floor = sizes[max(1, round(len(sizes) * density)) - 1] if sizes else 0.0
        kept.append([value if abs(value) >= floor else 0.0 for value in part])
    merged = []
    for column in zip(*kept, strict=True):
        total = sum(column)
        agreeing = [value for value in column if value * total > 0]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


@given(
    st.lists(st.lists(st.sampled_from([-3.0, -1.0, 0.0, 1.0, 2.0]), min_size=4, max_size=4), min_size=1),
    st.sampled_from([0.25, 0.5, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_ties_merge_is_a_plain_loop(parts: list[list[float]], density: float) -> None:
    tensors = [torch.tensor(part, dtype=torch.float64) for part in parts]
    assert ties_merge(tensors, density).tolist() == pytest.approx(naive_ties(parts, density))


def test_masks_are_seeded_and_sized() -> None:
    mask = random_mask(torch.Size((50, 80)), 0.2, torch.Generator().manual_seed(3))
    assert mask.dtype == torch.bool and 0.15 < float(mask.double().mean()) < 0.25
    assert torch.equal(mask, random_mask(torch.Size((50, 80)), 0.2, torch.Generator().manual_seed(3)))
    with pytest.raises(BadInput, match="share 0"):
        random_mask(torch.Size((2, 2)), 0, torch.Generator())
    with pytest.raises(BadInput, match="at least one"):
        ties_merge([])
    with pytest.raises(BadInput, match="density"):
        ties_merge([torch.ones(2)], 0)
