"""What only some methods ask of a language model, beyond `step`: hidden states, keys, layers, slots."""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional


class Unembedding(NamedTuple):
    """What turns hidden states into logits: weight [vocabulary, width], bias [vocabulary] or None."""

    weight: Tensor
    bias: Tensor | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., vocabulary], computed in the weight's precision, in at least float32."""
        logits = functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        return logits.float() if logits.dtype.itemsize < 4 else logits


class Slots(NamedTuple):
    """What `time` places may attend to besides the text, `each` slots apiece, for every layer.

    Each tensor is [batch, heads, time * each, width], the slots of one place side by side.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    each: int
