"""Continuing texts token by token: one prompt or many side by side, as a stream of tokens.

A model with `step` reads each token once. One that has `predictions` alone, such as an encoder-decoder, reads
what it has written again for each token.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from uptake import arguments
from uptake.errors import BadInput, Diverged
from uptake.lm.examples import Example
from uptake.lm.rows import left_padded
from uptake.text.detokenizer import Detokenizer
from uptake.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from uptake.lm.base import LM

Finish = Literal["", "stop", "end", "length", "window", "cancelled"]


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a continuation, and the text that became certain with it.

    Texts join to the continuation; one may be empty, where a character or a stop word may still be
    incomplete. `log_prob` is natural, of the model itself at any temperature, and `alternatives` are the
    likeliest tokens with theirs, the likeliest first. The last value says in `finish` what ended the text:
    a stop word, the end token, the number of tokens, the window, or the caller. Where no token came with
    the end, `id` is None.
    """

    id: int | None
    text: str
    log_prob: float = 0.0
    alternatives: tuple[tuple[int, float], ...] = ()
    finish: Finish = ""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How texts go on: greedy at temperature 0, else sampled, every row from the same `seed`.

    With `top_p` below 1 only the likeliest tokens whose probabilities add up to it are drawn from (Holtzman
    et al. 2020). At most `tokens` tokens, up to the first of the `stop` words, which is not part of the
    text. Where the window is full the text goes on from its later half. Without `beyond_window` it ends
    there, and a prompt that leaves less than `tokens` of the window free loses its beginning.
    """

    tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    alternatives: int = 0
    top_p: float = 1.0
    beyond_window: bool = True

    def __post_init__(self) -> None:
        arguments.several("stop", self.stop)
        for name in ("tokens", "seed", "alternatives"):
            arguments.count(name, getattr(self, name))
        if not 0 <= self.temperature < math.inf:
            raise BadInput(f"temperature {self.temperature}: use a finite number, 0 for greedy")
        if min(self.tokens, self.alternatives) < 0:
            raise BadInput(f"tokens {self.tokens}, alternatives {self.alternatives}: use 0 or more of each")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top_p {self.top_p}: use more than 0 and at most 1")


def stream(
    lm: "LM",
    prompts: Sequence[str],
    decoding: Decoding,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Token]]:
    """Yield (row, token) as texts go on, row i from `prompts[i]` and by row i where the LM has rows.

    One forward pass a token for all rows; a row goes on as it would by itself, up to rounding. A prompt that
    is too long loses its beginning. `cancelled` is called before every pass. Raises Diverged for a row whose
    prediction is not finite, once the others have come to their end.
    """
    rows = [
        Continuation(lm.tokenizer, lm.tokenizer.opened(prompt), lm.max_input_tokens(row), decoding)
        for row, prompt in enumerate(prompts)
    ]
    yield from go_on(lm, rows, cancelled)


def go_on(
    lm: "LM", rows: "Sequence[Continuation]", cancelled: Callable[[], bool] = lambda: False
) -> Iterator[tuple[int, Token]]:
    """Yield (row, token) as `stream` does, for continuations that each have their own decoding."""
    for row, continuation in enumerate(rows):
        if not continuation.wanted:
            yield row, continuation.ended("length")
    running = [row for row, continuation in enumerate(rows) if not continuation.done]
    batch: _Batch | None = None
    broken: list[Diverged] = []
    while running:
        if cancelled():
            yield from ((row, rows[row].ended("cancelled")) for row in running)
            break
        if batch is None or batch.full:
            some = lm if len(running) == len(rows) else lm.at(running)
            batch = _Batch(some, running, [rows[row] for row in running])
        for row, log_probs in batch.step():
            try:
                token = rows[row].choose(log_probs)
            except Diverged as error:
                # A private model that is broken is no reason for its neighbours to stop.
                rows[row].done = True
                broken.append(error)
                continue
            yield row, token
        running = [row for row in running if not rows[row].done]
    if broken:
        raise broken[0]


class _Batch:
    """Rows that go on together. One that is done stays, so that the others' grid is what it was."""

    def __init__(self, lm: "LM", numbers: Sequence[int], rows: "Sequence[Continuation]") -> None:
        self._lm, self._numbers, self._rows = lm, list(numbers), list(rows)
        for row in rows:
            row.fit()
        self._cache, self._begun = lm.start(), False

    @property
    def full(self) -> bool:
        """Whether a row has filled its window, so that all have to be read afresh."""
        return any(len(row.ids) > row.most for row in self._rows)

    def step(self) -> list[tuple[int, Tensor]]:
        """Return each row that goes on, and the log-probabilities [vocabulary] of its next token."""
        going_on = []
        for number, row, own in zip(self._numbers, self._rows, self._next(), strict=True):
            if row.done:
                row.ids.append(0)
            else:
                going_on.append((number, own))
        return going_on

    def _next(self) -> Sequence[Tensor]:
        """Return the log-probabilities [vocabulary] of every row's next token."""
        if not self._lm.has_step:
            with torch.no_grad():
                found = self._lm.predictions([row.example for row in self._rows])
            return [log_probs[-1].float().cpu() for log_probs in found]
        lengths = None
        if self._begun and self._cache is not None:
            ids = torch.tensor([row.ids[-1:] for row in self._rows], device=self._lm.device)
        else:
            # An LM that keeps no cache reads everything again.
            ids, lengths = left_padded([row.ids for row in self._rows], self._lm.device)
        with torch.no_grad():
            log_probs, self._cache = self._lm.read_on(ids, self._cache, lengths)
        self._begun = True
        return list(log_probs.float().cpu())


class Continuation:
    """One text that goes on: its tokens, the text that was returned, and the text that waits.

    `ids` is what a model reads, the opening token first; it has the `most` input tokens of that model.
    """

    def __init__(self, tokenizer: Tokenizer, ids: Sequence[int], most: int, decoding: Decoding) -> None:
        read = most if decoding.beyond_window else max(1, most - decoding.tokens)
        self.ids, self.most, self.done = list(ids)[-read:], most, False
        self._context = len(self.ids)  # tokens that an encoder reads; those after them were written
        self._end, self._decoding = tokenizer.end, decoding
        self._generator = torch.Generator().manual_seed(decoding.seed)
        self._detokenizer = Detokenizer(tokenizer, ids[1:] if ids[0] == tokenizer.opening else ids)
        self._count, self._held = 0, ""
        self.wanted = decoding.tokens

    @property
    def example(self) -> Example:
        """What `predictions` needs to predict the next token, in whose place any token stands."""
        return Example(tuple(self.ids[: self._context]), (*self.ids[self._context :], 0))

    def fit(self) -> None:
        """Go on from the later half of the window where it is full: all of it becomes context."""
        if len(self.ids) > self.most:
            self.ids = self.ids[-(self.most // 2) :]
            self._context = len(self.ids)

    def choose(self, log_probs: Tensor) -> Token:
        """Choose the next token from its log-probabilities [vocabulary]. Raises Diverged for no numbers."""
        if log_probs.isnan().any():
            raise Diverged(
                f"the model's prediction after {self._count:,} tokens is not finite: use another number "
                "format, or a smaller learning rate where it was adapted"
            )
        token, temperature = int(log_probs.argmax()), self._decoding.temperature
        # A temperature so near to zero that even the likeliest overflows leaves no other token a chance.
        if temperature > 0 and (scaled := log_probs / temperature)[token].isfinite():
            shares = _nucleus(scaled.softmax(-1), self._decoding.top_p)
            token = int(torch.multinomial(shares, 1, generator=self._generator))
        best = log_probs.topk(min(self._decoding.alternatives, len(log_probs)))
        alternatives = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        self.ids.append(token)
        self._count += 1
        finish: Finish = ""
        if token == self._end:
            finish = "end"
        else:
            self._held += self._detokenizer.push(token)
            if self._count == self._decoding.tokens:
                finish = "length"
            elif not self._decoding.beyond_window and len(self.ids) > self.most:
                finish = "window"
        text, finish = self._let_out(finish)
        return Token(token, text, float(log_probs[token]), alternatives, finish)

    def ended(self, finish: Finish) -> Token:
        """Return the rest of the text, which goes on no further."""
        text, finish = self._let_out(finish)
        return Token(None, text, finish=finish)

    def _let_out(self, finish: Finish) -> tuple[str, Finish]:
        """Return the text that is certain now, and how the text ended, if it did."""
        if finish:
            self._held += self._detokenizer.flush()
        stop = self._decoding.stop
        cut = min((at for word in stop if word and (at := self._held.find(word)) >= 0), default=-1)
        if cut >= 0:
            finish, safe = "stop", cut
        else:
            # What may be the beginning of a stop word waits.
            waits = 0 if finish else max((len(word) for word in stop), default=1) - 1
            safe = max(0, len(self._held) - waits)
        text, self._held = self._held[:safe], self._held[safe:]
        self.done = bool(finish)
        return text, finish


def _nucleus(shares: Tensor, top_p: float) -> Tensor:
    """Return the probabilities of the likeliest tokens that add up to `top_p`, 0 for all others."""
    if top_p == 1:
        return shares
    ordered, places = shares.sort(descending=True, stable=True)
    # A token stays where those before it do not suffice; the first always does, though `top_p` round to zero.
    enough = ordered.cumsum(-1) - ordered >= top_p
    enough[..., 0] = False
    ordered = ordered.masked_fill(enough, 0.0)
    return torch.zeros_like(shares).scatter(-1, places, ordered)
