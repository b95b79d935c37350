"""RAG (Lewis et al. 2020): reads each passage by itself, and mixes what is predicted after each of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.capabilities import ApartInputs, capability
from uptake.lm.experts import Experts, FixedShare
from uptake.lm.fusion import Fused
from uptake.lm.wrappers import Prefixed, Routed
from uptake.methods.contract.composed import FrozenModelMethod
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State, same_base, same_length
from uptake.methods.in_context import InContext
from uptake.text.types import Source


@dataclass(frozen=True, kw_only=True)
class RagState(State):
    """Of each passage the tokens to put before the text, and its retrieval score."""

    prefixes: tuple[tuple[int, ...], ...] = ()
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rag(FrozenModelMethod[RagState]):
    """One expert a passage: the model with this passage before the text. Their weights begin as p(z | x).

    `marginal=sequence`: weights follow Bayes' rule token by token, so that a text's probability is
    sum_z p(z | x) prod_i p(y_i | x, z, y_<i) (RAG-sequence). `token`: they are p(z | x) at every token,
    prod_i sum_z p(z | x) p(y_i | x, z, y_<i) (RAG-token). `switching`: between the two, a share of the weight
    dealt out anew at each token, inferred beside (ours). p(z | x) is the softmax of the retrieval scores over
    `temperature`; without one all passages are equally likely at first.
    """

    tuning_choices: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("marginal=sequence", "marginal=token"),
        ("temperature=0.05", "temperature=1", "temperature=10"),
    )

    marginal: Literal["sequence", "token", "switching", "fused"] = "switching"
    temperature: float | None = None
    separator: str = "\n\n"
    own_share: float = 0.75

    def __post_init__(self) -> None:
        if self.marginal not in (*_SHARES, "fused"):
            raise BadInput(f"marginal {self.marginal!r}: use {', '.join(_SHARES)} or fused")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise BadInput(
                f"temperature {self.temperature}: use a positive number, or none for equal weights"
            )
        _ = self._one

    @property
    def _one(self) -> InContext:
        """How one passage stands before a text."""
        return InContext(own_share=self.own_share, separator=self.separator)

    @classmethod
    def example(cls) -> Self:
        return cls()

    def init(self, lm: LM) -> RagState:
        return RagState(base=lm.fingerprint)

    def adapt(
        self,
        states: Sequence[RagState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[RagState]:
        same_length(states, evidence)
        after = []
        for row, (state, read) in enumerate(zip(states, evidence, strict=True)):
            prefixes = [tuple(self._one.prefix(lm, [passage], read.query)) for passage in read.passages]
            context.ledger(row).tokens_read += sum(map(len, prefixes))
            after.append(
                state.after(
                    read,
                    context,
                    prefixes=(*state.prefixes, *prefixes),
                    scores=(*state.scores, *read.found.scores),
                )
                if prefixes
                else state
            )
        return after

    def around(self, states: Sequence[RagState], lm: LM, base: LM) -> LM:
        same_base(states, base)
        return Routed([self._mixture(state, lm.at([row])) for row, state in enumerate(states)])

    def check(self, lm: LM, source: Source | None = None) -> None:
        if self.marginal == "fused":
            capability(lm, ApartInputs)

    def _mixture(self, state: RagState, lm: LM) -> LM:
        if not state.prefixes:
            return lm
        if self.marginal == "fused":
            return Fused(lm, [state.prefixes])
        prior = torch.zeros(len(state.scores), dtype=torch.float64)
        if self.temperature is not None:
            prior = torch.tensor(state.scores, dtype=torch.float64) / self.temperature
        # A passage is never ruled out: a weight of nothing would stay nothing, whatever the text says.
        weights = prior.softmax(0).clamp(min=1e-12)
        sharing = FixedShare(tuple((weights / weights.sum()).tolist()), _SHARES[self.marginal])
        return Experts([Prefixed(lm, [prefix]) for prefix in state.prefixes], sharing)


_SHARES = {"sequence": (0.0,), "token": (1.0,), "switching": (0.0, 0.01, 0.1)}

spec = MethodSpec(Rag())
