"""SLAG's network (Hase et al. 2021, arXiv 2111.13654): makes an edit of its gradient, as its text says.

The text of an edit, "old >> new || prompt", gives for each weight [out, in] vectors a, a' [in] and b, b'
[out], and a number η. With A = softmax(b) aᵀ and B = softmax(b') a'ᵀ a weight W becomes
W + σ(η) (s A ⊙ ∇W + t B). As ∇W is the sum over tokens of δ uᵀ, A ⊙ ∇W is that of (softmax(b) ⊙ δ) (a ⊙ u)ᵀ:
all of it has low rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence

Tokens = tuple[Tensor, Tensor, Tensor]  # u [n, in], δ [n, out] and whose edit each of the n is of, [n]


class Head(nn.Module):
    """What one weight, [out, in], takes from the text of an edit.

    At birth it takes nothing: a is -1, b, a', b' and η are 0, so that an edit is a gradient step of `rate`.
    `text` is t, how much what the text alone gives counts; with 0 there is none of it.
    """

    def __init__(
        self, width_in: int, width_out: int, condition: int, hidden: int, rate: float, text: float = 1.0
    ) -> None:
        super().__init__()
        self.text = text
        self.sizes = [width_in, width_in, width_out, width_out, 1]
        # σ(0) is 1/2, softmax of zeros 1 / out. Of the gradient's part alone: at first B is much the same for
        # every edit, and so scaled it would outgrow the gradient within a few steps of training.
        self.scale = 2 * width_out * rate
        self.inner = weight_norm(nn.Linear(condition, hidden))
        outer = nn.Linear(hidden, sum(self.sizes))
        with torch.no_grad():
            outer.bias.zero_()
            outer.bias[:width_in] = -1.0
        self.outer = weight_norm(outer)
        with torch.no_grad():
            self.outer.parametrizations.weight.original0.zero_()  # the lengths of the rows

    def forward(self, tokens: Tokens, conditions: Tensor) -> Tokens:
        """Return factors up [out, n + edits] and down [n + edits, in], and whose they are.

        With `text` 0 they are n.
        """
        u, delta, owners = tokens
        made = self.outer(torch.tanh(self.inner(conditions)))
        a, a_other, b, b_other, eta = made.split(self.sizes, -1)
        strength = torch.sigmoid(eta)
        up = (strength * self.scale * torch.softmax(b, -1))[owners] * delta
        down = a[owners] * u
        if self.text:
            up = torch.cat([up, strength * self.text * torch.softmax(b_other, -1)])
            down = torch.cat([down, a_other])
            owners = torch.cat([owners, torch.arange(len(conditions), device=owners.device)])
        return up.T, down, owners


class SlagNetwork(nn.Module):
    """A bidirectional LSTM that reads texts of edits, and a head for each weight, (in, out) in `shapes`."""

    def __init__(
        self,
        embedding: int,
        shapes: Sequence[tuple[int, int]],
        condition: int,
        hidden: int,
        rate: float,
        text: float = 1.0,
    ) -> None:
        super().__init__()
        self.reader = nn.LSTM(embedding, condition // 2, batch_first=True, bidirectional=True)
        self.condition = nn.Linear(condition, condition)
        self.heads = nn.ModuleList([Head(*shape, condition, hidden, rate, text) for shape in shapes])

    def conditions(self, texts: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return what texts [edits, time, embedding] say, [edits, condition]; beyond a length is padding."""
        packed = pack_padded_sequence(texts, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.reader(packed)
        return torch.tanh(self.condition(torch.cat([last[0], last[1]], -1)))

    def forward(self, tokens: Sequence[Tokens], conditions: Tensor) -> list[Tokens]:
        """Return for each weight the factors (up, down) of what is added to it, and whose they are."""
        return [head(own, conditions) for head, own in zip(self.heads, tokens, strict=True)]
