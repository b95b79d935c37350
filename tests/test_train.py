"""The outer loop, on a toy method that learns how far to trust its memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

import toys
from toy_methods import Counts, Unigram
from uptake.errors import BadInput, Damaged, Mismatch
from uptake.lm import LM
from uptake.method import Context, Evidence, Learned
from uptake.step import token_loss
from uptake.train import Training, train


class Trust(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(-3.0))


@dataclass(frozen=True, kw_only=True)
class Trusted(Counts):
    share: float = 0.0


@dataclass(frozen=True)
class LearnedMemory(Learned[Trusted]):
    """Unigram memory whose share was learnt."""

    @classmethod
    def example(cls) -> Self:
        return cls()

    def build(self, lm: LM) -> nn.Module:
        return Trust()

    def loss(self, learned: nn.Module, lm: LM, episode: Any) -> Tensor:
        read, asked = (lm.tokenizer.encode(text)[0] for text in episode)
        counts = torch.bincount(torch.tensor(read), minlength=257).float()[None]
        share = learned.logit.sigmoid()  # type: ignore[operator]
        with torch.no_grad():
            log_probs = lm.step(torch.tensor([[0, *asked[:-1]]]))[0]
        mixed = (1 - share) * log_probs.exp() + share * (counts / counts.sum())[:, None]
        return token_loss(mixed.log(), torch.tensor([asked]))

    def init(self, lm: LM, learned: nn.Module | None = None) -> Trusted:
        share = float(learned.logit.detach().sigmoid()) if learned is not None else 0.5  # type: ignore[operator]
        return Trusted(base=lm.fingerprint, counts=torch.zeros(257), share=share)

    def take(
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

    def on(self, states: Sequence[Trusted], lm: LM) -> LM:
        return Unigram(lm, torch.stack([state.counts for state in states]), states[0].share)


EPISODES = [(f"{word} " * 5, f"{word} " * 3) for word in ("cat", "dog", "fish", "hill", "pond", "mat")]


def test_training_lowers_the_loss_of_what_it_trained_for() -> None:
    lm, method = toys.lm(), LearnedMemory()
    network = train(method, lm, EPISODES, Training(passes=20))
    untrained = method.build(lm)
    unseen = ("tree " * 5, "tree " * 3)
    assert method.loss(network, lm, unseen) < method.loss(untrained, lm, unseen)
    assert method.init(lm, network).share > method.init(lm, untrained).share


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    lm, method, path = toys.lm(), LearnedMemory(), tmp_path / "checkpoint"
    settings = Training(passes=4, save_every=5)
    whole = train(method, lm, EPISODES, settings)

    def interrupt(done: int, total: int) -> None:
        assert total == 24
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(method, lm, EPISODES, settings, path, interrupt)
    steps: list[int] = []
    resumed = train(method, lm, EPISODES, settings, path, lambda done, total: steps.append(done))
    assert steps == [15, 20, 24]
    assert torch.equal(whole.logit, resumed.logit)  # type: ignore[arg-type]
    assert not torch.equal(whole.logit, train(method, lm, EPISODES, Training(seed=1)).logit)  # type: ignore[arg-type]
    with pytest.raises(Mismatch, match="load that model"):
        train(method, toys.lm(seed=3), EPISODES, settings, path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(Damaged, match="make it anew"):
        train(method, lm, EPISODES, settings, path)
    with pytest.raises(BadInput, match="no episodes"):
        train(method, lm, [])
