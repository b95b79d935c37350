"""An n-gram memory: mixes in what followed the last tokens of a text in passages near to the query."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.examples import encode
from uptake.lm.experts import FixedShare
from uptake.methods.contract.composed import FrozenModelMethod
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State, same_base, same_length
from uptake.methods.n_gram.memory import NGramMemory, Smoothing
from uptake.methods.n_gram.mixture import Mixing, NGramMixture
from uptake.text.select import Everywhere
from uptake.text.types import Found, Source, stable_hash


@dataclass(frozen=True, kw_only=True)
class NGramState(State):
    """The tokens of the texts read, and of each how many are read alone and how many may be predicted."""

    with_processor: ClassVar[frozenset[str]] = frozenset({"tokens"})

    tokens: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    sizes: tuple[tuple[int, int], ...] = ()

    def memory(self) -> NGramMemory | None:
        """Return what predictions are looked up in; None where there is nothing."""
        return NGramMemory(self.tokens.numpy(), self.sizes) if len(self.tokens) else None


@dataclass(frozen=True)
class NGram(FrozenModelMethod[NGramState]):
    """Looks the last 1 to `longest` tokens up in the nearest `passages`, and counts what followed them there.

    Counts are smoothed, the shortest context first, with the model at the bottom: `strengths` and `decay` are
    as Smoothing says. The model by itself and the model under each strength are experts of one mixture: the
    model begins with `base_weight`, so that a text costs at most log2(len(shares) / base_weight) bits more
    than under it, and `shares` are as FixedShare says. No model runs over the passages. Text that comes
    without a store is what is looked up in. `draw=random` is the control: as many passages drawn at random.
    """

    tuning_choices: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("passages=50", "passages=1000"),
        ("longest=6", "longest=24"),
    )

    passages: int = 200
    longest: int = 12
    strengths: tuple[float, ...] = Smoothing.strengths
    decay: float = Smoothing.decay
    base_weight: float = 0.5
    shares: tuple[float, ...] = (0.0, 0.01, 0.1)
    draw: Literal["nearest", "random"] = "nearest"

    def __post_init__(self) -> None:
        if self.passages < 1:
            raise BadInput(f"passages {self.passages}: use 1 or more")
        if not 0 < self.base_weight < 1:
            raise BadInput(f"base_weight {self.base_weight}: use a probability between 0 and 1")
        if self.draw not in ("nearest", "random"):
            raise BadInput(f"draw {self.draw!r}: use nearest or random")
        _ = self._mixing

    @classmethod
    def example(cls) -> Self:
        return cls(strengths=(1.0,))

    def init(self, lm: LM) -> NGramState:
        return NGramState(base=lm.fingerprint)

    def adapt(
        self,
        states: Sequence[NGramState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[NGramState]:
        same_length(states, evidence)
        rows = enumerate(zip(states, evidence, strict=True))
        return [self._adapt(row, state, lm, read, context) for row, (state, read) in rows]

    def around(self, states: Sequence[NGramState], lm: LM, base: LM) -> LM:
        same_base(states, base)
        return NGramMixture(lm, [state.memory() for state in states], self._mixing)

    @property
    def _mixing(self) -> Mixing:
        each = (1 - self.base_weight) / max(1, len(self.strengths))
        smoothing = Smoothing(self.longest, self.strengths, self.decay)
        return Mixing(smoothing, FixedShare((self.base_weight, *[each] * len(self.strengths)), self.shares))

    def _adapt(self, row: int, state: NGramState, lm: LM, evidence: Evidence, context: Context) -> NGramState:
        if evidence.source is not None:
            evidence = replace(evidence, found=self._found(evidence.source, evidence.query, state, context))
        if not evidence.passages:
            return state
        read = [encode(lm.tokenizer, passage.prompt, passage.text) for passage in evidence.passages]
        context.ledger(row).tokens_read += sum(len(example.target) for example in read)
        tokens = [token for example in read for token in (*example.context, *example.target)]
        return state.after(
            evidence,
            context,
            tokens=torch.cat([state.tokens, torch.tensor(tokens, dtype=torch.long)]),
            sizes=(*state.sizes, *((len(each.context), len(each.target)) for each in read)),
        )

    def _found(self, source: Source, query: str, state: NGramState, context: Context) -> Found:
        """Return what of the store is looked up in and was not before."""
        if self.draw == "random":
            seed = stable_hash(str(context.seed), "n-gram", query)
            found = source.sample(self.passages, np.random.default_rng(seed))
        else:
            found = source.search(self.passages)
        known = {passage.id for passage in state.passages}
        return found.at([place for place, each in enumerate(found.passages) if each.id not in known])


spec = MethodSpec(NGram(), Everywhere())
