"""Online fine-tuning under a budget: of every few documents of a stream those worth most are learnt.

The steps are those of `online`; which documents they are taken on goes by one pass of the model, as it is by
then, over each: BAIT's choice (Ash et al. 2021), the highest loss, or chance, the control.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import numpy as np

from uptake.adaptation.optimizers import AdamW
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.capabilities import HiddenStates, capability
from uptake.lm.fisher import FisherReader
from uptake.methods.bait import in_units
from uptake.methods.contract.composed import MethodWrapper
from uptake.methods.contract.method import Context, Evidence, MethodSpec, charged_by_row
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.finetune import Finetune
from uptake.text.bait import bait
from uptake.text.select import Nothing
from uptake.text.types import Found, Passage, Source


@dataclass(frozen=True, kw_only=True)
class ChoosingState(WeightState):
    """What was learnt, and the documents that wait until there are enough of them to choose among."""

    waiting: tuple[Passage, ...] = ()


@dataclass(frozen=True)
class OnlineChosen(MethodWrapper[ChoosingState]):
    """Learns `keep` of every `of` documents, in their order, once the last of them has come.

    `by` is `bait`, which chooses those that together leave least to be told about all of them, `loss`, those
    that the model predicts worst, or `random`. Until `of` documents have come nothing is learnt, so that
    reading shows only then: the last ones of a stream, fewer than `of`, are not learnt at all.
    """

    trains_weights_only: ClassVar[bool] = True

    inner: Finetune = field(default_factory=lambda: Finetune(optimizer=AdamW(weight_decay=0.0)))
    keep: int = 4
    of: int = 8
    by: Literal["bait", "loss", "random"] = "bait"
    regularisation: float = 0.01  # of BAIT, in units of what a document tells

    def __post_init__(self) -> None:
        if not 1 <= self.keep <= self.of:
            raise BadInput(f"keep {self.keep} of {self.of}: use 1 to {self.of} of them")
        if self.by not in ("bait", "loss", "random"):
            raise BadInput(f"by {self.by!r}: use bait, loss or random")
        if not 0 < self.regularisation < float("inf"):
            raise BadInput(f"regularisation {self.regularisation}: use a positive number such as 0.01")

    @property
    def wrapped(self) -> Finetune:  # type: ignore[override]
        return self.inner

    @property
    def private(self) -> bool:
        """No: raises BadInput where `online` would be, for what is chosen depends on the text itself."""
        if self.inner.private:
            raise BadInput("online-chosen under privacy looks at the text to choose: use online")
        return False

    @classmethod
    def example(cls) -> Self:
        """Learn each document at once: blocks of more show nothing after the first."""
        return cls(Finetune.example(), keep=1, of=1)

    def check(self, lm: LM, source: Source | None = None) -> None:
        super().check(lm, source)
        if self.by != "random":
            capability(lm, HiddenStates)

    def init(self, lm: LM) -> ChoosingState:
        fresh = self.inner.init(lm)
        return ChoosingState(base=fresh.base, delta=fresh.delta)

    def adapt(
        self,
        states: Sequence[ChoosingState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[ChoosingState]:
        def learn(row: int, state: ChoosingState, read: Evidence) -> ChoosingState:
            return self._learn(state, lm, read, context.of(row)) if read.passages else state

        return charged_by_row(learn, states, evidence, context, lm.device)

    def _learn(self, state: ChoosingState, lm: LM, read: Evidence, context: Context) -> ChoosingState:
        after = state
        for passage in read.passages:
            after = replace(after, waiting=(*after.waiting, passage))
            if len(after.waiting) < self.of:
                continue
            own = tuple(after.waiting[place] for place in self.chosen(lm, after, context))
            zeros = (0.0,) * len(own)
            (learnt,) = self.inner.adapt([after], lm, [Evidence(Found(own, zeros), read.query)], context)
            assert isinstance(learnt, ChoosingState)
            after = replace(learnt, waiting=(), history=state.history)
        # What was passed over stands in the history too: without it others would have been chosen.
        return after.after(read, context)

    def chosen(self, lm: LM, state: ChoosingState, context: Context) -> list[int]:
        """Return which of the waiting documents are worth a step, by their places, in order."""
        texts = [passage.prompt + passage.text for passage in state.waiting]
        if self.keep == len(texts):
            return [*range(len(texts))]
        # Seeded by what waits, so that it does not matter in how many calls it came.
        draws = context.generator("chosen", *(str(passage.id) for passage in state.waiting))
        if self.by == "random":
            numbers = np.random.default_rng(draws.initial_seed()).permutation(len(texts))
            return sorted(numbers[: self.keep].tolist())
        reader = FisherReader() if self.by == "bait" else FisherReader(1, 1, 1)
        read = reader.read(lm.overlay(state.delta), texts, draws)
        context.ledger(0).tokens_read += sum(len(lm.tokenizer.encode(text)[0]) for text in texts)
        if self.by == "loss":
            return sorted(sorted(range(len(texts)), key=lambda place: -read[place].nats)[: self.keep])
        factors = in_units(np.stack([each.factor for each in read]), len(texts))
        return sorted(bait(factors, self.keep, None, self.regularisation))


spec = MethodSpec(OnlineChosen(), Nothing())
