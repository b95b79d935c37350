"""Fast weight layers (Clark et al. 2022, arXiv 2212.02475): a gradient step written as linear attention.

A block on top of a transformer's last hidden states. A slow pass finds, for every position, the
gradient of that position's loss with respect to the block's weights. A fast pass answers at every
position as one gradient step on all positions before it would, without ever taking the step: the
gradient of a weight matrix is a sum of outer products, so moving the matrix is attention without a
softmax, causal and in linear time. Everything is differentiable, through the gradients too.

A step taken once asks each thing anew however often it was asked before. So a long text is read in
stretches, and the slow pass of each stands on the weights that the stretches before it left: one
step a stretch, as dynamic evaluation takes them, and inside a stretch the attention of the paper.

It knows nothing of tokens or texts: hidden states, labels and an unembedding come in.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from uptake.lm.capabilities import Unembedding

# Large for a norm: a layer that has hardly learnt anything says hardly anything.
EPSILON = 1.0
# Every learning rate begins at this, on the sum of the losses.
FIRST_RATE = 3e-3
RATE_SPEED = 20.0  # how much faster than a weight the logarithm of a rate moves in training
LENGTH = 10.0  # of every position's features
THRESHOLD = 1.5  # standard deviations of its input that a fresh feature waits for
FAST = ("second", "second_bias", "gain", "bias")  # the weights that learn as the text is read


class PositionGradients(NamedTuple):
    """The gradient of each position's loss, in factors, [batch, time, ...].

    The gradient of `second` is `features` times `at_second`, of `second_bias` `at_second`; of `gain` it
    is `at_gain`, of `bias` `at_bias`.
    """

    features: Tensor
    at_second: Tensor
    at_gain: Tensor
    at_bias: Tensor

    def sums(self) -> dict[str, Tensor]:
        """Return the gradient of these positions' summed loss, by parameter, [batch, ...]."""
        return {
            "second": self.features.mT @ self.at_second,
            "second_bias": self.at_second.sum(1),
            "gain": self.at_gain.sum(1),
            "bias": self.at_bias.sum(1),
        }


@dataclass(frozen=True)
class Sums:
    """What was read: gradients summed by parameter of FAST, [batch, ...], and how many tokens they are of.

    `settled` are those of whole stretches, `recent` those of the stretch under way.
    """

    settled: dict[str, Tensor]
    recent: dict[str, Tensor]
    count: int = 0


class FastWeights(nn.Module):
    """Dense width -> hidden, ReLU squared, dense hidden -> width, layer norm; added to what comes in.

    What the ReLU leaves is brought to the same length at every position, so that a step means the same
    at each. `second` is zero at first: untrained and with nothing read, what comes in goes out. `last`
    turns the block's output into the space of hidden states; like `first` it does not learn as it reads.
    `log_rates` are the logarithms of the learnt step sizes over RATE_SPEED: of `second` one an input (the
    last is the bias's, a weight whose input is always one) and one an output, whose product it is; of
    gain and bias one a dimension. The steps are on the *sum* of the losses: with a mean, what a token
    teaches would depend on how long the text is. `rate_scale` times them all; 0 is the slow weights alone,
    without a slow pass. `stretch` tokens are one step; with 0 all that is read is one, as published.
    `chunk` positions are attended to at once; it changes only the cost.
    """

    def __init__(
        self,
        width: int,
        hidden: int | None = None,
        chunk: int | None = None,
        rate_scale: float = 1.0,
        stretch: int = 0,
    ) -> None:
        super().__init__()
        hidden = hidden or 4 * width
        # A chunk costs the layer's size once, and each position in it as much as the chunk is long.
        self.chunk, self.rate_scale, self.stretch = chunk or max(128, width // 4), rate_scale, stretch
        self.first = nn.Parameter(torch.randn(width, hidden) / width**0.5)
        self.first_bias = nn.Parameter(torch.zeros(hidden))
        self.second = nn.Parameter(torch.zeros(hidden, width))
        self.second_bias = nn.Parameter(torch.zeros(width))
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.last = nn.Parameter(torch.eye(width))
        sizes = {"gain": width, "bias": width, "second_in": hidden + 1, "second_out": width}
        every = math.log(FIRST_RATE) / RATE_SPEED
        self.log_rates = nn.ParameterDict(
            {
                name: nn.Parameter(torch.full((size,), every / (2 if "_" in name else 1)))
                for name, size in sizes.items()
            }
        )

    @torch.no_grad()
    def fit(self, hidden: Tensor, unembedding: Unembedding) -> None:
        """Make of random features such as tell hidden states like these, [number, width], apart.

        Hidden states vary a thousand times more along some directions than along others; along those
        any two are alike, and what one position learns would reach them all. Half of that is taken
        away, and each feature answers to one in fifteen of them. So it is with the words that the
        unembedding knows: what one is taught would be taught to nearly all, and `last` takes half of
        it away.
        """
        mean = hidden.mean(0)
        first = _half_whitened(torch.cov(hidden.T, correction=0)) @ self.first
        deviation = ((hidden - mean) @ first).std()
        self.first.copy_(first / deviation)
        self.first_bias.copy_(-(mean @ first) / deviation - THRESHOLD)
        words = unembedding.weight.to(self.last.dtype)
        last = _half_whitened(words.mT @ words / len(words))
        self.last.copy_(last * (words.square().sum() / (words @ last).square().sum()).sqrt())

    @property
    def rates(self) -> dict[str, Tensor]:
        """Return the step size of every weight that learns, in a shape that fits the parameter's."""
        factor = self._factors()
        inputs, outputs = factor["second_in"], factor["second_out"]
        return {
            "second": inputs[:-1, None] * outputs,
            "second_bias": inputs[-1] * outputs,
            "gain": factor["gain"],
            "bias": factor["bias"],
        }

    def _factors(self) -> dict[str, Tensor]:
        factors = {name: (RATE_SPEED * log_rate).exp() for name, log_rate in self.log_rates.items()}
        return {n: own if n.endswith("_in") else self.rate_scale * own for n, own in factors.items()}

    def start(self, rows: int) -> Sums:
        """Return the sums of having read nothing."""
        nothing = {}
        for name in FAST:
            own = getattr(self, name)
            nothing[name] = own.new_zeros(()).expand(rows, *own.shape)  # one zero: it takes no memory
        return Sums(nothing, nothing)

    def forward(
        self, hidden: Tensor, labels: Tensor, unembedding: Unembedding, sums: Sums
    ) -> tuple[Tensor, Sums]:
        """Return what goes to the unembedding, [batch, time, width], and the sums after these positions.

        hidden is [batch, time, width], labels [batch, time], the token after each position; the last
        positions' labels may not be known yet and be left out.
        """
        if self.rate_scale == 0:
            return self.still(hidden), sums
        return self._read(hidden, labels, unembedding, sums, answering=True)

    def learn(self, hidden: Tensor, labels: Tensor, unembedding: Unembedding, sums: Sums) -> Sums:
        """Return the sums after these positions, to the bit those that `forward` returns."""
        if self.rate_scale == 0:
            return sums
        return self._read(hidden, labels, unembedding, sums, answering=False)[1]

    def still(self, hidden: Tensor) -> Tensor:
        """Return what goes to the unembedding by the slow weights alone."""
        normal, _ = _normalised(self.features(hidden) @ self.second + self.second_bias)
        out: Tensor = hidden + (self.gain * normal + self.bias) @ self.last
        return out

    def features(self, hidden: Tensor) -> Tensor:
        """Return what `second` is applied to, [..., hidden], of (nearly) the same length everywhere."""
        features = (hidden @ self.first + self.first_bias).relu().square()
        length = (features.square().sum(-1, keepdim=True) + EPSILON).sqrt()
        return LENGTH * features / length

    def _read(
        self, hidden: Tensor, labels: Tensor, unembedding: Unembedding, sums: Sums, answering: bool
    ) -> tuple[Tensor, Sums]:
        """Go through positions piece by piece: none reaches over the end of a stretch."""
        rates, features, parts, done = self.rates, self.features(hidden), [hidden[:, :0]], 0
        nothing, own = self.start(len(hidden)).recent, False
        weights = self._stepped(rates, sums.settled)
        while done < hidden.shape[1]:
            size = min(self.chunk, self.stretch - sums.count) if self.stretch else self.chunk
            piece = slice(done, done + size)
            here, inputs = hidden[:, piece], features[:, piece]
            output = inputs @ weights["second"] + weights["second_bias"][:, None]
            keys = self._slow(here, inputs, output, labels[:, piece], unembedding, weights)
            if answering:
                parts.append(here + self._fast(inputs, output, keys, weights, rates, sums) @ self.last)
            count = sums.count + keys.features.shape[1]
            if self.stretch and count == self.stretch:
                sums = Sums(self._settled(sums, keys, own), nothing)
                # What is made here is nobody else's: without gradients the next stretch is added in place.
                # Sums are as large as the weights, and to get fresh memory takes longer than to add.
                own = not torch.is_grad_enabled()
                weights = self._stepped(rates, sums.settled, weights if own else None)
            else:
                sums = Sums(sums.settled, self._recent(sums, keys), count)
            done += size
        return torch.cat(parts, 1), sums

    def _stepped(
        self,
        rates: Mapping[str, Tensor],
        sums: Mapping[str, Tensor],
        into: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return the weights one step along the sums, [batch, ...]; `into` may be written over."""
        return {
            n: torch.addcmul(
                getattr(self, n), sums[n], rates[n], value=-1, out=None if into is None else into[n]
            )
            for n in FAST
        }

    def _settled(self, sums: Sums, keys: PositionGradients, own: bool) -> dict[str, Tensor]:
        """Return the gradients of all stretches, the one that these positions end among them.

        With `own` those that are settled may be added to in place.
        """
        if own and not sums.count:
            settled = sums.settled
            # The places' products are added as they are made: no matrix of theirs alone.
            kind = settled["second"].dtype
            settled["second"].baddbmm_(keys.features.mT.to(kind), keys.at_second.to(kind))
            for name, at in (("second_bias", keys.at_second), ("gain", keys.at_gain), ("bias", keys.at_bias)):
                settled[name].add_(at.sum(1))
            return settled
        return _added(sums.settled, self._recent(sums, keys))

    def _recent(self, sums: Sums, keys: PositionGradients) -> dict[str, Tensor]:
        """Return the gradients of the stretch under way, these positions among them."""
        if sums.count:
            return _added(sums.recent, keys.sums())
        return {name: more.to(sums.recent[name].dtype) for name, more in keys.sums().items()}

    def _slow(
        self,
        hidden: Tensor,
        features: Tensor,
        output: Tensor,
        labels: Tensor,
        unembedding: Unembedding,
        weights: Mapping[str, Tensor],
    ) -> PositionGradients:
        """Return what the loss of each position with a label asks of the weights that stand."""
        known = labels.shape[1]
        gain = weights["gain"][:, None]
        normal, scale = _normalised(output[:, :known])
        block = gain * normal + weights["bias"][:, None]
        logits = unembedding.logits(hidden[:, :known] + block @ self.last)
        # The gradient of log-softmax: the probabilities, less one at the label.
        matrix = unembedding.weight
        at_hidden = (logits.softmax(-1).to(matrix.dtype) @ matrix - matrix[labels]).to(hidden.dtype)
        at_bias = at_hidden @ self.last.mT
        at_normal = at_bias * gain
        along = (at_normal * normal).mean(-1, keepdim=True)
        at_second = scale * (at_normal - at_normal.mean(-1, keepdim=True) - normal * along)
        return PositionGradients(features[:, :known], at_second, at_bias * normal, at_bias)

    def _fast(
        self,
        features: Tensor,
        output: Tensor,
        keys: PositionGradients,
        weights: Mapping[str, Tensor],
        rates: Mapping[str, Tensor],
        sums: Sums,
    ) -> Tensor:
        """Answer with `weights` one step along what the stretch has had so far and the keys before."""
        shape = features.shape[1], keys.features.shape[1]
        before = torch.ones(shape, dtype=features.dtype, device=features.device).tril(-1)
        factor, recent = self._factors(), sums.recent
        inputs = features * factor["second_in"][:-1]
        reach = (inputs @ keys.features.mT + factor["second_in"][-1]) * before
        step = reach @ keys.at_second
        if sums.count:
            step = step + inputs @ recent["second"]
            step = step + factor["second_in"][-1] * recent["second_bias"][:, None]
        normal, _ = _normalised(output - step * factor["second_out"])
        gain, bias = (
            weights[name][:, None] - rates[name] * (recent[name][:, None] + before @ at)
            for name, at in (("gain", keys.at_gain), ("bias", keys.at_bias))
        )
        answer: Tensor = gain * normal + bias
        return answer


def _added(sums: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return two sums together, in the first one's precision."""
    return {name: total + more[name] for name, total in sums.items()}


def _half_whitened(spread: Tensor) -> Tensor:
    """Return the map [size, size] that takes half of what is unequal out of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(spread)
    halfway: Tensor = vectors * values.clamp(min=1e-5 * values[-1]) ** -0.25 @ vectors.T
    return halfway


def _normalised(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return z at mean 0 and variance 1 over its last dimension, and what it was multiplied by."""
    z = z - z.mean(-1, keepdim=True)
    scale = (z.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    return z * scale, scale
