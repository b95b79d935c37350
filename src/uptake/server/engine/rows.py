"""Rows that write: each choice of a request goes on a token at a tick, in the grid where it can be."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.generation import Continuation, Decoding, Token, go_on
from uptake.lm.grid import Grid
from uptake.lm.grid_rows import Beginning, Own, Seat
from uptake.text.token_bytes import TokenBytes


@dataclass(frozen=True)
class Answers:
    """Who answers a row: what is its own in the grid, or an LM that has to be asked by itself.

    Where both are there, rows are written in the grid, and texts are scored by the LM.
    """

    own: Own | None = None
    lm: LM | None = None

    @property
    def searches(self) -> bool:
        """Whether it may search its store on and on, while it writes."""
        return self.lm is not None or (self.own is not None and self.own.mixture is not None)


@dataclass(eq=False)
class Row:
    """One choice that is being written. `told` are its tokens since the last tick that reported."""

    choice: int
    answers: Answers
    ids: Sequence[int]
    decoding: Decoding
    continuation: Continuation | None = None
    begun: Beginning | None = None  # what was read of it before
    seat: Seat | None = None
    alone: Iterator[tuple[int, Token]] | None = None
    written: int = 0
    told: list[Token] = field(default_factory=list)
    error: Exception | None = None
    done: bool = False


class Writer:
    """All rows that are being written, and the grid that most of them sit in."""

    def __init__(self, base: Causal, grid: Grid | None, most_rows: int) -> None:
        self.base, self.grid, self._most = base, grid, most_rows
        self.rows: list[Row] = []
        self.waiting: list[Row] = []
        self._chosen: dict[Row, int] = {}  # what rows have chosen and not read yet

    @property
    def busy(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.rows or self.waiting)

    def add(self, row: Row) -> None:
        """Let a row wait for its seat."""
        self.waiting.append(row)

    def drop(self, row: Row) -> None:
        """End a row, wherever it is; what it read is gone from the grid."""
        row.done = True
        self._chosen.pop(row, None)
        if row in self.waiting:
            self.waiting.remove(row)
        if row in self.rows:
            self.rows.remove(row)
        if row.seat is not None and self.grid is not None:
            self.grid.leave(row.seat)
            row.seat = None
        row.alone = None

    def tick(self) -> list[Row]:
        """Let every row write a token, after one more row, or all where none writes, has read its prompt.

        Return the rows that have something to tell. They read what they wrote at the next tick, so that
        whoever waits for it hears of it before that pass.
        """
        self._read()
        joined: list[Row] = []
        while self.waiting and len(self.rows) < self._most and (not joined or not self.rows):
            row = self.waiting.pop(0)
            joined.append(row)
            self._guarded(row, self._begin)
            if not row.error:
                self.rows.append(row)
        told = [row for row in joined if row.error]
        for row in [*self.rows]:
            self._guarded(row, self._write)
            told.append(row)
            if row.error or row.done:
                self.drop(row)
            elif row.seat is not None and row.told:
                last = row.told[-1].id
                assert last is not None
                self._chosen[row] = last
        return told

    def _read(self) -> None:
        """Let the rows in the grid read what they wrote last, in one pass."""
        chosen = {row.seat: token for row, token in self._chosen.items() if row.seat is not None}
        self._chosen = {}
        if chosen and self.grid is not None:
            self.grid.step(chosen)

    def _guarded(self, row: Row, do: Any) -> None:
        try:
            do(row)
        except Exception as error:  # one request's model may be broken in any way
            row.error = error
            self.drop(row)

    def _begin(self, row: Row) -> None:
        own, lm = row.answers.own, row.answers.lm
        if own is not None:
            most = self.base.window - own.behind
        else:
            assert lm is not None
            most = lm.max_input_tokens(0)
        if len(row.ids) >= most:
            raise BadInput("what is read before the prompt leaves it no room: read less, or shorten it")
        decoding = replace(row.decoding, tokens=min(row.decoding.tokens, most - len(row.ids)))
        row.continuation = Continuation(self.base.tokenizer, row.ids, most, decoding)
        if not decoding.tokens:
            return
        if own is not None:
            assert self.grid is not None
            row.seat = self.grid.join(own, row.continuation.ids, row.begun)
            row.begun = None
        else:
            assert row.answers.lm is not None
            row.alone = go_on(row.answers.lm, [row.continuation])

    def _write(self, row: Row) -> None:
        assert row.continuation is not None
        if not row.decoding.tokens:
            token = row.continuation.ended("length")
        elif row.seat is not None:
            if row.seat.failed is not None:
                raise row.seat.failed
            token = row.continuation.choose(row.seat.log_probs)
        else:
            assert row.alone is not None
            _, token = next(row.alone)
        row.told.append(token)
        row.written += token.id is not None
        row.done = bool(token.finish)


def plain(token: Token, names: TokenBytes) -> list[Any]:
    """Return a token as data: its bytes, log-probability and alternatives, each with its bytes."""
    assert token.id is not None
    return [
        list(names.of(token.id)),
        token.log_prob,
        [[list(names.of(other)), log_prob] for other, log_prob in token.alternatives],
    ]
