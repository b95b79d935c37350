"""Makes edits by epochs over all of them, earlier ones replayed, and stays near the base on other text.

Fine-tuning that takes its steps edit by edit ("depth-first") overwrites what came before. The same steps in
epochs over all edits at one well-chosen place are a strong editor (Yang et al. 2025, arXiv:2509.22072). Two
terms are added: earlier edits are replayed, and on text that the base writes by itself the model is held to
the base, so that no other text is needed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch

from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import GradientDescent
from uptake.adaptation.optimizers import SGD, AdamW, Optimizer
from uptake.adaptation.trainable import All, LoRA, Trainable
from uptake.adaptation.transforms import Losses, chain
from uptake.errors import BadInput, Diverged
from uptake.lm.base import LM
from uptake.lm.examples import Example, encode
from uptake.lm.pretrained import Pretrained
from uptake.lm.scoring import kl, losses
from uptake.lm.side_by_side import side_by_side
from uptake.methods.contract.method import Context, Evidence, Method, MethodSpec, charged_by_row
from uptake.methods.contract.weight_state import RowReading, WeightState
from uptake.preparation import preparing
from uptake.text.types import Passage, Source


@dataclass(frozen=True)
class BreadthFirst(Method[WeightState]):
    """Epochs over all edits of a call, `batch` a step, in an order drawn anew for each.

    Each epoch learns as well `replay` times as many edits of earlier calls, drawn from all of them. A
    step's loss is the mean over its edits of the mean loss a target token, and `stay` times KL(base ||
    model) on `texts_a_step` texts that the base wrote (of `own_texts`, `own_tokens` each). Where the mean
    loss of the new edits in an epoch falls below `enough`, the call ends.
    """

    trains_weights_only: ClassVar[bool] = True

    trainable: Trainable = field(default_factory=lambda: LoRA(rank=8, alpha=16))
    optimizer: Optimizer = field(default_factory=lambda: AdamW(learning_rate=1e-3, weight_decay=0.0))
    clip: float | None = 1.0
    epochs: int = 20
    batch: int = 8
    replay: float = 1.0
    enough: float = 0.02  # nats a token
    stay: float = 0.5
    own_texts: int = 32
    own_tokens: int = 24
    texts_a_step: int = 2

    def __post_init__(self) -> None:
        if min(self.epochs, self.own_texts) < 0 or min(self.batch, self.own_tokens, self.texts_a_step) < 1:
            raise BadInput(
                f"epochs {self.epochs}, own_texts {self.own_texts}: use 0 or more; batch {self.batch}, "
                f"own_tokens "
                f"{self.own_tokens}, texts_a_step {self.texts_a_step}: use 1 or more"
            )
        if not 0 <= self.stay < float("inf") or not 0 <= self.replay < float("inf"):
            raise BadInput(f"stay {self.stay}, replay {self.replay}: use 0 for none, or a positive number")
        chain(self.clip, ())

    @property
    def separate(self) -> bool:
        return not self.trainable.stacks

    @property
    def incremental(self) -> bool:
        return False

    @classmethod
    def example(cls) -> Self:
        return cls(trainable=All(), optimizer=SGD(0.3), epochs=2, own_texts=2, own_tokens=4)

    def check(self, lm: LM, source: Source | None = None) -> None:
        super().check(lm, source)
        if not isinstance(self.trainable, All):
            lm.trainable_copy(self.trainable, Delta(lm.fingerprint), torch.Generator().manual_seed(0))

    def init(self, lm: LM) -> WeightState:
        return WeightState(base=lm.fingerprint, delta=Delta(lm.fingerprint))

    def adapted(self, states: Sequence[WeightState], lm: LM) -> LM:
        return side_by_side(lm, [state.delta for state in states])

    def adapt(
        self,
        states: Sequence[WeightState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[WeightState]:
        def learn(row: int, state: WeightState, read: Evidence) -> WeightState:
            if not read.passages:
                return state
            return self._learn(RowReading(row, state, read, read.passages), lm, context)

        return charged_by_row(learn, states, evidence, context, lm.device)

    def _learn(self, reading: RowReading, lm: LM, context: Context) -> WeightState:
        state = reading.state
        private, opened = lm.trainable_copy(self.trainable, state.delta, context.generator("moves"))
        opened.module.train(False)
        descent = GradientDescent(
            opened.parameters, self.optimizer, chain(self.clip, ()), {**state.resumed()}, None
        )
        draws = context.generator("breadth-first", str(len(state.history)))
        # All calls of a sequence stay near the base on the same texts, which are written once.
        seed = state.history[0].seed if state.history else context.seed
        own = _own(lm, self.own_texts, self.own_tokens, seed) if self.stay else []
        ledger = context.ledger(reading.row)
        try:
            for step in self._epochs(reading, lm, draws):
                examples = [example for example, _ in step]
                tokens = sum(len(example.inputs) for example in examples)
                if not context.affords(reading.row, tokens):
                    break
                loss = losses(private, examples)
                whole = loss.mean()
                if own:
                    some = [
                        own[at]
                        for at in torch.randint(len(own), (self.texts_a_step,), generator=draws).tolist()
                    ]
                    whole = whole + self.stay * torch.cat(kl(lm, private, some)).mean()
                ledger.tokens_trained += tokens
                ledger.steps += 1
                descent.step(Losses.one(whole, reading.row))
                for (_, told), value in zip(step, loss.detach().tolist(), strict=True):
                    told.append(value)
        except Diverged as error:
            ledger.stop("diverged", str(error))
            return state
        return state.after_training(reading.evidence, context, opened.delta(), descent.optimizer_state)

    def _epochs(
        self, reading: RowReading, lm: LM, draws: torch.Generator
    ) -> Iterator[list[tuple[Example, list[float]]]]:
        """Yield the examples of each step, each with the list that its loss is to be put into."""
        new, earlier = reading.passages, reading.state.passages
        count = min(len(earlier), round(self.replay * len(new)))
        for _ in range(self.epochs):
            told, old = list[float](), list[float]()
            drawn = torch.randperm(len(earlier), generator=draws)[:count].tolist()
            every = [*((passage, told) for passage in new), *((earlier[at], old) for at in drawn)]
            order = torch.randperm(len(every), generator=draws).tolist()
            for start in range(0, len(order), self.batch):
                yield [(_example(lm, every[at][0]), every[at][1]) for at in order[start : start + self.batch]]
            if told and sum(told) / len(told) < self.enough:
                return


def _example(lm: LM, passage: Passage) -> Example:
    """Return an edit as it is learnt: its end, where the window does not hold it."""
    return encode(lm.tokenizer, passage.prompt, passage.text).ending(lm.window)


def _own(lm: LM, count: int, tokens: int, seed: int) -> list[Example]:
    """Return what `written_by` does; a model that can keep it writes it once."""
    if not isinstance(lm, Pretrained):
        return written_by(lm, count, tokens, seed)
    key = ("texts of its own", count, tokens, seed)
    return lm.derived(key, lambda: written_by(lm, count, tokens, seed))


def written_by(lm: LM, count: int, tokens: int, seed: int) -> list[Example]:
    """Return texts that a model writes from nothing, sampled as it predicts them: text of its own kind."""
    if not count:
        return []
    draws = torch.Generator().manual_seed(seed)
    ids = torch.full((count, 1), lm.tokenizer.opening, dtype=torch.long, device=lm.device)
    with preparing(), torch.no_grad():
        cache, last = lm.start(), ids
        for _ in range(min(tokens, lm.window - 1)):
            log_probs, cache = lm.step(last, cache)
            drawn = torch.multinomial(log_probs[:, -1].exp().float().cpu(), 1, generator=draws).to(ids)
            ids = torch.cat([ids, drawn], 1)
            last = ids if cache is None else drawn
    return [Example(tuple(row[:1]), tuple(row[1:])) for row in ids.tolist()]


spec = MethodSpec(BreadthFirst())
