"""What the frozen model makes of texts, which MAC's network reads: kept, for training meets them again.

Nothing that is trained changes it, so a text is read by the model in the first pass over it alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from uptake.lm.base import LM, Cache
from uptake.lm.bounded_table import BoundedTable
from uptake.lm.capabilities import Layers, capability
from uptake.lm.pretrained import Pretrained

MOST = 2 << 30  # bytes kept with a model; texts beyond are read each time


class _Read(NamedTuple):
    """One text: features [time, 3 width], and each layer's keys and values [1, heads, time, width]."""

    features: Tensor
    cache: tuple[tuple[Tensor, Tensor], ...]

    @property
    def nbytes(self) -> int:
        return self.features.nbytes + sum(keys.nbytes + values.nbytes for keys, values in self.cache)


def features_of(states: Sequence[Tensor]) -> Tensor:
    """Return what the network reads of each token: embedding, middle and last layer, each normed."""
    chosen = (states[0], states[len(states) // 2], states[-1])
    return torch.cat([functional.layer_norm(each, each.shape[-1:]) for each in chosen], -1)


def features(lm: LM, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return the features of texts, [texts, longest, 3 width], zeros to the right, and their lengths."""
    read = [_read(lm, tuple(text), False).features for text in texts]
    lengths = torch.tensor([len(text) for text in texts], device=lm.device)
    return nn.utils.rnn.pad_sequence(read, batch_first=True), lengths


def features_and_cache(lm: LM, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Cache]:
    """Return the features of texts, and the model's cache after them, both with zeros to the right."""
    read = [_read(lm, tuple(text), True) for text in texts]
    longest = max(map(len, texts))
    joined = capability(lm, Layers).start()
    for layer, rows in enumerate(zip(*(each.cache for each in read), strict=True)):
        keys, values = (
            torch.cat([_widened(made, longest) for made in kind]) for kind in zip(*rows, strict=True)
        )
        joined.update(keys, values, layer)
    return nn.utils.rnn.pad_sequence([each.features for each in read], batch_first=True), joined


def _widened(made: Tensor, longest: int) -> Tensor:
    return functional.pad(made, (0, 0, 0, longest - made.shape[2]))


def _read(lm: LM, text: tuple[int, ...], cached: bool) -> _Read:
    """Return what the model makes of one text, read by itself so that it depends on no other."""
    layered = capability(lm, Layers)
    kept = layered.derived("what MAC has read", _table) if isinstance(layered, Pretrained) else _table()
    if (found := kept.get((text, cached))) is not None:
        return found
    with torch.no_grad():
        ids = torch.tensor([text], device=lm.device)
        states, cache = layered.layers(ids, layered.start() if cached else None)
    made = _Read(features_of(states)[0].clone(), tuple((keys, values) for keys, values, *_ in cache or ()))
    kept.put((text, cached), made)
    return made


def _table() -> BoundedTable[_Read]:
    return BoundedTable(MOST, forgets=False)  # texts come round in turn
