"""Losses and divergences of language models on examples: what is trained on, and what is compared.

All of it stands on `LM.predictions`, so it holds for any kind of model. Everything is differentiable.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from uptake.lm.base import LM
from uptake.lm.capabilities import SelectedPlaces
from uptake.lm.examples import Example

_PLACES = 64  # whose divergence is computed at once: in float64 a large vocabulary needs much memory


def losses(lm: LM, examples: Sequence[Example], weights: Sequence[Tensor] | None = None) -> Tensor:
    """Return each example's mean negative log-likelihood a target token, in nats, [examples].

    Example i goes by row i where the LM has rows; one forward pass. `weights[i]`, [targets], says how
    much each token counts; the mean is over the tokens, not over the weights.
    """
    return weighted(lm.token_log_probs(examples), weights)


def weighted(log_probs: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Tensor:
    """Return what `losses` does, from the log-probabilities of each example's target, [targets]."""
    if weights is None:
        return torch.stack([-each.mean() for each in log_probs])
    return torch.stack([-(each * own).mean() for each, own in zip(log_probs, weights, strict=True)])


def token_log_probs_at(lm: LM, example: Example, places: Tensor) -> Tensor:
    """Return the log-probabilities of these tokens of an example's target alone, [places]; differentiable.

    An LM that can leave out the other places does (`SelectedPlaces`): a large vocabulary is dear.
    """
    selected = lm.capable(SelectedPlaces)
    if selected is None or lm.rows is not None:
        return lm.token_log_probs([example])[0][places]
    ids = torch.tensor([example.inputs], device=lm.device)
    before = len(example.inputs) - len(example.target)
    targets = torch.tensor(example.target, device=lm.device)[places]
    return selected.step_at(ids, places + before)[0].gather(-1, targets[:, None])[:, 0]


def shares(losses: Tensor, examples: Sequence[Example]) -> Tensor:
    """Return the part of each example, [examples], in the mean loss over the target tokens of all of them."""
    counts = losses.new_tensor([len(example.target) for example in examples])
    return losses * counts / counts.sum()


def per_token(losses: Tensor, examples: Sequence[Example]) -> Tensor:
    """Return the mean loss over the target tokens of all examples."""
    return shares(losses, examples).sum()


def divergence(before: Tensor, after: Tensor) -> Tensor:
    """Return KL(before || after), in nats, [...], of log-probabilities [..., vocabulary]."""
    share = before.exp()
    # What `before` rules out costs nothing, whatever `after` says of it.
    return (share * torch.where(share > 0, before - after, 0.0)).sum(-1)


def kl(base: LM, other: LM, examples: Sequence[Example], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return KL(base || other) at each place of each example's target, [targets], in nats.

    `base` is taken as it is: gradients go to `other` alone. `dtype` is what it is computed in, the
    log-probabilities' own if none.
    """
    with torch.no_grad():
        before = base.predictions(examples)
    after = other.predictions(examples)
    return [divergences(p, q, dtype or q.dtype) for p, q in zip(before, after, strict=True)]


def divergences(before: Tensor, after: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `divergence` computed in `dtype`, some places at a time."""
    parts = zip(torch.split(before, _PLACES), torch.split(after, _PLACES), strict=True)
    return torch.cat([divergence(p.to(dtype), q.to(dtype)) for p, q in parts])
