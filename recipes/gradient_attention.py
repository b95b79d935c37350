"""Linear self-attention whose every layer is one step of gradient descent (von Oswald et al. 2022).

A token holds an example, (x_j, y_j). The forward pass of the constructed network is gradient
descent on 1/(2N) sum |W x_j - y_j|^2 over the examples it is shown; the same network with free
weights is what the paper trains. It knows regression problems only.
"""

from typing import Self

import torch
from torch import Tensor, nn

from uptake.errors import BadInput


class LinearAttention(nn.Module):
    """One head without softmax: e_j + P sum_i (V e_i) (K e_i)^T (Q e_j), where i runs over `keys` only."""

    def __init__(self, width: int, scale: float = 0.05) -> None:
        super().__init__()
        self.query, self.key, self.value, self.projection = (
            nn.Parameter(torch.randn(width, width) * scale) for _ in range(4)
        )

    def forward(self, tokens: Tensor, keys: Tensor) -> Tensor:
        """Return the tokens [batch, time, width] after reading the keys [batch, examples, width]."""
        read = (keys @ self.value.T).mT @ (keys @ self.key.T)  # [batch, width, width]
        return tokens + tokens @ self.query.T @ read.mT @ self.projection.T


class GradientAttention(nn.Module):
    """Layers of linear attention over examples, and a prediction for each query.

    A query comes in as (x_q, -W0 x_q) and its prediction is read off as -y_q. Queries are no keys,
    so any number of them can be asked at once. `shared` uses one layer `depth` times. W0 is `start`,
    [outputs, inputs], zero if left out. Starts at small random weights.
    """

    start: Tensor

    def __init__(
        self, inputs: int, outputs: int = 1, depth: int = 1, shared: bool = False, start: Tensor | None = None
    ) -> None:
        super().__init__()
        if depth < 1:
            raise BadInput(f"depth {depth}: use 1 layer or more")
        layers = [LinearAttention(inputs + outputs) for _ in range(1 if shared else depth)]
        self.layers = nn.ModuleList(layers)
        self.depth = depth
        self.register_buffer("start", torch.zeros(outputs, inputs) if start is None else start)

    @classmethod
    def descending(
        cls, start: Tensor, rate: float, examples: int, steps: int = 1, curvature: float = 0.0
    ) -> Self:
        """Return the construction: K layers are K steps at `rate` from `start`, [outputs, inputs].

        W_K = W_Q = [[I, 0], [0, 0]], W_V = [[0, 0], [W0, -I]], P = rate / N (proposition 1). With
        `curvature` each layer also turns every x into x - curvature sum_i x_i x_i^T x: the paper's GD++.
        """
        outputs, inputs = start.shape
        net = cls(inputs, outputs, steps, shared=True, start=start).to(start.dtype)
        layer = net.layer(0)
        with torch.no_grad():
            for weight in (layer.query, layer.key, layer.value, layer.projection):
                weight.zero_()
            same = torch.eye(inputs, dtype=start.dtype)
            layer.query[:inputs, :inputs] = layer.key[:inputs, :inputs] = same
            layer.value[inputs:, :inputs] = start
            layer.value[inputs:, inputs:] = -torch.eye(outputs, dtype=start.dtype)
            layer.projection[inputs:, inputs:] = torch.eye(outputs, dtype=start.dtype) * (rate / examples)
            layer.value[:inputs, :inputs] = same
            layer.projection[:inputs, :inputs] = -curvature * same
        return net

    def forward(self, inputs: Tensor, targets: Tensor, queries: Tensor) -> Tensor:
        """Return predictions [batch, queries, outputs].

        inputs are [batch, examples, inputs], targets [batch, examples, outputs], queries
        [batch, queries, inputs].
        """
        examples = torch.cat([inputs, targets], -1)
        asked = torch.cat([queries, -queries @ self.start.T], -1)
        for number in range(self.depth):
            layer = self.layer(number)
            examples, asked = layer(examples, examples), layer(asked, examples)
        return -asked[..., inputs.shape[-1] :]

    def layer(self, number: int) -> LinearAttention:
        """Return the layer that is used at depth `number`."""
        layer = self.layers[number % len(self.layers)]
        assert isinstance(layer, LinearAttention)
        return layer

    def gain(self) -> float:
        """Return what the first layer has in place of rate / N, as a mean over inputs and outputs.

        Exact for the construction; of a trained layer, what it has learnt of gradient descent.
        """
        layer, inputs = self.layer(0), self.start.shape[1]
        match = (layer.key.T @ layer.query)[:inputs, :inputs]
        write = (layer.projection @ layer.value)[inputs:, inputs:]
        return -(match.diagonal().mean() * write.diagonal().mean()).item()


def linear_problems(
    count: int, width: int, examples: int, queries: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return inputs, targets, queries and answers of problems y = w x with w ~ N(0, I), x ~ U(-1/2, 1/2)."""
    weights = torch.randn(count, width, 1, generator=generator)
    points = torch.rand(count, examples + queries, width, generator=generator) - 0.5
    values = points @ weights
    return points[:, :examples], values[:, :examples], points[:, examples:], values[:, examples:]


def best_step(width: int, examples: int) -> tuple[float, float]:
    """Return rate / N of the best single step from W0 = 0 on `linear_problems`, and its expected loss.

    The loss is half the mean squared error, E tr (a S - I)^2 / 24 with S = sum x x^T and a = rate / N:
    least at a = E tr S / E tr S^2.
    """
    square, fourth = 1 / 12, 1 / 80  # moments of U(-1/2, 1/2)
    once = examples * square
    twice = examples * (fourth + (width - 1) * square**2) + examples * (examples - 1) * square**2
    return once / twice, width * square / 2 * (1 - once**2 / twice)
