"""The outer loop, on a toy method that learns how far to trust its memory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import toys
from toy_methods import Counts, Unigram
from uptake.adaptation.inner_loop import token_loss
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.tensors import read_tensors
from uptake.errors import BadInput, Damaged, Diverged, Mismatch
from uptake.lm.base import LM
from uptake.methods.contract.learned import Learned, TrainingData
from uptake.methods.contract.method import Context, Evidence
from uptake.sealed import FIELD
from uptake.settings import describe
from uptake.train import Point, Training, train


class Trust(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(-3.0))


@dataclass(frozen=True, kw_only=True)
class Trusted(Counts):
    share: float = 0.0


@dataclass(frozen=True)
class LearnedMemory(Learned[Trusted, Any]):
    """Unigram memory whose share was learnt."""

    scale: float = 1.0

    @classmethod
    def example(cls) -> Self:
        return cls()

    def build(self, lm: LM) -> nn.Module:
        return Trust()

    def episodes(self, lm: LM, material: TrainingData) -> Sequence[Any]:
        return [(document.text, document.text[: len(document.text) // 2]) for document in material.documents]

    def loss(self, network: nn.Module, lm: LM, episode: Any) -> Tensor:
        read, asked = (lm.tokenizer.encode(text)[0] for text in episode)
        counts = torch.bincount(torch.tensor(read), minlength=257).float()[None]
        share = network.logit.sigmoid()  # type: ignore[operator]
        with torch.no_grad():
            log_probs = lm.step(torch.tensor([[0, *asked[:-1]]]))[0]
        mixed = (1 - share) * log_probs.exp() + share * (counts / counts.sum())[:, None]
        return token_loss(mixed.log(), torch.tensor([asked]))

    def init(self, lm: LM) -> Trusted:
        share = float(self.network(lm).logit.sigmoid())  # type: ignore[operator]
        return Trusted(base=lm.fingerprint, counts=torch.zeros(257), share=share)

    def adapt(
        self,
        states: Sequence[Trusted],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[Trusted]:
        ids = [[t for p in found.passages for t in lm.tokenizer.encode(p.text)[0]] for found in evidence]
        added = [torch.bincount(torch.tensor(row, dtype=torch.long), minlength=257) for row in ids]
        return [
            state.after(found, context, counts=state.counts + more)
            for state, found, more in zip(states, evidence, added, strict=True)
        ]

    def adapted(self, states: Sequence[Trusted], lm: LM) -> LM:
        return Unigram(lm, torch.stack([state.counts for state in states]), states[0].share)


EPISODES = [(f"{word} " * 5, f"{word} " * 3) for word in ("cat", "dog", "fish", "hill", "pond", "mat")]


def test_training_lowers_the_loss_of_what_it_trained_for() -> None:
    lm, method = toys.lm(), LearnedMemory()
    network, points = train(method, lm, EPISODES, Training(passes=20))
    untrained = method.build(lm)
    unseen = ("tree " * 5, "tree " * 3)
    assert method.loss(network, lm, unseen) < method.loss(untrained, lm, unseen)
    shares = [
        replace(method, **how).init(lm).share for how in ({"trained": network}, {"weights": "untrained"})
    ]
    assert shares[0] > shares[1]
    assert points[-1].step == points[-1].total == 120


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    lm, method, path = toys.lm(), LearnedMemory(), tmp_path / "checkpoint"
    settings = Training(passes=4, save_every=5)
    whole, points = train(method, lm, EPISODES, settings, valid=EPISODES[:1])

    def interrupt(point: Point) -> None:
        if point.step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(method, lm, EPISODES, settings, path, interrupt, EPISODES[:1])
    steps: list[int] = []
    each: list[tuple[int, int]] = []
    resumed, again = train(
        method,
        lm,
        EPISODES,
        settings,
        path,
        lambda point: steps.append(point.step),
        EPISODES[:1],
        on_step=lambda done, total: each.append((done, total)),
    )
    assert steps == [10, 15, 20, 24]
    assert each == [(done, 24) for done in range(10, 25)]
    assert torch.equal(whole.logit, resumed.logit)  # type: ignore[arg-type]
    assert [repr(point) for point in points] == [repr(point) for point in again]
    assert not torch.equal(whole.logit, train(method, lm, EPISODES, Training(seed=1))[0].logit)  # type: ignore[arg-type]
    with pytest.raises(Mismatch, match="load that model"):
        train(method, toys.lm(seed=3), EPISODES, settings, path)
    with pytest.raises(Mismatch, match="begin a new file"):
        train(method, lm, EPISODES[:-1], settings, path)
    with pytest.raises(Mismatch, match="other settings or episodes"):
        train(method, lm, EPISODES, settings, path, data_key="other text")
    path.write_bytes(b"no checkpoint")
    with pytest.raises(Damaged, match="make it anew"):
        train(method, lm, EPISODES, settings, path)
    with pytest.raises(BadInput, match="no episodes"):
        train(method, lm, [])


def test_a_training_that_is_told_enough_is_where_one_of_as_many_steps_is(tmp_path: Path) -> None:
    lm, method, path = toys.lm(), LearnedMemory(), tmp_path / "checkpoint"
    settings, answers = Training(passes=4, save_every=5), iter([False, True])
    early, points = train(method, lm, EPISODES, settings, path, enough=lambda: next(answers))
    assert [point.step for point in points] == [5, 10]
    whole, _ = train(method, lm, EPISODES, settings)
    assert not torch.equal(early.logit, whole.logit)  # type: ignore[arg-type]
    # It has had enough where it stands: nothing more is learnt.
    still, points = train(method, lm, EPISODES, settings, path, enough=lambda: True)
    assert torch.equal(still.logit, early.logit) and points[-1].step == 10  # type: ignore[arg-type]
    later, _ = train(method, lm, EPISODES, settings, path)
    assert torch.equal(later.logit, whole.logit)  # type: ignore[arg-type]


def test_a_rate_with_warm_up_begins_low_and_decays_at_every_checkpoint() -> None:
    lm, method = toys.lm(), LearnedMemory()
    optimizer = SGD(learning_rate=0.5)
    decayed, _ = train(
        method, lm, EPISODES, Training(optimizer, clip=None, save_every=2, warm_up_and_decay=True)
    )
    by_hand = method.fresh(lm)
    order = torch.randperm(len(EPISODES), generator=torch.Generator().manual_seed(0)).tolist()
    for rate, place in zip((0.05, 0.05, 1 / 3, 1 / 3, 1 / 6, 1 / 6), order, strict=True):
        (gradient,) = method.gradients(by_hand, lm, EPISODES[place])[1]
        assert gradient is not None
        with torch.no_grad():
            by_hand.logit -= rate * gradient  # type: ignore[operator]
    assert torch.allclose(decayed.logit, by_hand.logit, atol=1e-6)  # type: ignore[arg-type]
    whole, _ = train(method, lm, EPISODES, Training(optimizer, clip=None, save_every=2))
    assert not torch.allclose(decayed.logit, whole.logit, atol=1e-4)  # type: ignore[arg-type]


def test_a_training_goes_on_from_another_ones_network() -> None:
    lm, method = toys.lm(), LearnedMemory()
    first, _ = train(method, lm, EPISODES)
    training = Training(SGD(learning_rate=0.5), clip=None)
    second, _ = train(method, lm, EPISODES[:1], training, start=first)
    (gradient,) = method.gradients(first.requires_grad_(), lm, EPISODES[0])[1]
    assert gradient is not None and gradient.abs() > 0
    assert torch.allclose(second.logit, first.logit - 0.5 * gradient, atol=1e-6)  # type: ignore[arg-type, operator]


def test_validation_keeps_the_best_network_and_the_untrained_one_counts() -> None:
    lm, method = toys.lm(), LearnedMemory()
    # Told to trust the memory in training, and shown text of another kind in validation.
    network, points = train(method, lm, EPISODES, Training(passes=3), valid=[("cat" * 5, "pond" * 3)])
    best = min(points, key=lambda point: point.valid if point.valid is not None else 9e9)
    assert best.step == 0
    assert torch.equal(network.logit, method.build(lm).logit)  # type: ignore[arg-type]


def test_a_loss_that_is_not_finite_ends_training_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    class Bursting(LearnedMemory):
        def gradients(self, network: nn.Module, lm: LM, episode: Any) -> Any:
            if episode == "burst":
                return float("nan"), [torch.zeros(())]
            return super().gradients(network, lm, episode)

    path = tmp_path / "checkpoint"
    with pytest.raises(Diverged, match="smaller learning rate"):
        train(Bursting(), toys.lm(), [*EPISODES, "burst"], Training(save_every=1, seed=2), path)
    about, _ = read_tensors(path, "training")
    assert '"step"' in about["points"]


def test_a_network_comes_back_from_its_file_and_only_for_its_own(tmp_path: Path) -> None:
    lm, method, path = toys.lm(), LearnedMemory(), tmp_path / "memory.safetensors"
    network, _ = train(method, lm, EPISODES, Training(passes=2))
    method.save(network, lm, path)
    read = LearnedMemory(weights=str(path))
    assert read.init(lm).share == LearnedMemory(trained=network).init(lm).share
    assert read.network(lm) is read.network(lm), "read once"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    (tmp_path / "flipped").write_bytes(raw)
    with pytest.raises(Damaged, match="is not the network that was written: restore"):
        LearnedMemory(weights=str(tmp_path / "flipped")).init(lm)
    with safe_open(path, "pt") as file:  # without its sum nobody knows what was written
        about = {name: words for name, words in file.metadata().items() if name != FIELD}
        save_file({name: file.get_tensor(name) for name in file.keys()}, tmp_path / "bare", about)  # noqa: SIM118
    with pytest.raises(Damaged, match="not the network that was written"):
        LearnedMemory(weights=str(tmp_path / "bare")).init(lm)
    with pytest.raises(Mismatch, match="train again"):
        read.init(toys.lm(seed=5))
    with pytest.raises(BadInput, match="uptake train"):
        method.init(lm)
    with pytest.raises(BadInput, match="no such file"):
        LearnedMemory(weights=str(tmp_path / "none")).init(lm)

    class Other(LearnedMemory):
        pass

    with pytest.raises(Mismatch, match="not of Other"):
        Other(weights=str(path)).init(lm)
    assert "trained" not in describe(read) and describe(read)["weights"] == str(path)
