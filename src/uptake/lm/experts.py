"""Several LMs as experts of one mixture, whose weights follow how well each has predicted the text so far.

The weights obey Bayes' rule with switching, "fixed share" (Herbster & Warmuth 1998): after each token a share
of the weight is dealt out anew, as the prior says. Under log loss this is exact inference in a hidden Markov
model whose state is the expert; the right share is inferred beside it, from a few candidates.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable import Trainable, TrainableCopy
from uptake.errors import BadInput
from uptake.lm.base import LM, Cache, Scores, Segment, Wrapper
from uptake.lm.examples import Example
from uptake.lm.wrappers import all_or_none


@dataclass(frozen=True)
class FixedShare:
    """How the weights of experts begin and change.

    `prior` gives each expert its weight before the first token, `shares` the candidates for the share of the
    weight that is dealt out anew at each token, equally likely at first: 0 is Bayes' rule itself, 1 gives
    each expert its prior at every token.
    Against any sequence of experts with m switches over T tokens a text costs at most `worst_case` bits more.
    """

    prior: tuple[float, ...]
    shares: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        if not self.prior or min(self.prior) <= 0 or not math.isclose(sum(self.prior), 1.0):
            raise BadInput(f"prior {self.prior}: give each expert a probability above 0, adding up to 1")
        if not self.shares or not all(0 <= share <= 1 for share in self.shares):
            raise BadInput(f"shares {self.shares}: use one or more numbers from 0 to 1")
        if len(set(self.shares)) < len(self.shares):
            raise BadInput(f"shares {self.shares}: name each once")

    def worst_case(self, experts: Sequence[int]) -> float:
        """Return how many bits a text can cost more than under this sequence of experts, one a token."""
        if not experts:
            return 0.0
        costs = [self._cost(experts, share) for share in self.shares]
        return math.log2(len(self.shares)) - math.log2(self.prior[experts[0]]) + min(costs)

    def _cost(self, experts: Sequence[int], share: float) -> float:
        bits = 0.0
        for before, after in itertools.pairwise(experts):
            chance = share * self.prior[after] + (1 - share) * (before == after)
            bits += -math.log2(chance) if chance else math.inf
        return bits

    def start(self, device: torch.device) -> Tensor:
        """Return the log-weights before the first token, float64 [shares, experts]."""
        prior = torch.tensor(self.prior, dtype=torch.float64, device=device).log()
        return (prior - math.log(len(self.shares))).expand(len(self.shares), -1)

    def after(self, weights: Tensor, log_probs: Tensor) -> Tensor:
        """Return the log-weights after a token with these log-probabilities [.., experts], 0 for no token."""
        weights = weights + log_probs.double()[..., None, :]
        # Each share's weights end up adding to its likelihood; all of them to 1.
        weights = weights - weights.logsumexp((-2, -1), keepdim=True)
        if self.shares == (0.0,):
            return weights
        share = torch.tensor(self.shares, dtype=torch.float64, device=weights.device)[:, None]
        prior = torch.tensor(self.prior, dtype=torch.float64, device=weights.device).log()
        anew = share.log() + prior + weights.logsumexp(-1, keepdim=True)
        return torch.logaddexp(torch.log1p(-share) + weights, anew)

    def along(self, weights: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts' log-weights before each token, [.., time, experts], and those after the last.

        `weights` is [.., shares, experts], `log_probs` of the tokens [.., time, experts].
        """
        before = []
        for place in range(log_probs.shape[-2]):
            before.append(weights.logsumexp(-2))
            weights = self.after(weights, log_probs[..., place, :])
        whole = torch.stack(before, -2) if before else log_probs.double()
        return whole, weights


class MixtureCache(NamedTuple):
    """A text under way: the log-weights [batch, shares, experts] before the last token that each expert
    predicted, and these predictions, [batch, experts, vocabulary], None before the first token."""

    weights: Tensor
    said: Tensor | None


def mixed_step(
    sharing: FixedShare,
    parts: Tensor,
    ids: Tensor,
    known: MixtureCache,
    lengths: Sequence[int] | None = None,
) -> tuple[Tensor, MixtureCache]:
    """Return the mixture's log-probabilities after each of `ids` [batch, time], and what is known then.

    `parts` are the experts' own, [batch, experts, time, vocabulary]; `lengths` as in `LM.step`.
    """
    ahead = of_tokens(parts[:, :, :-1], ids[:, 1:])
    if lengths is not None:
        # No token of padding was predicted, nor was a row's first one.
        gaps = ids.shape[1] - torch.tensor(lengths, device=ids.device)[:, None]
        own = torch.arange(1, ids.shape[1], device=ids.device) > gaps
        ahead = torch.where(own[..., None], ahead, 0.0)
    first = known.weights
    if known.said is not None:
        first = sharing.after(first, of_tokens(known.said[:, :, None], ids[:, :1])[:, 0])
    along, weights = sharing.along(first, ahead)
    along = torch.cat([along, weights.logsumexp(-2)[:, None]], 1)
    return mixed(parts.unbind(1), along), MixtureCache(weights, parts[:, :, -1])


class Experts(Wrapper):
    """A mixture of LMs over one tokenizer by `FixedShare`; the first is the LM that the others adapt.

    In `score` and `predictions` only the target's tokens change the weights; in `step`, and so in
    generation, every token since the start does.
    """

    def __init__(self, experts: Sequence[LM], sharing: FixedShare) -> None:
        if len(experts) != len(sharing.prior):
            raise BadInput(f"{len(experts)} models for a prior over {len(sharing.prior)}: give one each")
        super().__init__(experts[0])
        self.experts, self.sharing = list(experts), sharing
        self.rows = next((expert.rows for expert in experts if expert.rows is not None), None)
        self.has_step = all(expert.has_step for expert in experts)

    def around(self, inner: LM) -> Self:
        return type(self)([inner, *self.experts[1:]], self.sharing)

    def at(self, rows: Sequence[int]) -> LM:
        return Experts([expert.at(rows) for expert in self.experts], self.sharing)

    def max_input_tokens(self, row: int) -> int:
        return min(expert.max_input_tokens(row) for expert in self.experts)

    def overlay(self, delta: Delta) -> LM:
        return Experts([expert.overlay(delta) for expert in self.experts], self.sharing)

    def trainable_copy(
        self, trainable: Trainable, start: Delta, generator: torch.Generator
    ) -> tuple[LM, TrainableCopy]:
        raise BadInput("a mixture has no one set of weights to train: train its parts, then mix them")

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> LM:
        raise BadInput("a mixture has no one set of weights: give them to its parts")

    def start(self) -> Cache:
        caches = all_or_none([expert.start() for expert in self.experts])
        return None if caches is None else (caches, None)

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        caches, known = cache if cache is not None else ([None] * len(self.experts), None)
        stepped = [expert.step(ids, kept, lengths) for expert, kept in zip(self.experts, caches, strict=True)]
        parts = torch.stack([log_probs for log_probs, _ in stepped], 1)  # [batch, experts, time, vocabulary]
        if known is None:
            known = MixtureCache(self.sharing.start(ids.device).expand(len(ids), -1, -1), None)
        found, known = mixed_step(self.sharing, parts, ids, known, lengths)
        return found, None if cache is None else ([each for _, each in stepped], known)

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        parts = [expert.predictions(examples) for expert in self.experts]
        found = []
        for example, *own in zip(examples, *parts, strict=True):
            targets = torch.tensor(example.target, dtype=torch.long, device=own[0].device)[None]
            along = self._along(of_tokens(torch.stack(own)[None], targets)[0])
            found.append(mixed(own, along))
        return found

    def token_log_probs(self, examples: Sequence[Example]) -> list[Tensor]:
        parts = [expert.token_log_probs(examples) for expert in self.experts]
        return [self._of_tokens(own) for own in zip(*parts, strict=True)]

    def score(self, segments: Sequence[Segment], batch_tokens: int | None = None) -> list[Scores]:
        """As LM.score; the weights start at the prior with each segment and follow its tokens alone."""
        parts = [expert.score(segments, batch_tokens) for expert in self.experts]
        return [
            replace(own[0], log_probs=self._of_tokens([each.log_probs for each in own]))
            for own in zip(*parts, strict=True)
        ]

    def _of_tokens(self, log_probs: Sequence[Tensor]) -> Tensor:
        """Return the mixture's log-probability of each token from the experts' own, [tokens] each."""
        along = self._along(torch.stack([*log_probs], -1))
        return mixed([each[:, None] for each in log_probs], along)[:, 0]

    def _along(self, log_probs: Tensor) -> Tensor:
        """Return the experts' log-weights before each token of a text, [tokens, experts] as `log_probs`."""
        return self.sharing.along(self.sharing.start(log_probs.device), log_probs)[0]


def of_tokens(log_probs: Tensor, ids: Tensor) -> Tensor:
    """Return the experts' values of tokens, [batch, time, experts], of [batch, experts, time, vocabulary]."""
    places = ids[:, None, :, None].expand(-1, log_probs.shape[1], -1, -1)
    return log_probs.gather(-1, places)[..., 0].transpose(1, 2)


def mixed(parts: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return the log of the weighted sum of probabilities, the first expert's own where all of them agree.

    `parts` are [.., vocabulary], one an expert, `weights` their logarithms [.., experts].
    """
    first = parts[0]
    weights = weights.to(first.dtype)
    mixed = first + weights[..., :1]
    alike = torch.ones_like(first, dtype=torch.bool)
    for place, part in enumerate(parts[1:], 1):
        mixed = torch.logaddexp(mixed, part + weights[..., place : place + 1])
        alike &= part == first
    return torch.where(alike, first, mixed)
