"""Fusion-in-Decoder (Izacard & Grave 2021) around any encoder-decoder: texts read apart, seen at once."""

from collections.abc import Sequence
from typing import Self

from torch import Tensor

from uptake.errors import BadInput
from uptake.lm.base import LM, Cache, Wrapper
from uptake.lm.capabilities import ApartInputs, capability
from uptake.lm.examples import Example


class Fused(Wrapper):
    """Row i's encoder reads each of `texts[i]`, token ids, before the context; its decoder attends to all.

    Their order does not matter. A row with one text reads it as `Prefixed` would, one with none is the inner
    model.
    """

    def __init__(self, inner: LM, texts: Sequence[Sequence[Sequence[int]]]) -> None:
        super().__init__(inner)
        self._reader = capability(inner, ApartInputs)
        self.texts = [[tuple(text) for text in row] for row in texts]
        self.rows = len(self.texts)
        longest = max((len(text) for row in self.texts for text in row), default=0)
        if longest >= self.window:
            raise BadInput(f"a text of {longest} tokens fills the window of {self.window}: use a shorter one")

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.texts)

    def at(self, rows: Sequence[int]) -> LM:
        return Fused(self.inner, [self.texts[row] for row in rows])

    def max_input_tokens(self, row: int) -> int:
        return self.window - max(map(len, self.texts[row]), default=0)

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        return self.inner.step(ids, cache, lengths)

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        self._check_rows(len(examples))
        inputs = [
            [self._joined(text, example.context) for text in row or [()]]
            for row, example in zip(self.texts, examples, strict=True)
        ]
        return self._reader.predictions_apart(inputs, examples)

    def _joined(self, text: Sequence[int], context: Sequence[int]) -> list[int]:
        own = context[1:] if text and context[0] == self.tokenizer.opening else context
        return [*text, *own]
