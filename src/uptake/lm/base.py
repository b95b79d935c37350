"""The language model as everything else sees it: two primitives, and scoring and generation built on them.

A wrapper writes `step` and inherits the rest. Scorers, servers and reports use only `LM` and do
not know which method made it, nor what kind of network is underneath.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

from uptake import arguments
from uptake.adaptation.delta import Delta
from uptake.adaptation.trainable import Trainable, TrainableCopy
from uptake.errors import BadInput
from uptake.lm.examples import Example, at_targets, encode, of_target, padded, rolling_windows
from uptake.lm.generation import Decoding, Token, stream
from uptake.text.round_trip import round_trip
from uptake.text.tokenizer import Spans, Tokenizer

# Log-probabilities held at once while scoring: 256 MB of float32.
LOG_PROBS = 1 << 26
Cache = Any  # whatever `start` returns; None means: no cache
LMT = TypeVar("LMT", bound="LM")


@dataclass(frozen=True, slots=True)
class Segment:
    """A text to score, given the context before it (which is read, not scored)."""

    text: str
    context: str = ""


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of one segment: the natural log-probability of each token.

    `spans[i]` are the characters of the segment's text that token i covers. Where the tokenizer does not give
    a part of the text back, its tokens are `lost`: neither their bits nor their bytes count.
    """

    log_probs: Tensor  # [tokens], float64, of the lost ones as well
    spans: Spans
    bytes: int  # UTF-8 bytes of the text that are scored
    bytes_not_scored: int = 0  # the rest of them
    lost: tuple[int, ...] = ()  # numbers of tokens

    @staticmethod
    def of(tokenizer: Tokenizer, text: str, ids: Sequence[int], spans: Spans, log_probs: Tensor) -> "Scores":
        """Return the scores of a text from the log-probability of each of its tokens."""
        back = round_trip(tokenizer, text, ids, spans)
        return Scores(log_probs.double().cpu(), spans, back.bytes, back.bytes_lost, back.lost)

    @property
    def scored(self) -> Tensor:
        """The log-probabilities that count, [tokens that are not lost]."""
        if not self.lost:
            return self.log_probs
        kept = torch.ones(len(self.log_probs), dtype=torch.bool)
        kept[[*self.lost]] = False
        return self.log_probs[kept]

    @property
    def bits(self) -> float:
        return -self.scored.sum().item() / math.log(2)

    def shifted(self, characters: int) -> "Scores":
        """Return the same scores for a text that begins so many characters later."""
        return replace(self, spans=tuple((start + characters, end + characters) for start, end in self.spans))

    @staticmethod
    def joined(parts: Sequence["Scores"]) -> "Scores":
        """Return the scores of consecutive pieces as those of the whole."""
        log_probs = torch.cat([torch.zeros(0, dtype=torch.float64), *(part.log_probs for part in parts)])
        spans = tuple(span for part in parts for span in part.spans)
        begins = [0, *accumulate(len(part.spans) for part in parts)]
        lost = tuple(begin + place for begin, part in zip(begins, parts, strict=False) for place in part.lost)
        sizes = sum(part.bytes for part in parts), sum(part.bytes_not_scored for part in parts)
        return Scores(log_probs, spans, *sizes, lost)


class LM(ABC):
    """A language model over one tokenizer.

    `rows` is None where every row of a batch is treated alike; an LM whose rows differ (each
    with its own weights or its own memory) has a fixed number of them, and `at` picks some.
    """

    tokenizer: Tokenizer
    window: int  # most input tokens of one forward pass
    fingerprint: str  # of the base model underneath
    device: torch.device
    rows: int | None = None
    has_step: bool = True  # False: it has `predictions` alone, and texts are continued by these

    @abstractmethod
    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        """Return log-probabilities [batch, time, vocabulary] of the token after each of `ids`.

        `ids` is [batch, time] and goes on from `cache`, which this call uses up; the new cache is
        returned with the result (None in, None out). Differentiable. Position t sees ids up to t,
        so anything may stand to the right of a row's end. With `lengths` row i is the last `lengths[i]`
        of its ids alone: what is left of them is padding, which no token sees and whose log-probabilities
        mean nothing. Rows of a cache keep their own lengths, so only what is read into an empty one has them.
        """

    def read_on(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        """Return log-probabilities [batch, vocabulary] of the token after the last of `ids`.

        As `step`, at the last place alone: of a long prompt and a large vocabulary all others are dear.
        """
        log_probs, cache = self.step(ids, cache, lengths)
        return log_probs[:, -1], cache

    def start(self) -> Cache:
        """Return an empty cache for `step`."""
        return None

    def capable(self, kind: type[LMT]) -> LMT | None:
        """Return this LM, or the one it passes everything on to, as one of this kind; None where it is not.

        The kinds are in lm/capabilities.py; call `capability` there.
        """
        return self if isinstance(self, kind) else None

    def at(self, rows: Sequence[int]) -> "LM":
        """Return the LM whose rows are these rows of this one."""
        return self

    @abstractmethod
    def overlay(self, delta: Delta) -> "LM":
        """Return this LM with a delta on the base model underneath; this one stays as it is."""

    @abstractmethod
    def trainable_copy(
        self, trainable: Trainable, start: Delta, generator: torch.Generator
    ) -> tuple["LM", TrainableCopy]:
        """Return a private copy of this LM with `start` on it, and its trainable parameters."""

    @abstractmethod
    def with_parameters(self, parameters: Mapping[str, Tensor]) -> "LM":
        """Return this LM computed with these tensors in place of its parameters of the same names.

        Differentiable twice in them. Names are those of `TrainableCopy.parameters`; use the LM that
        `trainable_copy` returned, or, at a higher cost, any other: parameters without one stay as here.
        """

    def max_input_tokens(self, row: int) -> int:
        """Return the most input tokens that row `row` can take in one forward pass."""
        return self.window

    def score(self, segments: Sequence[Segment], batch_tokens: int | None = None) -> list[Scores]:
        """Return the log-probability of every token of every segment.

        Rolling windows as lm-evaluation-harness makes them: the opening token first, disjoint
        targets, one token of overlap; a context that fits is seen by the first window. Where the
        LM has rows, segment i is scored by row i. `batch_tokens` bounds the tokens of one forward
        pass; left out, a large vocabulary means smaller batches.
        """
        arguments.records("segments", segments, "context", "a list of Segment(text, context)")
        self._check_rows(len(segments))
        examples = [encode(self.tokenizer, segment.context, segment.text) for segment in segments]
        windows = [
            (row, window)
            for row, example in enumerate(examples)
            for window in rolling_windows(example, self.max_input_tokens(row))
        ]
        pieces: list[list[Tensor]] = [[torch.zeros(0, dtype=torch.float64)] for _ in segments]
        for batch in _batches(windows, batch_tokens or LOG_PROBS // len(self.tokenizer)):
            rows = [row for row, _ in batch]
            with torch.no_grad():
                found = self.at(rows).token_log_probs([window for _, window in batch])
            for row, log_probs in zip(rows, found, strict=True):
                pieces[row].append(log_probs.double().cpu())
        return [
            Scores.of(self.tokenizer, segment.text, example.target, example.spans, torch.cat(parts))
            for segment, example, parts in zip(segments, examples, pieces, strict=True)
        ]

    def predictions(self, examples: Sequence[Example]) -> list[Tensor]:
        """Return log-probabilities [targets, vocabulary] at each place of each example's target.

        One forward pass, differentiable; example i by row i where the LM has rows. Losses, scores and
        divergences all stand on this. An encoder-decoder writes it in place of `step`, which it refuses, and
        sets `has_step` to False. Examples have at most `max_input_tokens` inputs.
        """
        self._check_rows(len(examples))
        log_probs, _ = self.step(padded([example.inputs for example in examples]).to(self.device))
        return at_targets(log_probs, examples)

    def token_log_probs(self, examples: Sequence[Example]) -> list[Tensor]:
        """Return the log-probability of each token of each example's target, [targets]; differentiable."""
        pairs = zip(self.predictions(examples), examples, strict=True)
        return [of_target(log_probs, example) for log_probs, example in pairs]

    def generate(
        self,
        prompt: str,
        tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> str:
        """Return the continuation of `prompt`: greedy at temperature 0, else sampled with `seed`.

        Ends after `tokens` tokens, at the model's end token, or before the first of `stop`.
        """
        arguments.several("stop", stop)
        decoding = Decoding(tokens=tokens, temperature=temperature, seed=seed, stop=tuple(stop))
        return self.generate_rows([prompt], decoding)[0]

    def generate_rows(self, prompts: Sequence[str], decoding: Decoding) -> list[str]:
        """Return the continuation of each prompt, in one batch; prompt i by row i where the LM has rows."""
        texts = [""] * len(prompts)
        for row, token in self.stream_rows(prompts, decoding):
            texts[row] += token.text
        return texts

    def stream(
        self, prompt: str, decoding: Decoding, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Token]:
        """Yield the tokens of a continuation one by one; `cancelled` is called before each."""
        return (token for _, token in self.stream_rows([prompt], decoding, cancelled))

    def stream_rows(
        self, prompts: Sequence[str], decoding: Decoding, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, Token]]:
        """Yield (row, token) of the continuations of many prompts, as `generation.stream` does."""
        arguments.several("prompts", prompts)
        for prompt in prompts:
            arguments.text("prompt", prompt)
        self._check_rows(len(prompts))
        return stream(self, prompts, decoding, cancelled)

    def _check_rows(self, count: int) -> None:
        if self.rows is not None and self.rows != count:
            raise BadInput(
                f"{count} texts for a model with {self.rows} rows: give one a row, or select rows with at()"
            )


class Wrapper(LM):
    """An LM around another: everything but `step` is the inner one's until a wrapper says otherwise."""

    def __init__(self, inner: LM) -> None:
        self.inner = inner
        self.tokenizer = inner.tokenizer
        self.window = inner.window
        self.fingerprint = inner.fingerprint
        self.device = inner.device
        self.rows = inner.rows
        self.has_step = inner.has_step

    @abstractmethod
    def around(self, inner: LM) -> Self:
        """Return the same wrapper around another LM."""

    def start(self) -> Cache:
        return self.inner.start()

    def at(self, rows: Sequence[int]) -> LM:
        return self.around(self.inner.at(rows))

    def max_input_tokens(self, row: int) -> int:
        return self.inner.max_input_tokens(row)

    def overlay(self, delta: Delta) -> LM:
        return self.around(self.inner.overlay(delta))

    def trainable_copy(
        self, trainable: Trainable, start: Delta, generator: torch.Generator
    ) -> tuple[LM, TrainableCopy]:
        inner, opened = self.inner.trainable_copy(trainable, start, generator)
        return self.around(inner), opened

    def with_parameters(self, parameters: Mapping[str, Tensor]) -> LM:
        return self.around(self.inner.with_parameters(parameters))


def _batches(windows: list[tuple[int, Example]], batch_tokens: int) -> Iterator[list[tuple[int, Example]]]:
    """Group windows, each with its row, by like length, keeping the windows of each row in order."""
    ordered = sorted(windows, key=lambda pair: -len(pair[1].inputs))
    batch: list[tuple[int, Example]] = []
    for row, window in ordered:
        if batch and len(batch[0][1].inputs) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append((row, window))
    if batch:
        yield batch
