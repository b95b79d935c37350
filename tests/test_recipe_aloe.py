"""The energy recipe on spaces so small that everything can be enumerated, in float64."""

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import recipe_modules


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    torch.set_default_dtype(torch.float64)
    yield from recipe_modules.imported("aloe_models", monkeypatch)
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from recipe_modules.imported("aloe_data", monkeypatch)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from recipe_modules.imported("aloe", monkeypatch)


def states(bits: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=bits)))


def energy_of(models: Any, bits: int, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    made = models.Energy(bits, 12)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(3)  # far from uniform
    return made


def law(energy: Any, bits: int) -> Tensor:
    found: Tensor = energy(states(bits)).softmax(0).detach()
    return found


def gradient(loss: Tensor, module: Any) -> Tensor:
    found = torch.autograd.grad(loss, [*module.parameters()], allow_unused=True, retain_graph=True)
    shapes = [parameter.shape for parameter in module.parameters()]
    return torch.cat(
        [
            (torch.zeros(shape) if part is None else part).flatten()
            for part, shape in zip(found, shapes, strict=True)
        ]
    )


def all_ways(models: Any, bits: int, most: int) -> Any:
    """Every first guess and every way of edits from it."""
    rows = [
        (start, (*edits, *[0] * (most - length)), length)
        for start in itertools.product((0.0, 1.0), repeat=bits)
        for length in range(most + 1)
        for edits in itertools.product(range(bits), repeat=length)
    ]
    starts, edits, lengths = zip(*rows, strict=True)
    return models.Ways(torch.tensor(starts), torch.tensor(edits), torch.tensor(lengths))


def naive_log_prob(sampler: Any, start: Tensor, edits: list[int]) -> float:
    """The chance of one way, one decision after another."""
    total = 0.0
    for bit in range(sampler.bits):
        unit = torch.nn.functional.elu(start[:bit] @ sampler.inner[bit, :bit] + sampler.bias[bit])
        chance = torch.sigmoid(unit @ sampler.outer[bit] + sampler.offset[bit])
        total += math.log((chance if start[bit] else 1 - chance).item())
    x = start.clone()
    for bit in edits:
        total += math.log(1 - torch.sigmoid(sampler.stop(x[None])[0, 0]).item())
        total += math.log(sampler.place(x[None])[0].softmax(0)[bit].item())
        x[bit] = 1 - x[bit]
    if len(edits) < sampler.most:
        total += math.log(torch.sigmoid(sampler.stop(x[None])[0, 0]).item())
    return total


def test_the_contrast_has_the_gradient_of_the_likelihood(models: Any) -> None:
    energy, whole = energy_of(models, 8), states(8)
    seen = whole[[3, 77, 200]]
    exact = energy(whole).logsumexp(0) - energy(seen).mean()
    p = law(energy, 8)
    # The mean over negatives of the model's law, each by itself: 256 of them, weighed.
    parts = [chance * models.contrast(energy, seen, one[None]) for chance, one in zip(p, whole, strict=True)]
    assert torch.allclose(gradient(sum(parts), energy), gradient(exact, energy), atol=1e-10)


def test_a_sweep_leaves_the_law_as_it_is(models: Any) -> None:
    energy, whole = energy_of(models, 8), states(8)
    p, scores = law(energy, 8), energy(states(8)).detach()
    kernel = torch.eye(256)
    for bit in range(8):
        other = torch.arange(256) ^ (1 << (7 - bit))
        chance = models.flip_probability(scores, scores[other])
        one = torch.diag(1 - chance)
        one[torch.arange(256), other] = chance
        kernel = kernel @ one
    assert torch.allclose(p @ kernel, p, atol=1e-12)
    # And the code draws by that kernel: from one state, and from the law.
    draw = torch.Generator().manual_seed(0)
    for first, expected in ((whole[[5]].expand(20_000, -1), kernel[5]), (whole[torch.multinomial(p, 20_000, True, generator=draw)], p)):  # fmt: skip  # noqa: E501
        ended = models.sweep(energy, first, draw) @ (2.0 ** torch.arange(7, -1, -1))
        found = torch.bincount(ended.long(), minlength=256) / 20_000
        assert (found - expected).abs().sum() / 2 < 0.05


def test_the_sampler_knows_the_chance_of_every_way(models: Any) -> None:
    torch.manual_seed(1)
    sampler = models.Sampler(3, 8, 2)
    ways = all_ways(models, 3, 2)
    found = sampler.log_prob(ways).detach()
    assert math.isclose(float(found.exp().sum()), 1, rel_tol=1e-12)
    for row in range(0, len(found), 7):
        edits = ways.edits[row, : ways.lengths[row]].tolist()
        assert math.isclose(found[row], naive_log_prob(sampler, ways.start[row], edits), rel_tol=1e-10)
    ends = torch.zeros(8).index_add(0, (ways.end() @ torch.tensor([4.0, 2, 1])).long(), found.exp())
    drawn = sampler.sample(40_000, torch.Generator().manual_seed(0))
    counted = torch.bincount((drawn.end() @ torch.tensor([4.0, 2, 1])).long(), minlength=8) / 40_000
    assert (counted - ends).abs().max() < 0.01
    assert torch.bincount(drawn.lengths, minlength=3).min() > 0


def test_the_importance_weights_mean_the_density_and_its_gradient(models: Any) -> None:
    torch.manual_seed(2)
    sampler, bits, most = models.Sampler(3, 8, 2), 3, 2
    ways = all_ways(models, bits, most)
    at = torch.tensor([1.0, 0.0, 1.0])
    to_it = (ways.end() == at).all(1).nonzero()[:, 0]
    some = models.Ways(ways.start[to_it], ways.edits[to_it], ways.lengths[to_it])
    proposed = models.proposal_log_prob(some.lengths, bits, most)
    assert math.isclose(float(proposed.exp().sum()), 1, rel_tol=1e-12)  # it reaches every way, and no other
    log_q = sampler.log_prob(some)
    density = log_q.exp().sum()
    assert math.isclose(float((proposed.exp() * (log_q - proposed).exp()).sum()), float(density))
    # With every way weighed once, by its posterior, the loss has the gradient of -log q(x).
    posterior = log_q.detach().softmax(0)
    exact = gradient(-density.log(), sampler)
    assert torch.allclose(gradient(-(posterior * log_q).sum(), sampler), exact, atol=1e-10)
    # As does the loss of many proposed ways, nearly.
    near = gradient(
        models.power_iteration(sampler, at[None], 40_000, torch.Generator().manual_seed(0)), sampler
    )
    assert (near - exact).norm() < 0.03 * exact.norm()


def test_proposed_ways_end_where_they_should(models: Any) -> None:
    ends = states(4)[torch.arange(400) % 16]
    ways, chance = models.propose(ends, 3, torch.Generator().manual_seed(0))
    assert torch.equal(ways.end(), ends)
    assert torch.equal(chance, models.proposal_log_prob(ways.lengths, 4, 3))
    shares = torch.bincount(ways.lengths, minlength=4) / 400
    assert torch.allclose(shares, torch.tensor([0.5, 0.25, 0.125, 0.125]), atol=0.08)


def test_ratio_matching_is_least_at_the_true_law(models: Any) -> None:
    whole = states(4)
    truth = torch.randn(16, generator=torch.Generator().manual_seed(0)).softmax(0)
    table = truth.log().clone().requires_grad_()

    def energy(x: Tensor) -> Tensor:
        return table[(x @ torch.tensor([8.0, 4, 2, 1])).long()]

    def loss() -> Tensor:
        each = [models.ratio_matching(energy, one[None]) for one in whole]
        return (truth * torch.stack(each)).sum()

    (slope,) = torch.autograd.grad(loss(), table)
    assert slope.abs().max() < 1e-12
    least = float(loss())
    with torch.no_grad():
        table += 0.3 * torch.randn(16, generator=torch.Generator().manual_seed(1))
    assert float(loss()) > least
    one = whole[5]
    naive = sum((1 + float(torch.exp(energy(one[None])[0] - energy(torch.cat([one[:i], 1 - one[i : i + 1], one[i + 1 :]])[None])[0]))) ** -2 for i in range(4))  # fmt: skip  # noqa: E501
    assert math.isclose(float(models.ratio_matching(energy, one[None])), naive, rel_tol=1e-10)


@pytest.mark.parametrize("method", ["ALOE", "PCD", "ratio matching"])
def test_training_comes_near_a_law_of_eight_bits(recipe: Any, method: str) -> None:
    whole = states(8).float()
    truth = (-((whole.sum(1) - 2.5) ** 2)).softmax(0) * 0.9 + 0.1 / 256
    random = torch.Generator().manual_seed(0)
    training = recipe.Training(method, 8, 32, 0)

    def divergence() -> float:
        log_p = training.energy(whole).detach().log_softmax(0)
        return float((truth * (truth.log() - log_p)).sum())

    before = divergence()
    for _ in range(120):
        training.step(whole[torch.multinomial(truth, 128, True, generator=random)])
    assert divergence() < 0.4 * before


@given(st.integers(0, 2**32 - 1), st.floats(0.5, 50))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_gray_code_comes_back(data: Any, seed: int, largest: float) -> None:
    points = np.random.default_rng(seed).uniform(-largest, largest, (20, 2))
    bits = data.to_bits(points, largest)
    step = largest / 2**15
    back = data.to_points(bits, largest)
    assert (np.abs(back) <= np.abs(points)).all() and (np.abs(points - back) < step * (1 + 1e-9)).all()
    assert np.array_equal(data.to_bits(back + np.sign(points) * step / 2, largest), bits)


def test_neighbours_differ_in_one_bit(data: Any) -> None:
    line = np.stack([(np.arange(127) + 0.5) / 128, np.full(127, 0.1)], 1)
    bits = data.to_bits(line, 1.0, 8)
    assert bits.shape == (127, 16) and len({row.tobytes() for row in bits}) == 127
    assert (np.abs(np.diff(bits, axis=0)).sum(1) == 1).all()


def test_distances_are_what_pairs_say(data: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(2, (count, 6), generator=generator).float() for count in (7, 9))

    def mean(a: Tensor, b: Tensor, same: bool) -> float:
        pairs = [
            math.exp(-0.1 * float((x - y).abs().sum()))
            for i, x in enumerate(a)
            for j, y in enumerate(b)
            if not same or i != j
        ]
        return sum(pairs) / len(pairs)

    expected = mean(one, one, True) + mean(other, other, True) - 2 * mean(one, other, False)
    assert math.isclose(data.squared_mmd(one, other, data.exponential), expected, abs_tol=1e-6)


def test_the_published_kernel_sees_the_mean_of_each_bit_alone(data: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    bit = torch.randint(2, (1500, 1), generator=draw).float()
    tied, free = bit.expand(-1, 8), torch.randint(2, (1500, 8), generator=draw).float()
    assert abs(data.squared_mmd(tied, free, data.linear)) < 0.02
    assert data.squared_mmd(tied, free, data.exponential) > 0.02


def test_all_seven_sets_are_near_the_origin_and_fill_their_margin(data: Any) -> None:
    for name, make in data.SETS.items():
        points = make(1000, np.random.default_rng(0))
        assert points.shape == (1000, 2) and np.abs(points).max() < data.reach(name), name
        assert np.abs(points).max() > 0.4 * data.reach(name), name


def test_the_recipe_goes_on_and_tells(
    recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.CHAINS, recipe.FRESH, recipe.SWEEPS = 60, 80, 1
    file, picture = tmp_path / "a.json", tmp_path / "a.png"
    asked = ["--seconds", "0.05", "--sets", "moons", "--json", str(file)]
    asked += ["--panels", str(tmp_path / "p.json"), "--out", str(picture)]
    recipe.main(["run", *asked, "--seeds", "1"])
    first = json.loads(file.read_text())["rows"]
    assert len(first) == 5
    recipe.main(["run", *asked, "--seeds", "2"])
    rows = json.loads(file.read_text())["rows"]
    assert rows[:5] == first and [row["seed"] for row in rows[5:]] == [1] * 5
    capsys.readouterr()
    recipe.main(["table", "--json", str(file)])
    told = capsys.readouterr().out
    assert told.count("| moons | ") == 2 and "nan" not in told
    recipe.main(["picture", *asked])
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="seconds"):
        recipe.main(["run", *asked, "--seconds", "2"])
