"""Predictions of a base on texts that are read for every method that is compared with it.

The last hidden states of such a text are kept with the model, some kB a token where predictions would be
some hundreds; what is left to do is the unembedding, bit for bit what the model itself does.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from uptake.adaptation.delta import wide
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.examples import Example

MOST = 256 << 20  # bytes of hidden states a model; texts beyond are read each time


@dataclass
class _Kept:
    """Last hidden states [time, width] by the tokens read, and how many bytes they are."""

    texts: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    bytes: int = 0


def predictions_again(lm: LM, example: Example) -> Tensor:
    """Return what `predictions` does for one example, [target, vocabulary], without a gradient.

    A causal model reads the text once; any other LM each time.
    """
    with torch.no_grad():
        if not isinstance(lm, Causal) or (kept := _hidden(lm, example)) is None:
            return lm.predictions([example])[0]
        first = len(example.inputs) - len(example.target)
        logits = lm.unembedding.logits(kept[None, first:])
        return torch.log_softmax(wide(logits), -1)[0]


def _hidden(lm: Causal, example: Example) -> Tensor | None:
    """Return the last hidden states of what is read, None where the model has none or they are too many."""
    kept = lm.derived("hidden states of texts read again", _Kept)
    ids = tuple(example.inputs)
    if ids not in kept.texts:
        try:
            lm.unembedding  # noqa: B018 -- refused where logits come about in another way
            hidden = lm.hidden(torch.tensor([ids], device=lm.device))[0][0]
        except BadInput:
            return None
        size = hidden.nbytes
        if kept.bytes + size > MOST:
            return None
        kept.texts[ids] = hidden
        kept.bytes += size
    return kept.texts[ids]
