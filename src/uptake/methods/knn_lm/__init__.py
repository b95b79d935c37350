"""kNN-LM (Khandelwal et al. 2020): mixes in the tokens that followed similar contexts in a datastore."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.capabilities import FeedForwardKeys, capability
from uptake.methods.contract.composed import FrozenModelMethod
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State, same_base, same_length
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.methods.knn_lm.memory import SearchableTokens, TokenMemory
from uptake.methods.knn_lm.mixture import KnnMixture, Mixing
from uptake.methods.knn_lm.weights import Bayes, Weight
from uptake.text.select import Everywhere
from uptake.text.types import Source, Tokens, stable_hash


@dataclass(frozen=True, kw_only=True)
class KnnState(State):
    """The tokens of the text read, with their keys; or a view of a whole store's tokens, searched there."""

    with_processor: ClassVar[frozenset[str]] = frozenset({"keys", "values", "ends"})

    keys: Tensor = field(default_factory=lambda: torch.empty(0, 0))  # [tokens, width]
    values: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    ends: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))  # of passages
    view: Tokens | None = None


@dataclass(frozen=True)
class KnnLm(FrozenModelMethod[KnnState]):
    """Searches, for each position, the tokens of the whole store, or of the passages it is given.

    Over the `view` it needs a store whose tokens this model has read (`uptake index tokens`); text
    that comes without a store, in a stream or as a bare prompt, is stored in memory, and so are all passages
    with `over=passages`. No weight is trained. `neighbours`, `temperature`, `weight` and `pointers`
    are as Mixing says. `draw=random` is the control: as many tokens drawn from the view at random.
    """

    tuning_choices: ClassVar[tuple[tuple[str, ...], ...]] = (
        tuple(f"temperature={each}" for each in (3, 10, 30, 100, 300)),
        tuple(f"weight=constant(share={each})" for each in (0.02, 0.05, 0.1, 0.4)),
        tuple(f"neighbours={each}" for each in (16, 64, 256)),
    )

    neighbours: int = 1024
    temperature: float = 1.0
    weight: Weight = field(default_factory=Bayes)
    pointers: int = 0
    over: Literal["view", "passages"] = "view"
    draw: Literal["nearest", "random"] = "nearest"

    def __post_init__(self) -> None:
        _ = self._mixing
        if self.over not in ("view", "passages") or self.draw not in ("nearest", "random"):
            raise BadInput(f"over {self.over!r}, draw {self.draw!r}: use view or passages, nearest or random")

    @classmethod
    def example(cls) -> Self:
        return cls(neighbours=8, temperature=30.0)

    @property
    def views(self) -> tuple[str, ...]:
        return ("tokens",) if self.over == "view" else ()

    def check(self, lm: LM, source: Source | None = None) -> None:
        searches = self.over == "view" and source is not None
        view = source.tokens(TokenKeyer(lm).fingerprint) if searches and source else None
        self.adapted([dataclasses.replace(self.init(lm), view=view)], lm)

    def init(self, lm: LM) -> KnnState:
        return KnnState(base=lm.fingerprint)

    def adapt(
        self,
        states: Sequence[KnnState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[KnnState]:
        same_length(states, evidence)
        keys = TokenKeyer(lm)
        rows = enumerate(zip(states, evidence, strict=True))
        return [self._adapt(row, state, keys, read, context) for row, (state, read) in rows]

    def around(self, states: Sequence[KnnState], lm: LM, base: LM) -> LM:
        """Return `lm` with these memories, which `base` has read: it may be `lm` before it was adapted."""
        same_base(states, base)
        key_model = capability(base, FeedForwardKeys)
        return KnnMixture(lm, key_model, [_memory(state) for state in states], self._mixing)

    def forget(self, state: KnnState, lm: LM, ids: Sequence[int], context: Context | None = None) -> KnnState:
        if state.view is None:
            return super().forget(state, lm, ids, context)
        return dataclasses.replace(state, view=state.view.without(ids))

    @property
    def _mixing(self) -> Mixing:
        return Mixing(self.neighbours, self.temperature, self.weight, self.pointers)

    def _adapt(
        self, row: int, state: KnnState, keys: TokenKeyer, evidence: Evidence, context: Context
    ) -> KnnState:
        if self.over == "view" and evidence.source is not None:
            view = evidence.source.tokens(keys.fingerprint)
            if self.draw == "random":
                seed = stable_hash(str(context.seed), "tokens", evidence.query)
                view = view.sample(self.neighbours, np.random.default_rng(seed))
            return state.after(evidence, context, view=view)
        if not evidence.passages:
            return state
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for passage in evidence.passages:
            # One at a time, so that no passage's keys depend on which others are read beside it.
            (read,) = keys.read([passage.prompt + passage.text])
            own = read.starts >= len(passage.prompt)
            ends = torch.zeros(int(own.sum()), dtype=torch.bool)
            ends[-1:] = True
            values = torch.from_numpy(read.values[own].astype(np.int64))
            parts.append((torch.from_numpy(read.keys[own]).float(), values, ends))
            context.ledger(row).tokens_read += len(values)
        if len(state.values):
            parts.insert(0, (state.keys, state.values, state.ends))
        joined = [torch.cat(each) for each in zip(*parts, strict=True)]
        return state.after(evidence, context, keys=joined[0], values=joined[1], ends=joined[2])


def _memory(state: KnnState) -> SearchableTokens | None:
    if state.view is not None:
        return state.view
    return TokenMemory(state.keys, state.values, state.ends) if len(state.values) else None


spec = MethodSpec(KnnLm(), Everywhere())
