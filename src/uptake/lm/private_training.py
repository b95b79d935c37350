"""Trains a model on units of text under differential privacy: a document or a user, with all its pieces.

Each step draws units, sums their clipped gradients, adds noise and divides by the expected number of them:
nothing that the optimizer sees depends on more of a unit than its clipped gradient.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from uptake.adaptation.inner_loop import GradientDescent
from uptake.adaptation.privacy.clipping import ClippedSum
from uptake.adaptation.privacy.dp import DP, Claim
from uptake.adaptation.privacy.noise import Randomness
from uptake.adaptation.trainable import TrainableCopy
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.examples import Piece
from uptake.lm.scoring import losses

Unit = Sequence[Piece]
# Log-probabilities of one pass. On a CPU a larger one gains little, and a unit alone needs one pass back.
ON_CPU, ELSEWHERE = 1 << 22, 1 << 27


@dataclass(frozen=True)
class Trained:
    """What a private training spent, and why its units were not clipped by ghost norms, if so."""

    tokens: int
    steps: int
    unsuited: str


def train_privately(
    lm: LM,
    opened: TrainableCopy,
    units: Sequence[Unit],
    dp: DP,
    claim: Claim,
    descent: GradientDescent,
    block: int = 0,
) -> Trained:
    """Train the private copy `opened`, which `lm` answers from, in place; one descent step a draw of units.

    `claim` is what `dp` claims for so many units. A step whose draw is empty takes noise alone.
    """
    randomness = dp.randomness(block)
    summing = ClippedSum(opened.module, opened.parameters, dp.clip)
    # A model whose rows share no pass takes a piece at a time.
    most = _most(lm) if isinstance(lm, Causal) else 0
    tokens = 0
    for _ in range(dp.steps):
        drawn = [units[place] for place in randomness.chosen(len(units), claim.sampling_rate)]
        tokens += sum(len(piece.example.inputs) for unit in drawn for piece in unit)
        with descent.reading():
            for group in passes(drawn, most):
                if len(group) == 1 and not _fits(group[0], most):
                    summing.add_one(lambda piece=piece: _losses(lm, [piece]) for piece in group[0])  # type: ignore[misc]
                    continue
                rows = [piece for unit in group for piece in unit]
                owners = [place for place, unit in enumerate(group) for _ in unit]
                summing.add(lambda some, rows=rows: _losses(lm, [rows[each] for each in some]), owners)  # type: ignore[misc]
            descent.apply([*noised(summing.take(), dp, claim, randomness).values()])
    return Trained(tokens, dp.steps, summing.unsuited)


def noised(summed: dict[str, Tensor], dp: DP, claim: Claim, randomness: Randomness) -> dict[str, Tensor]:
    """Return a clipped sum with its noise, over the expected number of units."""
    size = claim.noise_multiplier * dp.clip if claim.noise_multiplier else 0.0
    return {
        name: (value + size * randomness.normal(value) if size else value) / claim.expected_batch
        for name, value in summed.items()
    }


def passes(units: Sequence[Unit], most: int) -> Iterator[list[Unit]]:
    """Yield units that share a pass, of `most` places at most, shortest first; one too large comes alone."""
    group: list[Unit] = []
    for unit in sorted(filter(None, units), key=lambda unit: max(_length(piece) for piece in unit)):
        if group and not _fits([piece for each in [*group, unit] for piece in each], most):
            yield group
            group = []
        group.append(unit)
    if group:
        yield group


def _fits(pieces: Unit, most: int) -> bool:
    return len(pieces) * max(map(_length, pieces)) <= most


def _length(piece: Piece) -> int:
    return len(piece.example.inputs)


def _most(lm: LM) -> int:
    return max(1, (ON_CPU if lm.device.type == "cpu" else ELSEWHERE) // len(lm.tokenizer))


def _losses(lm: LM, pieces: Sequence[Piece]) -> Tensor:
    return losses(lm, [piece.example for piece in pieces], [piece.weights for piece in pieces])
