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
from itertools import zip_longest
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

# Large for a norm: a layer that has hardly learnt anything says hardly anything.
EPSILON = 1.0
# Every learning rate begins at 0.01, as published, on the sum of the losses over this constant.
FIRST_RATE, NORMALISER = 0.01, 100.0
QUICK = 20.0  # how much faster than a weight the logarithm of a rate moves in training
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

    def split(self, size: int) -> list["Keys"]:
        # Slices one by one would each cost a gradient of the whole length.
        parts = [torch.split(tensor, size, 1) for tensor in self]
        return [Keys(*part) for part in zip(*parts, strict=True)]

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
    the logarithms of the learnt step sizes over QUICK: of a matrix, one an input (the last is the
    bias's, a weight whose input is always one) and one an output, whose product it is; of gain and
    bias one a dimension. The steps are on the *sum* of the losses: with a mean, what a token teaches
    would depend on how long the text is. `pace` times them all; 0 is the slow weights alone, without a
    slow pass. `chunk` positions are attended to at once; it changes only the cost.
    """

    def __init__(
        self, width: int, hidden: int | None = None, chunk: int | None = None, pace: float = 1.0
    ) -> None:
        super().__init__()
        hidden = hidden or 4 * width
        # A chunk costs the layer's size once, and each position in it as much as the chunk is long.
        self.chunk, self.pace = chunk or max(128, width // 4), pace
        self.first = nn.Parameter(torch.randn(width, hidden) / width**0.5)
        self.first_bias = nn.Parameter(torch.zeros(hidden))
        self.second = nn.Parameter(torch.zeros(hidden, width))
        self.second_bias = nn.Parameter(torch.zeros(width))
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        sizes = {"gain": width, "bias": width}
        for name, inputs, outputs in (("first", width, hidden), ("second", hidden, width)):
            sizes |= {f"{name}_in": inputs + 1, f"{name}_out": outputs}
        every = math.log(FIRST_RATE / NORMALISER)
        begin = {name: torch.full((size,), every / (2 if "_" in name else 1)) for name, size in sizes.items()}
        begin["first_in"][:-1] -= math.log(width)
        self.log_rates = nn.ParameterDict({name: nn.Parameter(own / QUICK) for name, own in begin.items()})

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
        """Return the step size of every weight, by parameter, in a shape that fits the parameter's."""
        factor = self._factors()
        rates = {name: factor[name] for name in ("gain", "bias")}
        for name in ("first", "second"):
            inputs, outputs = factor[f"{name}_in"], factor[f"{name}_out"]
            rates |= {name: inputs[:-1, None] * outputs, f"{name}_bias": inputs[-1] * outputs}
        return rates

    def _factors(self) -> dict[str, Tensor]:
        factors = {name: (QUICK * log_rate).exp() for name, log_rate in self.log_rates.items()}
        return {n: own if n.endswith("_in") else self.pace * own for n, own in factors.items()}

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
        for keys in self.slow(hidden, labels, unembedding).split(self.chunk):
            sums = add(sums, keys)
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
        rates, factors, parts = self.rates, self._factors(), []
        known = keys.split(self.chunk)
        none = Keys(*(tensor[:, :0] for tensor in keys))
        for here, these in zip_longest(torch.split(hidden, self.chunk, 1), known, fillvalue=none):
            assert isinstance(here, Tensor) and isinstance(these, Keys)
            now = {n: torch.addcmul(getattr(self, n), sums[n], rates[n], value=-1) for n in rates}
            parts.append(_chunk(here, these, now, factors))
            sums = add(sums, these)
        return torch.cat(parts, 1), dict(sums)

    def still(self, hidden: Tensor) -> Tensor:
        """Return what goes to the unembedding by the slow weights alone."""
        features = (hidden @ self.first + self.first_bias).relu().square()
        normal, _ = _normalised(features @ self.second + self.second_bias)
        out: Tensor = hidden + self.gain * normal + self.bias
        return out


def _chunk(hidden: Tensor, keys: Keys, now: Mapping[str, Tensor], factor: Mapping[str, Tensor]) -> Tensor:
    """Answer with the weights `now`, [batch, ...], and a step along the keys before each position."""
    shape = hidden.shape[1], keys.inputs.shape[1]
    before = torch.ones(shape, dtype=hidden.dtype, device=hidden.device).tril(-1)

    def layer(name: str, inputs: Tensor, known: Tensor, at: Tensor) -> Tensor:
        each, outputs = factor[f"{name}_in"], factor[f"{name}_out"]
        reach = ((inputs * each[:-1]) @ known.mT + each[-1]) * before
        return inputs @ now[name] + now[f"{name}_bias"][:, None] - (reach @ at) * outputs

    features = layer("first", hidden, keys.inputs, keys.at_first).relu().square()
    normal, _ = _normalised(layer("second", features, keys.features, keys.at_second))
    gain = now["gain"][:, None] - factor["gain"] * (before @ keys.at_gain)
    bias = now["bias"][:, None] - factor["bias"] * (before @ keys.at_bias)
    return hidden + gain * normal + bias


def add(sums: Mapping[str, Tensor], keys: Keys) -> dict[str, Tensor]:
    """Return the sums with these positions' gradients on top, in the sums' own precision."""
    return {name: sums[name] + more for name, more in keys.sums().items()}


def _normalised(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return z at mean 0 and variance 1 over its last dimension, and what it was multiplied by."""
    z = z - z.mean(-1, keepdim=True)
    scale = (z.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    return z * scale, scale
