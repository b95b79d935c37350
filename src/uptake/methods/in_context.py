"""The nearest passages before the prompt, as many as the window holds; no weight moves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from uptake.errors import BadInput
from uptake.lm import LM
from uptake.method import Context, Evidence, Method, State, Way, same_length
from uptake.wrappers import Prefixed


@dataclass(frozen=True, kw_only=True)
class Before(State):
    """Token ids to put before the text."""

    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class InContext(Method[Before]):
    """Puts passages before the text, the nearest one next to it, the farthest dropped first.

    Room is left for the query's own text and as much again, but at most `own_share` of the window;
    what does not fit of the last passage is cut at its beginning.
    """

    own_share: float = 0.75
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        if not 0 < self.own_share < 1:
            raise BadInput(f"own share {self.own_share}: use a share of the window between 0 and 1")

    @classmethod
    def example(cls) -> Self:
        return cls()

    def init(self, lm: LM) -> Before:
        return Before(base=lm.fingerprint)

    def take(
        self,
        states: Sequence[Before],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[Before]:
        same_length(states, evidence)
        after = []
        for row, (state, found) in enumerate(zip(states, evidence, strict=True)):
            if not found.passages:
                after.append(state)
                continue
            read = state.after(found, context)
            tokens = self._tokens(lm, read, found.query)
            context.ledger(row).tokens_read += max(0, len(tokens) - len(state.tokens))
            after.append(Before(base=read.base, history=read.history, tokens=tuple(tokens)))
        return after

    def on(self, states: Sequence[Before], lm: LM) -> LM:
        for state in states:
            if state.base != lm.fingerprint:
                raise BadInput(
                    f"the state was made for model {state.base}, not {lm.fingerprint}: load that model"
                )
        return Prefixed(lm, [state.tokens for state in states])

    def _tokens(self, lm: LM, state: Before, query: str) -> list[int]:
        own = max(2 * len(lm.tokenizer.encode(query)[0]) + 1, lm.window // 4)
        room = lm.window - min(own, int(self.own_share * lm.window)) - 1
        read = [
            pair for reading in state.history for pair in zip(reading.passages, reading.scores, strict=True)
        ]
        # Nearest first; of what was read without a score, in a stream, the latest is the nearest.
        places = sorted(range(len(read)), key=lambda i: (-read[i][1], -i))
        tokens: list[int] = []
        for passage in (read[i][0] for i in places):
            piece = lm.tokenizer.encode(passage.prompt + passage.text + self.separator)[0]
            tokens = [*piece, *tokens]
            if len(tokens) >= room:
                break
        return [lm.tokenizer.opening, *tokens[-room:]] if room > 0 else []


way = Way(InContext())
