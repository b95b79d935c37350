"""An energy over bits and how it is trained: ALOE, persistent Gibbs sampling, ratio matching.

p(x) is proportional to exp(f(x)) for a network f. Likelihood needs samples of p; ALOE (Dai et al. 2020)
draws them from a sampler it learns: a first guess bit by bit, then up to `most` bits changed by an
editor that also decides when to stop, then a sweep of Gibbs sampling. The sampler is trained to give what
the sweep gave: power iteration. Its density is a sum over all ways of edits; the sum is estimated from ways
that a simple proposal draws backwards, weighted by importance. Persistent contrastive divergence (Tieleman
2008) keeps Gibbs chains instead; ratio matching (Hyvarinen 2007), score matching for bits, draws no samples.
"""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


def network(inputs: int, hidden: int, outputs: int, layers: int) -> nn.Sequential:
    sizes = [inputs, *[hidden] * layers]
    parts = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), nn.ELU())]
    return nn.Sequential(*parts, nn.Linear(hidden, outputs))


class Energy(nn.Module):
    """f of bits [N, D]: a network of three hidden layers, [N]. The model's law is exp(f) / Z."""

    def __init__(self, bits: int, hidden: int) -> None:
        super().__init__()
        self.net = network(bits, hidden, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x)[:, 0]
        return found


@torch.no_grad()
def sweep(energy: nn.Module, x: Tensor, draw: torch.Generator) -> Tensor:
    """Return x [N, D] after each bit in turn was drawn anew given all others: p stays p."""
    x, score = x.clone(), energy(x)
    for bit in range(x.shape[1]):
        other = x.clone()
        other[:, bit] = 1 - other[:, bit]
        changed = energy(other)
        taken = torch.rand(len(x), generator=draw, dtype=x.dtype) < flip_probability(score, changed)
        x, score = torch.where(taken[:, None], other, x), torch.where(taken, changed, score)
    return x


def flip_probability(score: Tensor, changed: Tensor) -> Tensor:
    """Return the chance that Gibbs sampling changes a bit, of f before and after it."""
    return torch.sigmoid(changed - score)


def contrast(energy: nn.Module, data: Tensor, negatives: Tensor) -> Tensor:
    """Return the loss whose mean gradient, for negatives of the model's law, is that of -log likelihood."""
    scores = energy(torch.cat([data, negatives]))
    return scores[len(data) :].mean() - scores[: len(data)].mean()


def flipped(x: Tensor) -> Tensor:
    """Return [N, D, D]: x with each of its bits changed."""
    one = torch.eye(x.shape[1], dtype=x.dtype)
    return x[:, None] * (1 - one) + (1 - x[:, None]) * one


def ratio_matching(energy: nn.Module, data: Tensor) -> Tensor:
    """Return the mean over data of the sum over bits of (1 / (1 + p(x) / p(x with the bit changed))) ** 2."""
    count, bits = data.shape
    others = energy(flipped(data).reshape(-1, bits)).view(count, bits)
    return flip_probability(energy(data)[:, None], others).square().sum(1).mean()


@dataclass(frozen=True)
class Ways:
    """How samples came about: each its first guess, and the bits changed one after another.

    `edits` [N, L] names them, in the first `lengths` [N] places of each row; the rest is 0.
    """

    start: Tensor  # [N, D]
    edits: Tensor
    lengths: Tensor

    def states(self) -> Tensor:
        """Return [N, L + 1, D]: the sample before each edit, and after all; the rest is the last."""
        made = torch.zeros(*self.edits.shape, self.start.shape[1], dtype=self.start.dtype)
        real = torch.arange(self.edits.shape[1]) < self.lengths[:, None]
        made.scatter_(2, self.edits[:, :, None], real[:, :, None].to(made.dtype))
        turned = torch.cat([self.start[:, None], made], 1).cumsum(1)
        return torch.remainder(turned, 2)

    def end(self) -> Tensor:
        return self.states()[:, -1]


class Sampler(nn.Module):
    """q: a first guess bit by bit, then an editor; the density of a way is known, of its end it is a sum."""

    def __init__(self, bits: int, hidden: int, most: int) -> None:
        super().__init__()
        self.bits, self.most = bits, most
        own = hidden // 4  # units of each bit's network, which are many
        self.inner = nn.Parameter(torch.randn(bits, bits, own) / bits**0.5)  # of bit, from bit, unit
        self.bias = nn.Parameter(torch.zeros(bits, own))
        self.outer = nn.Parameter(torch.randn(bits, own) / own**0.5)
        self.offset = nn.Parameter(torch.zeros(bits))
        self.place = network(bits, hidden, bits, 2)
        self.stop = network(bits, hidden, 1, 2)
        self.register_buffer("before", torch.tril(torch.ones(bits, bits), -1)[:, :, None])

    def first_log_prob(self, x: Tensor) -> Tensor:
        """Return [N]: log q of first guesses x [N, D]."""
        inner = (self.inner * self.before).permute(1, 0, 2).flatten(1)
        units = functional.elu(torch.addmm(self.bias.flatten(), x, inner)).view(len(x), *self.bias.shape)
        logits = (units * self.outer).sum(2) + self.offset
        return -functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)

    @torch.no_grad()
    def first(self, count: int, draw: torch.Generator) -> Tensor:
        """Return [count, D] first guesses."""
        x = torch.zeros(count, self.bits, dtype=self.bias.dtype)
        for bit in range(self.bits):
            inner = x[:, :bit] @ self.inner[bit, :bit] + self.bias[bit]
            chance = torch.sigmoid(functional.elu(inner) @ self.outer[bit] + self.offset[bit])
            x[:, bit] = (torch.rand(count, generator=draw, dtype=x.dtype) < chance).to(x.dtype)
        return x

    @torch.no_grad()
    def sample(self, count: int, draw: torch.Generator) -> Ways:
        """Return ways drawn from q; after `most` edits a sample always stops."""
        start = self.first(count, draw)
        x, edits = start.clone(), torch.zeros(count, self.most, dtype=torch.long)
        lengths = torch.zeros(count, dtype=torch.long)
        going = torch.arange(count)
        for turn in range(self.most):
            chance = torch.sigmoid(self.stop(x[going])[:, 0])
            going = going[torch.rand(len(going), generator=draw, dtype=x.dtype) >= chance]
            if not len(going):
                break
            bit = torch.multinomial(self.place(x[going]).softmax(1), 1, generator=draw)[:, 0]
            x[going, bit] = 1 - x[going, bit]
            edits[going, turn], lengths[going] = bit, turn + 1
        return Ways(start, edits, lengths)

    def log_prob(self, ways: Ways) -> Tensor:
        """Return [N]: log q of each way, its first guess, its edits and its stop."""
        turns = torch.arange(ways.edits.shape[1] + 1)
        edited = turns < ways.lengths[:, None]  # before these states' edits
        stopped = (turns == ways.lengths[:, None]) & (turns < self.most)  # after the last nobody asks
        rows, at = (edited | stopped).nonzero(as_tuple=True)
        states = ways.states()[rows, at]
        goes_on = edited[rows, at]
        stop = self.stop(states)[:, 0]
        chosen = functional.logsigmoid(torch.where(goes_on, -stop, stop))
        bits = ways.edits[rows[goes_on], at[goes_on]]
        placed = self.place(states[goes_on]).log_softmax(1).gather(1, bits[:, None])[:, 0]
        total = self.first_log_prob(ways.start).index_add(0, rows, chosen)
        return total.index_add(0, rows[goes_on], placed)


STOP = 0.5  # of the proposal, after each edit


def propose(ends: Tensor, most: int, draw: torch.Generator) -> tuple[Ways, Tensor]:
    """Return ways that end at `ends` [N, D], drawn backwards, and the log chance [N] of each.

    The number of edits is geometric, cut at `most`; their bits are uniform, with replacement, so that every
    way has its chance and the mean weight of the importance estimate is the density itself.
    """
    count, bits = ends.shape
    asked = torch.rand(count, most, generator=draw) < STOP
    lengths = torch.where(asked.any(1), asked.int().argmax(1), torch.tensor(most))
    longest = int(lengths.max())
    edits = torch.randint(bits, (count, longest), generator=draw)
    edits *= torch.arange(longest) < lengths[:, None]
    start = Ways(ends, edits, lengths).end()  # an edit undoes itself, in any order
    return Ways(start, edits, lengths), proposal_log_prob(lengths, bits, most)


def proposal_log_prob(lengths: Tensor, bits: int, most: int) -> Tensor:
    """Return the log chance that `propose` draws a way of each length."""
    stop = torch.log(torch.tensor(STOP, dtype=torch.float64)) * (lengths < most)
    going = torch.log(torch.tensor((1 - STOP) / bits, dtype=torch.float64)) * lengths
    return (stop + going).to(torch.get_default_dtype())


def weights(sampler: Sampler, ways: Ways, proposed: Tensor, each: int) -> tuple[Tensor, Tensor]:
    """Return log q [N, each] of ways and their importance weights, of sum 1 for each of the N ends."""
    log_q = sampler.log_prob(ways).view(-1, each)
    return log_q, (log_q.detach() - proposed.view(-1, each)).softmax(1)


def power_iteration(sampler: Sampler, ends: Tensor, each: int, draw: torch.Generator) -> Tensor:
    """Return the loss of -log q(ends): its gradient is the weighted mean over `each` proposed ways an end."""
    ways, proposed = propose(ends.repeat_interleave(each, 0), sampler.most, draw)
    log_q, weight = weights(sampler, ways, proposed, each)
    return -(weight * log_q).sum(1).mean()
