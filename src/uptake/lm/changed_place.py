"""Runs texts with something added to what one layer's feed-forward puts out, at one place of each text.

Only what such a change can reach is computed again: the blocks from that layer on, and the tokens from that
place on. What stands before comes from a key-value cache, what enters the layer's block is kept. All of it is
done on private copies; the model itself has no hook.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import skeleton, wide
from uptake.adaptation.delta.overlay import Hook
from uptake.adaptation.trainable.places import blocks
from uptake.lm.base import Cache
from uptake.lm.causal import Causal
from uptake.lm.feed_forward import LinearPlace
from uptake.lm.rows import left_padded
from uptake.lm.upper_blocks import Skipped


@dataclass(frozen=True)
class PlacedText:
    """Tokens `before` the place, never empty, and those from it on; the last `predicting` places count."""

    before: tuple[int, ...]
    rest: tuple[int, ...]
    predicting: int = 1


class ChangedPlace:
    """Some texts of a model, and what they predict when the feed-forward of one layer adds something.

    `inputs` is what enters the layer's down projection at the tokens from each place on, [texts, time, in]
    (behind a shorter text's end it means nothing), `keys` what enters at the place itself, [texts, in], and
    `outputs` what leaves it there, [texts, out], without any change. For one thread.
    """

    def __init__(self, lm: Causal, place: LinearPlace, texts: Sequence[PlacedText]) -> None:
        self._texts = list(texts)
        self._unembedding = lm.unembedding
        whole = lm.around(skeleton(lm.module))
        _, stack = blocks(whole.module)
        seen = _Seen(torch.empty(0), torch.empty(0), torch.empty(0))
        down = whole.module.get_submodule(place.path)
        down.register_forward_hook(_Look(seen))
        stack[place.layer].register_forward_pre_hook(_LookBefore(seen), with_kwargs=True)
        if place.layer:
            stack[place.layer - 1].register_forward_hook(_LookBelow(seen))
        before, lengths = left_padded([text.before for text in texts], lm.device)
        width = max(len(text.rest) for text in texts)
        self._rest = torch.zeros(len(texts), width, dtype=torch.long)
        for row, text in enumerate(texts):
            self._rest[row, : len(text.rest)] = torch.tensor(text.rest)
        self._rest = self._rest.to(lm.device)
        with torch.no_grad():
            _, self._cache = whole.hidden(before, lm.start(), lengths)
            hidden, _ = whole.hidden(self._rest, self._cache_copy())
        self.inputs = wide(seen.inputs)
        self.keys, self.outputs = self.inputs[:, 0], wide(seen.outputs[:, 0])
        self.unchanged = self._predictions(hidden)
        self._added = _Added()
        self._upper = lm.around(_above(lm.module, place, seen, self._added))

    def predictions(self, change: Tensor) -> list[Tensor]:
        """Return log-probabilities [predicting, vocabulary] of each text with `change` [out] added.

        Differentiable in the change, which may be one a text, [texts, out]; or one for each token from the
        place on, [texts, time, out].
        """
        self._added.change = change
        try:
            return self._predictions(self._upper.hidden(self._rest, self._cache_copy())[0])
        finally:
            self._added.change = None

    def _predictions(self, hidden: Tensor) -> list[Tensor]:
        ends = [len(text.rest) for text in self._texts]
        counted = [
            hidden[row, end - text.predicting : end]
            for row, (text, end) in enumerate(zip(self._texts, ends, strict=True))
        ]
        logits = self._unembedding.logits(torch.cat(counted))
        sizes = [text.predicting for text in self._texts]
        return list(torch.split(torch.log_softmax(logits, -1), sizes))

    def _cache_copy(self) -> Cache:
        """Return the cache of what stands before; what is appended to it does not reach the original."""
        made = copy.copy(self._cache)
        made.layers = [copy.copy(layer) for layer in self._cache.layers]
        return made


@dataclass
class _Seen:
    """What passed at the layer, and what entered its block, at the latest pass."""

    inputs: Tensor
    outputs: Tensor
    entering: Tensor
    tuples: bool = False
    alone: bool = True  # False: blocks pass on more than hidden states


@dataclass
class _Added:
    change: Tensor | None = None


def _above(module: nn.Module, place: LinearPlace, seen: _Seen, added: _Added) -> nn.Module:
    """Return a private copy whose blocks below the place hold what was seen, and which adds a change."""
    private = skeleton(module)
    _, stack = blocks(private)
    if place.layer and seen.alone:
        for below in range(place.layer):
            stack[below] = Skipped(stack[below], seen.tuples)
        last: Any = stack[place.layer - 1]
        last.hidden = seen.entering
    private.get_submodule(place.path).register_forward_hook(_Add(added))
    return private


@dataclass(frozen=True)
class _Look(Hook):
    seen: _Seen

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.seen.inputs, self.seen.outputs = inputs[0].detach(), output.detach()


@dataclass(frozen=True)
class _LookBefore(Hook):
    seen: _Seen

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.seen.entering = (inputs[0] if inputs else named["hidden_states"]).detach()


@dataclass(frozen=True)
class _LookBelow(Hook):
    seen: _Seen

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.seen.tuples = isinstance(output, tuple)
        self.seen.alone = isinstance(output, Tensor) or (self.seen.tuples and len(output) == 1)


@dataclass(frozen=True)
class _Add(Hook):
    added: _Added

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        change = self.added.change
        if change is None:
            return output
        if change.dim() == 3:
            return (wide(output) + change).to(output.dtype)
        first = wide(output[:, :1]) + change.expand(len(output), -1)[:, None]
        return torch.cat([first.to(output.dtype), output[:, 1:]], 1)
