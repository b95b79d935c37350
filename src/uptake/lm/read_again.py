"""Predictions of a base on texts that are read for every method that is compared with it.

The last hidden states of such a text are kept with the model, some kB a token where predictions would be
some hundreds; what is left to do is the unembedding, bit for bit what the model itself does.
"""

import torch
from torch import Tensor

from uptake.adaptation.delta import wide
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.bounded_table import BoundedTable
from uptake.lm.causal import Causal
from uptake.lm.examples import Example

MOST = 256 << 20  # bytes of hidden states a model; texts beyond are read each time


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
    """Return the last hidden states of what is read, [time, width], None where the model has none."""
    kept = lm.derived("hidden states of texts read again", lambda: BoundedTable[Tensor](MOST, forgets=False))
    ids = tuple(example.inputs)
    if (hidden := kept.get(ids)) is None:
        try:
            lm.unembedding  # noqa: B018 -- refused where logits come about in another way
            hidden = lm.hidden(torch.tensor([ids], device=lm.device))[0][0]
        except BadInput:
            return None
        kept.put(ids, hidden)
    return hidden
