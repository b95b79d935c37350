"""Span corruption (Raffel et al. 2020, T5): spans of a text give way to sentinels, and are to be said.

It works on token ids and knows no model. `restored` undoes it exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from uptake.errors import BadInput
from uptake.text.tokenizer import Tokenizer

Ids = list[int]


@dataclass(frozen=True)
class SpanCorruption:
    """`share` of the tokens are taken out, in spans of `mean_length` on average.

    `sentinels` stand where the spans were, the first one for the first span. There are never more spans
    than sentinels, and at least one token stays before each.
    """

    sentinels: tuple[int, ...]
    share: float = 0.15
    mean_length: float = 3.0

    def __post_init__(self) -> None:
        if not self.sentinels or not 0 < self.share < 1 or not self.mean_length >= 1:
            raise BadInput(
                f"{len(self.sentinels)} sentinels, share {self.share}, mean length {self.mean_length}: use "
                "at least one sentinel, a share between 0 and 1, and a length of 1 or more"
            )

    @classmethod
    def of(cls, tokenizer: Tokenizer, share: float = 0.15, mean_length: float = 3.0) -> "SpanCorruption":
        """Return it with a tokenizer's `<extra_id_0>`, `<extra_id_1>`, ... Raises BadInput without any."""
        vocabulary: dict[str, int] = tokenizer.inner.get_vocab()
        found: Ids = []
        while (name := f"<extra_id_{len(found)}>") in vocabulary:
            found.append(vocabulary[name])
        if not found:
            raise BadInput(
                "the tokenizer has no <extra_id_0> to stand for a span: use one of T5's, or add such tokens"
            )
        return cls(tuple(found), share, mean_length)

    def counts(self, tokens: int) -> tuple[int, int]:
        """Return how many of so many tokens are taken out, and in how many spans. Raises BadInput below 2."""
        if tokens < 2:
            raise BadInput(f"a text of {tokens} tokens: give at least 2, one to take out and one to stay")
        taken = min(max(round(self.share * tokens), 1), tokens - 1)
        spans = max(1, round(taken / self.mean_length))
        return taken, min(spans, taken, tokens - taken, len(self.sentinels))

    def raw_tokens(self, inputs: int) -> int:
        """Return the longest text whose input, with an end token behind it, has at most so many tokens."""
        length = max(2, inputs - 1)
        while True:
            taken, spans = self.counts(length + 1)
            if length + 1 - taken + spans + 1 > inputs:
                return length
            length += 1

    def corrupt(self, ids: Sequence[int], generator: np.random.Generator) -> tuple[Ids, Ids]:
        """Return the input, with a sentinel for each span, and the target: each sentinel and its span.

        Neither has an end token. Spans and what stays between them are each cut evenly at random; what
        stays comes first. Raises BadInput for a text of fewer than 2 tokens, or one that holds a sentinel.
        """
        if held := {*self.sentinels}.intersection(ids):
            raise BadInput(f"the text holds sentinel {min(held)} itself: leave it out")
        taken, spans = self.counts(len(ids))
        stays, leaves = (_cut(count, spans, generator) for count in (len(ids) - taken, taken))
        inputs, target, at = Ids(), Ids(), 0
        for sentinel, kept, left in zip(self.sentinels, stays, leaves, strict=False):
            inputs += [*ids[at : at + kept], sentinel]
            target += [sentinel, *ids[at + kept : at + kept + left]]
            at += kept + left
        return inputs, target

    def restored(self, inputs: Sequence[int], target: Sequence[int]) -> Ids:
        """Return the text that an input and a target without end tokens were made of.

        Raises BadInput where the target says no span for one of the input's sentinels.
        """
        said: dict[int, Ids] = {}
        for token in target:
            if token in self.sentinels:
                said[token] = span = []
            elif said:
                span.append(token)
        if missing := [token for token in inputs if token in self.sentinels and token not in said]:
            raise BadInput(f"the target has nothing for sentinel {missing[0]}: give the target of this input")
        return [each for token in inputs for each in said.get(token, [token])]


def _cut(count: int, parts: int, generator: np.random.Generator) -> list[int]:
    """Return positive lengths that add up to `count`, every way of cutting it as likely as any other."""
    drawn: list[int] = generator.choice(count - 1, parts - 1, replace=False).tolist() if parts > 1 else []
    ends = [0, *sorted(at + 1 for at in drawn), count]
    return [after - before for before, after in pairwise(ends)]
