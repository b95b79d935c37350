"""What enters a layer at a prompt's last token, and a model that answers with something else from there."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import skeleton, wide
from uptake.adaptation.delta.overlay import Hook
from uptake.lm.base import LM, Cache, Wrapper
from uptake.lm.causal import Causal
from uptake.lm.examples import Example
from uptake.lm.feed_forward import LinearPlace
from uptake.lm.rows import left_padded


def inputs_at(lm: Causal, place: LinearPlace, prompts: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return what enters a layer at each token of each prompt, [tokens, in]; a long one loses its start."""
    rows = [list(prompt)[-lm.window :] for prompt in prompts]
    module, seen = skeleton(lm.module), list[Tensor]()
    module.get_submodule(place.path).register_forward_pre_hook(_Stop(seen))
    ids, lengths = left_padded(rows, lm.device)
    with torch.no_grad(), contextlib.suppress(_ReachedError):
        lm.around(module).hidden(ids, lm.start(), lengths)
    return [wide(seen[0][row, -len(own) :]) for row, own in enumerate(rows)]


class ReplacedOutput(Wrapper):
    """Row i reads its prompt with `values[i]` [out] in the place of what a layer puts out at its last token.

    None stands for no value: that row is the base's. Tokens after the prompt see it through attention alone.
    """

    def __init__(
        self,
        inner: Causal,
        place: LinearPlace,
        prompts: Sequence[Sequence[int]],
        values: Sequence[Tensor | None],
    ) -> None:
        super().__init__(inner)
        self.place, self.prompts, self.values = place, [tuple(prompt) for prompt in prompts], list(values)
        self.rows = len(self.values)
        module, self._now = skeleton(inner.module), _Now()
        module.get_submodule(place.path).register_forward_hook(_Replace(self._now))
        self._private = inner.around(module)

    def around(self, inner: LM) -> Self:
        raise NotImplementedError("a replaced output stands on a causal model, not around an LM")

    def at(self, rows: Sequence[int]) -> LM:
        assert isinstance(self.inner, Causal)
        some = [self.prompts[row] for row in rows], [self.values[row] for row in rows]
        return ReplacedOutput(self.inner, self.place, *some)

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        if cache is not None and cache.get_seq_length():
            return self.inner.step(ids, cache)
        with self._now.replacing([ids.shape[1] - 1] * len(ids), self.values):
            return self._private.step(ids, cache, lengths)

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        self._check_rows(len(examples))
        places = [len(example.context) - 1 for example in examples]
        # A later window of a long text has the prompt behind it.
        values = [
            value if example.context == prompt else None
            for value, example, prompt in zip(self.values, examples, self.prompts, strict=True)
        ]
        with self._now.replacing(places, values):
            return self._private.predictions(examples)


class _Now:
    """Where what is replaced, for the pass that is under way."""

    def __init__(self) -> None:
        self.places: list[tuple[int, int, Tensor]] = []

    def replacing(self, places: Sequence[int], values: Sequence[Tensor | None]) -> "_Now":
        rows = enumerate(zip(places, values, strict=True))
        self.places = [(row, place, value) for row, (place, value) in rows if value is not None]
        return self

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self.places = []


@dataclass(frozen=True)
class _Replace(Hook):
    now: _Now

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if self.now.places:
            output = output.clone()
            for row, place, value in self.now.places:
                output[row, place] = value.to(output)
        return output


class _ReachedError(Exception):
    """The pass has reached the layer: the blocks above it need not run."""


@dataclass(frozen=True)
class _Stop(Hook):
    seen: list[Tensor]

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.seen.append(inputs[0].detach())
        raise _ReachedError
