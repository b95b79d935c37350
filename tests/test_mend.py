"""MEND: its network at birth and in training, against plain gradient steps and sums, in float64."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

import toys
from uptake.adaptation.editing.mend import SPEED, Blocks, MendNetwork
from uptake.adaptation.editing.moments import Moments
from uptake.adaptation.optimizers import AdamW
from uptake.errors import BadInput
from uptake.lm.base import Segment
from uptake.lm.edited_rows import EditedRows
from uptake.lm.examples import encode
from uptake.lm.gradient_factors import gradient_factors
from uptake.methods.contract.edit_training import EditEpisode
from uptake.methods.contract.learned import TrainingData
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.mend import Mend
from uptake.tasks.edits import Edit
from uptake.text.types import Document, Found, Passage
from uptake.train import Training, train

METHOD = Mend(blocks=2, rank=3, alpha=0.01)
EPISODE = EditEpisode("so it is", " x", ("so it is", "and it is"), (("so is it", " y"),), "some other text")
OTHER = EditEpisode("the second", " yz", ("the second",), (("a", " b"), ("c d", "e")), "more")


def double(method: Mend, lm: Any, seed: int = 0) -> MendNetwork:
    network = method.fresh(lm, seed).double()
    assert isinstance(network, MendNetwork)
    return network


def moved(network: nn.Module, size: float = 0.3) -> None:
    """Give a network's parameters other values than at birth."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            scale = size / SPEED if "alpha" in name else size
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))


@pytest.mark.parametrize("shape", toys.SHAPES)
@pytest.mark.parametrize("standardise", [False, True])
def test_at_birth_an_edit_is_a_gradient_step(shape: str, standardise: bool) -> None:
    lm = toys.lm(shape, dtype=torch.float64)
    method = replace(METHOD, standardise=standardise)
    example = encode(lm.tokenizer, "so it is", " x")
    network = double(method, lm)
    network.see(method._tokens(lm, example))
    places = method.places(lm)
    _, factors = gradient_factors(lm, places, lambda m: -m.token_log_probs([example])[0].mean())
    delta = method.delta_of(network, lm, example)
    rows: dict[tuple[int, int], list[Tensor]] = {}
    for place, each in zip(places, factors, strict=True):
        tokens = torch.cat(each.tokens(), 1)
        rows.setdefault((place.width_in, place.width_out), []).append(tokens)
    for place, each in zip(places, factors, strict=True):
        u, d = each.tokens()
        if standardise:
            # One set of statistics a shape, over all tokens of all its layers, two-pass.
            known = torch.cat(rows[place.width_in, place.width_out])
            hat = (torch.cat([u, d], 1) - known.mean(0)) / (known.std(0) + 1e-7)
            u, d = hat[:, : place.width_in], hat[:, place.width_in :]
        expected = -float(network.alpha[0].detach()) * d.T @ u
        found = delta.difference(place.weight)
        found = found.T if place.transposed else found
        assert float((found - expected).abs().max()) <= 1e-10


def test_a_clamp_learns_where_a_relu_would_not() -> None:
    blocks = Blocks(3, 2, 1, 4).double()
    rows = torch.randn(5, 5, generator=torch.Generator().manual_seed(1)).double()
    (gradient,) = torch.autograd.grad(blocks(rows, 0).sum(), blocks.up)
    assert float(gradient.abs().max()) > 0
    inner = rows @ blocks.down[0].T @ blocks.up[0].T
    (none,) = torch.autograd.grad(torch.relu(inner).sum(), blocks.up)
    assert float(none.abs().max()) == 0


def test_the_blocks_are_their_formula() -> None:
    blocks = Blocks(3, 2, 2, 4).double()
    moved(blocks)
    rows = torch.randn(5, 5, generator=torch.Generator().manual_seed(1)).double()
    hidden = rows
    for block in range(2):
        u, v = blocks.up[block], blocks.down[block]
        inner = torch.stack([u @ (v @ row) for row in hidden]) + blocks.bias[block]
        hidden = hidden + torch.clamp(blocks.scale[block, 1] * inner + blocks.offset[block, 1], min=0)
    assert float((blocks(rows, 1) - hidden).detach().abs().max()) <= 1e-10
    assert not torch.allclose(blocks(rows, 0), hidden)


def test_edits_add_up_in_any_order_and_one_taken_back_was_never_made() -> None:
    lm = toys.lm("llama")
    network = METHOD.fresh(lm)
    moved(network, 0.05)
    method = replace(METHOD, trained=network.requires_grad_(False).eval())
    edits = [Passage(n, f" {t}", f"the {t} of it is") for n, t in ((1, "a"), (2, "b"), (3, "c"))]

    def made(*some: Passage, state: Any = None) -> Any:
        found = Evidence(Found(some, (0.0,) * len(some)))
        return method.adapt([state or method.init(lm)], lm, [found], Context())[0]

    whole = made(*edits)
    stepwise = made(edits[1], state=made(edits[0], state=made(edits[2])))
    assert whole.delta.fingerprint == stepwise.delta.fingerprint
    assert method.forget(whole, lm, [2]).delta.fingerprint == made(edits[0], edits[2]).delta.fingerprint
    alone = [made(edit).delta for edit in edits]
    for name in whole.delta.names:
        total = sum(each.difference(name) for each in alone)
        assert torch.allclose(whole.delta.difference(name), total, atol=1e-6)


@pytest.mark.parametrize("method", [METHOD, replace(METHOD, blocks=1), replace(METHOD, blocks=1, above=1)])
@pytest.mark.parametrize("shape", toys.SHAPES)
def test_the_gradient_is_that_of_two_passes_and_one_through_the_network(shape: str, method: Mend) -> None:
    """∂loss/∂g = <∂loss/∂W', ∂ΔW/∂g>: inputs and output gradients are constants."""
    lm = toys.lm(shape, dtype=torch.float64)
    network = double(method, lm)
    moved(network, 0.1)
    network.eval()
    loss, found = method.gradients(network, lm, (EPISODE, OTHER))
    places, total = method.places(lm), torch.zeros((), dtype=torch.float64)
    expected = [torch.zeros_like(parameter) for parameter in network.parameters()]
    for episode in (EPISODE, OTHER):  # each by itself, on weights that are leaves
        tokens = method._tokens(lm, encode(lm.tokenizer, episode.prompt, episode.target))
        leaves = {}
        for place, (up, down) in zip(places, network(tokens), strict=True):
            before, change = lm.module.get_parameter(place.weight), up @ down
            leaves[place.weight] = (before + (change.T if place.transposed else change)).detach()
            leaves[place.weight].requires_grad_()
        edited = lm.with_parameters(leaves)
        asked = [encode(lm.tokenizer, prompt, episode.target) for prompt in episode.asked]
        naive = -0.1 * sum(edited.token_log_probs([each])[0].mean() for each in asked) / len(asked)
        near = [a + b for a, b in episode.near]
        for text, weight in [(episode.unrelated, 1.0), *((each, 1 / len(near)) for each in near)]:
            whole = encode(lm.tokenizer, "", text)
            (base,), (after,) = lm.predictions([whole]), edited.predictions([whole])
            naive = naive + weight * (base.exp() * (base - after)).sum(-1).mean()
        total += naive.detach() / 2
        outer = torch.autograd.grad(naive, [leaves[place.weight] for place in places])
        inner = sum(
            (gradient * ((up @ down).T if place.transposed else up @ down)).sum()
            for gradient, place, (up, down) in zip(outer, places, network(tokens), strict=True)
        )
        parts = torch.autograd.grad(inner, list(network.parameters()), allow_unused=True)  # type: ignore[arg-type]
        expected = [whole + part / 2 for whole, part in zip(expected, parts, strict=True)]
    assert loss == pytest.approx(total.item(), abs=1e-10)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) <= 1e-10  # type: ignore[operator]


def test_statistics_move_in_training_alone() -> None:
    lm = toys.lm("llama")
    network = METHOD.fresh(lm)
    blocks = [each for each in network.modules() if isinstance(each, Blocks)]
    network.eval()
    METHOD.loss(network, lm, (EPISODE,))
    assert all(each.moments.count == 0 for each in blocks)
    network.train()
    METHOD.loss(network, lm, (EPISODE,))
    assert all(each.moments.count > 0 for each in blocks)
    blocks[0].see(torch.ones(1, blocks[0].up.shape[1]))
    assert bool(torch.isfinite(blocks[0](torch.zeros(1, blocks[0].up.shape[1]), 0)).all())
    one = Moments.of(torch.ones(1, 3))
    assert bool(torch.isfinite(one.standardised(torch.ones(1, 3))).all())


def test_the_first_step_lowers_the_loss_of_the_target() -> None:
    lm = toys.lm("llama")
    method = replace(METHOD, weights="untrained", alpha=0.05)
    said = Passage(1, "x", "so it is")
    (state,) = method.adapt([method.init(lm)], lm, [Evidence(Found((said,), (0.0,)))], Context())
    asked = [Segment("x", "so it is")]
    base, edited = (m.score(asked)[0].log_probs.sum() for m in (lm, method.adapted([state], lm)))
    assert edited > base


def test_training_learns_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    lm = toys.lm("llama")
    edits = tuple(
        Edit(str(n), f"the {n} is", target, rephrases=(f"it is {n}, the",)) for n, target in enumerate("xyzw")
    )
    method = replace(METHOD, batch=2)
    episodes = method.episodes(lm, TrainingData((), unrelated=(Document("", "other text"),), edits=edits))
    assert [len(episode) for episode in episodes] == [2, 2]
    assert episodes[0][1] == EditEpisode("the 1 is", " y", ("the 1 is", "it is 1, the"), (), "other text")
    training = Training(AdamW(learning_rate=1e-4, weight_decay=0.0), passes=4, save_every=2)
    network, points = train(method, lm, episodes, training, valid=episodes)
    assert points[-1].valid < points[0].valid  # type: ignore[operator]

    class StoppedError(Exception):
        pass

    def stop(point: Any) -> None:
        if point.step == 4:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(method, lm, episodes, training, tmp_path / "t", stop, valid=episodes)
    resumed, again = train(method, lm, episodes, training, tmp_path / "t", valid=episodes)
    assert [point.valid for point in again] == [point.valid for point in points]
    for name, value in network.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    method.save(network, lm, tmp_path / "mend")
    loaded = method.load(tmp_path / "mend", lm)
    assert all(torch.equal(v, loaded.state_dict()[n]) for n, v in network.state_dict().items())


def test_what_cannot_be_trained_is_refused() -> None:
    lm = toys.lm("llama")
    with pytest.raises(BadInput, match="--edits"):
        METHOD.episodes(lm, TrainingData(()))
    with pytest.raises(BadInput, match="--unrelated"):
        METHOD.episodes(lm, TrainingData((), edits=(Edit("1", "a", "b"),)))
    with pytest.raises(BadInput, match="the model has 2"):
        replace(METHOD, blocks=3).fresh(lm)
    with pytest.raises(BadInput, match="rank 0"):
        replace(METHOD, rank=0)


def test_what_a_text_is_to_the_base_is_computed_once() -> None:
    """The second visit of an edit runs no lower block, and gives what the first gave."""
    lm = toys.lm("llama", dtype=torch.float64)
    method = replace(METHOD, blocks=1)
    network = double(method, lm)
    moved(network, 0.1)
    network.eval()
    first = method.gradients(network, lm, (EPISODE, OTHER))
    (rows,) = (value for value in lm._derived.values() if isinstance(value, EditedRows))
    assert rows._below is not None
    with patch.object(rows._below, "of", side_effect=AssertionError("run again")):
        second = method.gradients(network, lm, (EPISODE, OTHER))
        alone = method.gradients(network, lm, (OTHER,))
    assert first[0] == second[0] and alone[0] != first[0]
    for one, other in zip(first[1], second[1], strict=True):
        assert one is not None and other is not None and torch.equal(one, other)
    # Within no bytes nothing is kept, and nothing else changes.
    lm._derived[next(key for key, value in lm._derived.items() if value is rows)] = EditedRows(
        lm, method.places(lm), kept=0
    )
    assert abs(method.gradients(network, lm, (EPISODE, OTHER))[0] - first[0]) <= 1e-12


def test_a_rate_moves_by_its_own_speed_which_the_file_keeps(tmp_path: Path) -> None:
    lm = toys.lm("llama")
    material = TrainingData(
        (), unrelated=(Document("d", "other text"),), edits=(Edit("e", "so it", "x"),) * 4
    )
    moves = []
    for speed in (100.0, 2.0):
        method = replace(METHOD, speed=speed, batch=2)
        training = Training(AdamW(learning_rate=1e-3, weight_decay=0.0), save_every=2)
        network, _ = train(method, lm, method.episodes(lm, material), training)
        assert isinstance(network, MendNetwork)
        moves.append(float((network.alpha - method.alpha).abs().max()))
    assert moves[0] > 10 * moves[1] > 0
    method.save(network, lm, tmp_path / "mend")
    again = replace(method, speed=100.0).load(tmp_path / "mend", lm)
    assert isinstance(again, MendNetwork) and torch.equal(again.alpha, network.alpha)
