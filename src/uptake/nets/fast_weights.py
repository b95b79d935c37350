"""Fast weight layers (Clark et al. 2022, arXiv 2212.02475): a gradient step written as linear attention.

A block on top of a transformer's last hidden states. A slow pass finds, for every position, the
gradient of that position's loss with respect to the block's weights. A fast pass answers at every
position as one gradient step on all positions before it would, without ever taking the step: the
gradient of a weight matrix is a sum of outer products, so moving the matrix is attention without a
softmax, causal and in linear time. Everything is differentiable, through the gradients too.

It knows nothing of tokens or texts: hidden states, labels and an unembedding come in.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

# Large for a norm: a layer that has hardly learnt anything says hardly anything.
EPSILON = 1.0
# Every learning rate begins at 0.01, as published, on the sum of the losses over this constant.
FIRST_RATE, NORMALISER = 0.01, 100.0
QUICK = 100.0  # how much faster than a weight the logarithm of a rate moves in training
FEATURES = 100.0  # mean square norm of fresh features
THRESHOLD = 1.5  # standard deviations of its input that a fresh feature waits for


class Unembedding(NamedTuple):
    """What turns hidden states into logits: weight [vocabulary, width], bias [vocabulary] or None."""

    weight: Tensor
    bias: Tensor | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., vocabulary], computed in the weight's precision, in at least float32."""
        logits = functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        return logits.float() if logits.dtype.itemsize < 4 else logits


class Keys(NamedTuple):
    """The gradient of each position's loss, in factors: inputs, and gradients of outputs, [batch, time, ...].

    The gradient of `first` is `inputs` times `at_first`, of `first_bias` `at_first`; of `second` and
    `second_bias` likewise `features` and `at_second`; of `gain` it is `at_gain`, of `bias` `at_bias`.
    """

    inputs: Tensor
    at_first: Tensor
    features: Tensor
    at_second: Tensor
    at_gain: Tensor
    at_bias: Tensor

    def part(self, start: int, end: int) -> "Keys":
        return Keys(*(tensor[:, start:end] for tensor in self))

    def sums(self) -> dict[str, Tensor]:
        """Return the gradient of these positions' summed loss, by parameter, [batch, ...]."""
        return {
            "first": self.inputs.mT @ self.at_first,
            "first_bias": self.at_first.sum(1),
            "second": self.features.mT @ self.at_second,
            "second_bias": self.at_second.sum(1),
            "gain": self.at_gain.sum(1),
            "bias": self.at_bias.sum(1),
        }


class FastWeights(nn.Module):
    """Dense width -> hidden, ReLU squared, dense hidden -> width, layer norm; added to what comes in.

    `second` is zero at first: untrained and with nothing read, what comes in goes out. `log_rates` are
    the logarithms of the learnt step sizes, one a parameter, over QUICK; the steps are on the *sum* of
    the losses: with a mean, what a token teaches would depend on how long the text is. `pace` times
    them all; 0 is the slow weights alone, without a slow pass. `chunk` positions are attended to at
    once; it changes only the cost.
    """

    def __init__(self, width: int, hidden: int | None = None, chunk: int = 64, pace: float = 1.0) -> None:
        super().__init__()
        hidden = hidden or 4 * width
        self.chunk, self.pace = chunk, pace
        self.first = nn.Parameter(torch.randn(width, hidden) / width**0.5)
        self.first_bias = nn.Parameter(torch.zeros(hidden))
        self.second = nn.Parameter(torch.zeros(hidden, width))
        self.second_bias = nn.Parameter(torch.zeros(width))
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        names = [name for name, _ in self.named_parameters(recurse=False)]
        rates = {name: FIRST_RATE / NORMALISER / (width if name == "first" else 1) for name in names}
        self.log_rates = nn.ParameterDict(
            {name: torch.tensor(math.log(rate) / QUICK) for name, rate in rates.items()}
        )

    @torch.no_grad()
    def fit(self, hidden: Tensor) -> None:
        """Make of random features such as tell hidden states like these, [number, width], apart.

        Hidden states vary a thousand times more along some directions than along others; along those
        any two are alike, and what one position learns would reach them all. Half of that is taken
        away, and each feature answers to one in fifteen of them.
        """
        mean = hidden.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(hidden.T, correction=0))
        halfway = vectors * values.clamp(min=1e-5 * values[-1]) ** -0.25
        first = halfway @ vectors.T @ self.first
        z = (hidden - mean) @ first
        z, first = z / z.std(), first / z.std()
        size = ((z - THRESHOLD).relu().pow(4).sum(-1).mean() / FEATURES) ** 0.25
        self.first.copy_(first / size)
        self.first_bias.copy_(-(mean @ first + THRESHOLD) / size)

    @property
    def rates(self) -> dict[str, Tensor]:
        return {name: self.pace * (QUICK * log_rate).exp() for name, log_rate in self.log_rates.items()}

    def start(self, rows: int) -> dict[str, Tensor]:
        """Return the sums of having read nothing, [rows, ...] for each parameter."""
        own = self.named_parameters(recurse=False)
        return {name: torch.zeros_like(own).expand(rows, *own.shape) for name, own in own}

    def forward(
        self, hidden: Tensor, labels: Tensor, unembedding: Unembedding, sums: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what goes to the unembedding, [batch, time, width], and the sums after these positions.

        hidden is [batch, time, width], labels [batch, time], the token after each position; the last
        positions' labels may not be known yet and be left out.
        """
        if self.pace == 0:
            return self.still(hidden), dict(sums)
        return self.fast(hidden, self.slow(hidden[:, : labels.shape[1]], labels, unembedding), sums)

    def learn(
        self, hidden: Tensor, labels: Tensor, unembedding: Unembedding, sums: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the sums after these positions, to the bit those that `forward` returns."""
        if self.pace == 0:
            return dict(sums)
        keys = self.slow(hidden, labels, unembedding)
        for start in range(0, hidden.shape[1], self.chunk):
            sums = add(sums, keys.part(start, start + self.chunk))
        return dict(sums)

    def slow(self, hidden: Tensor, labels: Tensor, unembedding: Unembedding) -> Keys:
        """Return what each position's loss asks of the weights, by the slow weights alone."""
        z = (hidden @ self.first + self.first_bias).relu()
        features = z.square()
        normal, scale = _normalised(features @ self.second + self.second_bias)
        logits = unembedding.logits(hidden + self.gain * normal + self.bias)
        # The gradient of log-softmax: the probabilities, less one at the label.
        matrix = unembedding.weight
        at_bias = (logits.softmax(-1).to(matrix.dtype) @ matrix - matrix[labels]).to(hidden.dtype)
        at_normal = at_bias * self.gain
        along = (at_normal * normal).mean(-1, keepdim=True)
        at_second = scale * (at_normal - at_normal.mean(-1, keepdim=True) - normal * along)
        at_first = (at_second @ self.second.mT) * (2 * z)
        return Keys(hidden, at_first, features, at_second, at_bias * normal, at_bias)

    def fast(
        self, hidden: Tensor, keys: Keys, sums: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Answer position t with the weights one step along `sums` and the keys before t."""
        known, parts = keys.inputs.shape[1], []
        for start in range(0, hidden.shape[1], self.chunk):
            end = start + self.chunk
            parts.append(self._chunk(hidden[:, start:end], keys.part(start, min(end, known)), sums))
            sums = add(sums, keys.part(start, end))
        return torch.cat(parts, 1), dict(sums)

    def still(self, hidden: Tensor) -> Tensor:
        """Return what goes to the unembedding by the slow weights alone."""
        features = (hidden @ self.first + self.first_bias).relu().square()
        normal, _ = _normalised(features @ self.second + self.second_bias)
        out: Tensor = hidden + self.gain * normal + self.bias
        return out

    def _chunk(self, hidden: Tensor, keys: Keys, sums: Mapping[str, Tensor]) -> Tensor:
        rate, known = self.rates, keys.inputs.shape[1]
        now = {name: getattr(self, name) - rate[name] * total for name, total in sums.items()}
        before = torch.ones(hidden.shape[1], known, dtype=hidden.dtype, device=hidden.device).tril(-1)
        # A bias is a weight whose input is always one: its rate joins the products of inputs.
        reach = (rate["first"] * (hidden @ keys.inputs.mT) + rate["first_bias"]) * before
        z = hidden @ now["first"] + now["first_bias"][:, None] - reach @ keys.at_first
        features = z.relu().square()
        reach = (rate["second"] * (features @ keys.features.mT) + rate["second_bias"]) * before
        z = features @ now["second"] + now["second_bias"][:, None] - reach @ keys.at_second
        normal, _ = _normalised(z)
        gain = now["gain"][:, None] - rate["gain"] * (before @ keys.at_gain)
        bias = now["bias"][:, None] - rate["bias"] * (before @ keys.at_bias)
        out: Tensor = hidden + gain * normal + bias
        return out


def add(sums: Mapping[str, Tensor], keys: Keys) -> dict[str, Tensor]:
    """Return the sums with these positions' gradients on top, in the sums' own precision."""
    return {name: sums[name] + more for name, more in keys.sums().items()}


def _normalised(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return z at mean 0 and variance 1 over its last dimension, and what it was multiplied by."""
    z = z - z.mean(-1, keepdim=True)
    scale = (z.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    return z * scale, scale
