"""Puts the nearest passages before the prompt, as many as fit in the window; trains nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.wrappers import Prefixed
from uptake.methods.contract.composed import FrozenModelMethod
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State, same_base, same_length
from uptake.methods.in_context.refreshed import Refreshed, RowPrefix
from uptake.text.types import Passage, Source


@dataclass(frozen=True, kw_only=True)
class PrefixState(State):
    """Token ids to put before the text, and the source to search again as the text continues."""

    tokens: tuple[int, ...] = ()
    source: Source | None = None
    query: str = ""  # what was searched for first
    forgotten: tuple[int, ...] = ()  # passages that are not to be found again


@dataclass(frozen=True)
class InContext(FrozenModelMethod[PrefixState]):
    """Puts passages before the text, the nearest one next to it, the farthest dropped first.

    Part of the window stays free for the query's own text and as much again, but at most `own_share` of the
    window; the last passage is cut at its beginning to fit. With `refresh` the store is
    searched again after every so many tokens beyond the query's, with the last `recent` characters
    of the text so far (Ram et al. 2023, arXiv 2302.00083), and what is found takes the old place.
    """

    tuning_choices: ClassVar[tuple[tuple[str, ...], ...]] = (("refresh=64", "refresh=16"), ("own_share=0.5",))

    own_share: float = 0.75
    separator: str = "\n\n"
    refresh: int | None = None  # tokens
    recent: int = 256  # characters

    def __post_init__(self) -> None:
        if not 0 < self.own_share < 1:
            raise BadInput(f"own share {self.own_share}: use a share of the window between 0 and 1")
        if self.recent < 1 or (self.refresh is not None and self.refresh < 1):
            raise BadInput(f"refresh {self.refresh}, recent {self.recent}: use 1 or more, or refresh none")

    @classmethod
    def example(cls) -> Self:
        return cls()

    def init(self, lm: LM) -> PrefixState:
        return PrefixState(base=lm.fingerprint)

    def adapt(
        self,
        states: Sequence[PrefixState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[PrefixState]:
        same_length(states, evidence)
        after = []
        for row, (state, found) in enumerate(zip(states, evidence, strict=True)):
            if not found.passages:
                after.append(state)
                continue
            read = state.after(found, context)
            tokens = self.prefix(lm, _nearest(read), found.query)
            context.ledger(row).tokens_read += max(0, len(tokens) - len(state.tokens))
            source = found.source if self.refresh else None
            after.append(
                PrefixState(
                    base=read.base,
                    history=read.history,
                    tokens=tuple(tokens),
                    source=source,
                    query=found.query,
                    forgotten=tuple(sorted({*state.forgotten} - {passage.id for passage in found.passages})),
                )
            )
        return after

    def forget(
        self, state: PrefixState, lm: LM, ids: Sequence[int], context: Context | None = None
    ) -> PrefixState:
        left = super().forget(state, lm, ids, context)
        if state.source is None or not left.history:
            return left
        # Reading again knows no store: the place to look in stays, without what is forgotten.
        forgotten = tuple(sorted({*state.forgotten, *ids}))
        return replace(left, source=state.source, query=state.query, forgotten=forgotten)

    def around(self, states: Sequence[PrefixState], lm: LM, base: LM) -> LM:
        same_base(states, base)
        if self.refresh is None or all(state.source is None for state in states):
            return Prefixed(lm, [state.tokens for state in states])
        return Refreshed(lm, [self._fresh(state, lm) for state in states], self.refresh)

    def prefix(self, lm: LM, passages: Sequence[Passage], query: str) -> list[int]:
        """Return the tokens that stand before the text of this query for these passages, nearest first."""
        return self._tokens(lm, passages, self._max_tokens(lm, query))

    def _fresh(self, state: PrefixState, lm: LM) -> RowPrefix:
        max_tokens, source = self._max_tokens(lm, state.query), state.source
        read = sum(len(reading.passages) for reading in state.history)

        def find(text: str) -> list[int]:
            assert source is not None
            found = source.again(text[-self.recent :]).search(read + len(state.forgotten)).passages
            left = [passage for passage in found if passage.id not in state.forgotten]
            return self._tokens(lm, left[:read], max_tokens)

        known = 1 + len(lm.tokenizer.encode(state.query)[0])
        return RowPrefix(list(state.tokens), known, max_tokens, None if source is None else find)

    def _max_tokens(self, lm: LM, query: str) -> int:
        """Return how many tokens of passages stand before the text of this query."""
        own = max(2 * len(lm.tokenizer.encode(query)[0]) + 1, lm.window // 4)
        return lm.window - min(own, int(self.own_share * lm.window)) - 1

    def _tokens(self, lm: LM, passages: Sequence[Passage], max_tokens: int) -> list[int]:
        """Return what is put before the text for these passages, nearest first."""
        tokens: list[int] = []
        for passage in passages:
            piece = lm.tokenizer.encode(passage.prompt + passage.text + self.separator)[0]
            tokens = [*piece, *tokens]
            if len(tokens) >= max_tokens:
                break
        return [lm.tokenizer.opening, *tokens[-max_tokens:]] if max_tokens > 0 and tokens else []


def _nearest(state: PrefixState) -> list[Passage]:
    """Return what was read, nearest first; of what has no score, in a stream, the latest is the nearest."""
    read = [pair for reading in state.history for pair in zip(reading.passages, reading.scores, strict=True)]
    return [read[i][0] for i in sorted(range(len(read)), key=lambda i: (-read[i][1], -i))]


spec = MethodSpec(InContext())
