"""A transformer that learns a classification task from the examples it is shown (Kirsch et al. 2022, GPICL).

A task is a random projection of the inputs and a permutation of the labels, fixed for one sequence.
Token i holds the input x_i and the label of the example before it, so the network sees every label
only after it had to tell it. It is trained by cross-entropy at every position; nothing else says
that it should learn.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from uptake.errors import BadInput


class InContextLearner(nn.Module):
    """A causal transformer over sequences of (input, label of the example before)."""

    def __init__(
        self, inputs: int, labels: int, length: int, width: int = 48, layers: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        if width % heads:
            raise BadInput(f"width {width} for {heads} heads: use a multiple of the heads")
        self.labels = labels
        self.read = nn.Linear(inputs + labels, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.answer = nn.Linear(width, labels)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return logits [batch, time, labels]; position i has seen inputs up to i and labels before i.

        inputs are [batch, time, inputs], labels [batch, time].
        """
        time = inputs.shape[1]
        known = one_hot(labels, self.labels).to(inputs.dtype)
        before = torch.cat([torch.zeros_like(known[:, :1]), known[:, :-1]], 1)
        states = self.read(torch.cat([inputs, before], -1)) + self.place[:time]
        causal = nn.Transformer.generate_square_subsequent_mask(time, inputs.device, inputs.dtype)
        states = self.blocks(states, mask=causal, is_causal=True)
        logits: Tensor = self.answer(states)
        return logits


@dataclass(frozen=True)
class Tasks:
    """So many classification tasks over one small data set: points around one prototype a class.

    `projections` are [tasks, inputs, inputs], `permutations` [tasks, classes]; label permutations[t, c]
    is what task t calls class c. `noise` is the spread of points around their prototype.
    """

    prototypes: Tensor  # [classes, inputs]
    projections: Tensor
    permutations: Tensor
    noise: float = 0.1

    @classmethod
    def draw(cls, prototypes: Tensor, count: int, generator: torch.Generator, noise: float = 0.1) -> "Tasks":
        """Return new tasks over the prototypes: entries of a projection are N(0, 1 / inputs)."""
        classes, inputs = prototypes.shape
        projections = torch.randn(count, inputs, inputs, generator=generator) / inputs**0.5
        permutations = torch.rand(count, classes, generator=generator).argsort(-1)
        return cls(prototypes, projections, permutations, noise)

    def sequences(self, which: Tensor, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return inputs [batch, length, inputs] and labels [batch, length] of the tasks numbered `which`."""
        classes, inputs = self.prototypes.shape
        drawn = torch.randint(classes, (len(which), length), generator=generator)
        noise = torch.randn(len(which), length, inputs, generator=generator) * self.noise
        points = (self.prototypes[drawn] + noise) @ self.projections[which].mT
        return points, self.permutations[which].gather(1, drawn)
