"""An LM that decides once for each prompt who answers it, and holds to that for all tokens that follow.

Gates decided anew at every token flip in the middle of an answer: with a key-value cache the published code
of several gated editors asks about each new token instead of the prompt (EasyEdit#298, #479).
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from torch import Tensor

from uptake.lm.base import LM, Cache, Scores, Segment, Wrapper
from uptake.lm.examples import Example

Ids = tuple[int, ...]


class Asked(NamedTuple):
    """The row that a prompt is asked of, and the prompt's tokens, the opening one first."""

    row: int
    prompt: Ids


class Scoped(Wrapper):
    """Each row's prompt is answered by the LM that `choose` gives for it.

    The prompt is the context of what is scored, and what is read first where a text is continued; it is
    empty where a whole text is read without a cache, for no place may depend on a later token.
    """

    @abstractmethod
    def choose(self, asked: Sequence[Asked]) -> LM:
        """Return an LM whose row i answers asked[i]; the base itself where all of them are out of scope."""

    def around(self, inner: LM) -> Self:
        raise NotImplementedError("what chooses by a base's own states stands on it, not around an LM")

    def start(self) -> Cache:
        return None if self.inner.start() is None else _ScopedCache(None, None)

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        self._check_rows(len(ids))
        if cache is not None and cache.answering is not None:
            log_probs, kept = cache.answering.step(ids, cache.inner)
            return log_probs, _ScopedCache(cache.answering, kept)
        gaps = [ids.shape[1] - length for length in lengths or [ids.shape[1]] * len(ids)]
        if cache is None:
            empty = (self.tokenizer.opening,)
            answering = self.choose([Asked(row, empty) for row in range(len(ids))])
            return answering.step(ids, None, lengths)[0], None
        rows = [Asked(row, tuple(ids[row, gap:].tolist())) for row, gap in enumerate(gaps)]
        answering = self.choose(rows)
        log_probs, kept = answering.step(ids, answering.start(), lengths)
        return log_probs, _ScopedCache(answering, kept)

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        self._check_rows(len(examples))
        asked = [Asked(row, example.context) for row, example in enumerate(examples)]
        return self.choose(asked).predictions(examples)

    def token_log_probs(self, examples: Sequence[Example]) -> list[Tensor]:
        self._check_rows(len(examples))
        asked = [Asked(row, example.context) for row, example in enumerate(examples)]
        return self.choose(asked).token_log_probs(examples)

    def score(self, segments: Sequence[Segment], batch_tokens: int | None = None) -> list[Scores]:
        self._check_rows(len(segments))
        asked = [
            Asked(row, tuple(self.tokenizer.opened(segment.context))) for row, segment in enumerate(segments)
        ]
        return self.choose(asked).score(segments, batch_tokens)


@dataclass(frozen=True, slots=True)
class _ScopedCache:
    """Who answers, None before the prompt was read, and its cache."""

    answering: LM | None
    inner: Cache
