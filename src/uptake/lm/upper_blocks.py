"""Trains the upper blocks of a model without computing the frozen ones below them again and again.

What enters the lowest block that trains depends on a text and the base alone: it is the same in every pass,
for every query and under every method. `lm/frozen_layers.py` keeps it, `above_frozen` takes up from there.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable import TrainableCopy
from uptake.adaptation.trainable.places import blocks
from uptake.errors import BadInput
from uptake.lm.activations import entering, fingerprint_of
from uptake.lm.base import LM, Cache, Wrapper
from uptake.lm.capabilities import SelectedPlaces
from uptake.lm.causal import Causal
from uptake.lm.examples import Example, at_targets
from uptake.lm.frozen_layers import FrozenLayers
from uptake.text.activations import Activations
from uptake.text.types import Source


class Skipped(nn.Module):
    """Stands for a frozen block: passes on what it is given, or the hidden states it holds."""

    def __init__(self, block: nn.Module, returns_tuple: bool) -> None:
        super().__init__()
        # Models ask their blocks for plain attributes, such as which mask they want.
        self.__dict__.update({key: value for key, value in vars(block).items() if not key.startswith("_")})
        self.hidden: Tensor | None = None
        self._returns_tuple = returns_tuple

    def forward(self, *inputs: Any, **named: Any) -> Any:
        given = inputs[0] if inputs else named["hidden_states"]
        found = given if self.hidden is None else self.hidden
        return (found,) if self._returns_tuple else found


class UpperBlocks(Wrapper, SelectedPlaces):
    """A private copy of a model of which only the blocks above the frozen ones are run, on whole texts.

    It changes the copy's module, whose frozen blocks are gone, and is for one thread.
    """

    def __init__(self, private: Causal, frozen: FrozenLayers, kept: Activations | None = None) -> None:
        super().__init__(private)
        self._private, self.frozen, self._kept = private, frozen, kept
        _, stack = blocks(private.module)
        for place in range(frozen.count):
            stack[place] = Skipped(stack[place], frozen.returns_tuple)
        self._last: Any = stack[frozen.count - 1]

    def around(self, inner: LM) -> Self:
        raise NotImplementedError("blocks above frozen ones stand on a private copy, not around an LM")

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        raise NotImplementedError("only whole texts are run above frozen blocks")

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        found = []
        for example in examples:
            log_probs, _ = self._above(example.inputs, self._private.step)
            found += at_targets(log_probs, [example])
        return found

    def step_at(self, ids: Tensor, places: Tensor) -> Tensor:
        log_probs: Tensor = self._above(ids[0].tolist(), lambda whole: self._private.step_at(whole, places))
        return log_probs

    def _above(self, inputs: Iterable[int], run: Callable[[Tensor], Any]) -> Any:
        ids = tuple(inputs)
        found = self._kept.find(ids) if self._kept else None
        if found and self._kept:
            self._last.hidden = entering(found, self._kept.dtype, self._private.dtype).to(self.device)
        else:
            self._last.hidden = self.frozen.of(ids)
        try:
            return run(torch.tensor([ids], device=self.device))
        finally:
            self._last.hidden = None


def above_frozen(
    lm: LM,
    private: LM,
    opened: TrainableCopy,
    start: Delta,
    kept: Activations | None = None,
) -> LM:
    """Return `private`, a trainable copy of `lm`, without the blocks below those that train.

    `start` is where it stands, `kept` what a store has of these frozen blocks. Computes bit for bit the same,
    up to the 16 bits in which a store may keep numbers. It is `private` itself where something below the
    blocks trains, or the lowest of them does, or the kind of model has no such blocks.
    """
    if not isinstance(lm, Causal) or not isinstance(private, Causal):
        return private
    count = _frozen(private.module, opened, start)
    frozen = lm.frozen_layers(count) if count else None
    if frozen is None or not frozen.supported:
        return private
    return UpperBlocks(private, frozen, kept)


def activations_of(
    lm: LM,
    private: LM,
    opened: TrainableCopy,
    start: Delta,
    source: Source | None,
    opening: bool,
    size: int,
) -> Activations | None:
    """Return what a store keeps of the frozen blocks, for pieces of `size` inputs; None of no store.

    `opening` says whether they begin with the opening token. Raises BadInput where no blocks stay frozen, or
    the store keeps nothing, Mismatch where it keeps what enters others.
    """
    frozen = _frozen(private.module, opened, start) if isinstance(private, Causal) else 0
    if not frozen:
        raise BadInput(
            "activations=view needs blocks below all that trains: use trainable=top(layers=N) on a bare model"
        )
    return source.activations(fingerprint_of(lm, frozen, opening, size)) if source else None


def _frozen(module: nn.Module, opened: TrainableCopy, start: Delta) -> int:
    """Return how many of the lowest blocks come before everything that is changed."""
    name, _ = blocks(module)
    within = re.compile(re.escape(name) + r"\.(\d+)\.")
    places = [within.match(each) for each in {*opened.parameters, *start.names}]
    # What stands outside of the blocks may stand below them.
    return min((int(place[1]) if place else 0 for place in places), default=0)
