"""Gradient steps on whatever is read: the documents of a stream, the text so far, or neighbours."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

import torch
from torch import Tensor

from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import Piece, descend, token_loss
from uptake.adaptation.optimizers import SGD, AdamW, Optimizer
from uptake.adaptation.token_weights import TokenWeights, Uniform
from uptake.adaptation.trainable import All, Trainable
from uptake.adaptation.transforms import GradientTransform, Losses, chain
from uptake.errors import BadInput, Diverged
from uptake.lm.base import LM
from uptake.lm.side_by_side import side_by_side, train_side_by_side
from uptake.methods.contract.method import Context, Evidence, Method, MethodSpec, State, same_length
from uptake.methods.contract.spending import Budget
from uptake.text.types import Document, Passage


@dataclass(frozen=True, kw_only=True)
class WeightState(State):
    """How far the weights have moved, and the optimiser's memory, so that reading can go on."""

    delta: Delta
    optimizer_state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Reading:
    """What one row reads in one `adapt`."""

    row: int
    state: WeightState
    evidence: Evidence
    passages: Sequence[Passage]

    def generator(self, context: Context) -> torch.Generator:
        """Return what transforms draw from: a reading that goes on does not draw the same numbers again."""
        return context.generator("transforms", self.evidence.query, str(len(self.state.history)))

    def after(self, context: Context, delta: Delta, optimizer_state: dict[str, Tensor]) -> WeightState:
        return self.state.after(self.evidence, context, delta=delta, optimizer_state=optimizer_state)


@dataclass(frozen=True)
class Finetune(Method[WeightState]):
    """One step a piece, pieces of at most `chunk_tokens` (the model's window if None), in the order read.

    Weights, optimiser and random numbers are fresh for every query; where low-rank factors move, all queries
    of a batch are trained side by side, each by itself. `reference` hands the
    optimiser's memory on from query to query, as the published TTT-NN code does: results then
    depend on the order of queries. `dropout` trains in training mode, seeded for each query. Where
    a loss is no longer finite nothing of that reading is kept, and the ledger says why it stopped.

    `key_penalty` times the mean squared length of the keys (what enters the last feed-forward) is added
    to the loss, as Ton et al. (2021, arXiv 2109.08249) train a model that kNN-LM is to search with.
    """

    trainable: Trainable = field(default_factory=All)
    optimizer: Optimizer = field(default_factory=AdamW)
    clip: float | None = 1.0
    transforms: tuple[GradientTransform, ...] = ()  # of gradients, before they are clipped
    chunk_tokens: int | None = None
    passes: int = 1
    order: Literal["nearest-first", "farthest-first"] = "nearest-first"
    token_weights: TokenWeights = field(default_factory=Uniform)
    own_prefix: bool = False  # learn the query's own text first
    max_steps: int | None = None  # a query
    max_tokens: int | None = None  # a query
    dropout: bool = False
    key_penalty: float = 0.0
    reference: bool = False

    def __post_init__(self) -> None:
        if self.order not in ("nearest-first", "farthest-first"):
            raise BadInput(f"order {self.order!r}: use nearest-first or farthest-first")
        if self.passes < 0 or (self.chunk_tokens is not None and self.chunk_tokens < 2):
            raise BadInput(
                f"passes {self.passes}, chunk_tokens {self.chunk_tokens}: use 0 or more, and 2 or more"
            )
        if min(self.max_steps or 0, self.max_tokens or 0) < 0:
            raise BadInput(f"max_steps {self.max_steps}, max_tokens {self.max_tokens}: use 0 or more")
        chain(self.clip, self.transforms)
        if not 0 <= self.key_penalty < float("inf"):
            raise BadInput(f"key_penalty {self.key_penalty}: use 0 for none, or a small positive number")

    @property
    def sequential(self) -> bool:
        return self.reference

    @property
    def cumulative(self) -> bool:
        random = self.dropout or any(transform.random for transform in self.transforms)
        return self.passes == 1 and self.order == "nearest-first" and not random

    @classmethod
    def example(cls) -> Self:
        return cls(optimizer=SGD(learning_rate=0.1), chunk_tokens=16)

    def init(self, lm: LM) -> WeightState:
        return WeightState(base=lm.fingerprint, delta=Delta(lm.fingerprint))

    def adapt(
        self,
        states: Sequence[WeightState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[WeightState]:
        same_length(states, evidence)
        readings = [
            _Reading(row, state, read, passages)
            for row, (state, read) in enumerate(zip(states, evidence, strict=True))
            if (passages := self._passages(state, read))
        ]
        with context.charging_together([reading.row for reading in readings], lm.device):
            after = self._adapt_together(readings, lm, context)
        if after is None:
            after = []
            for reading in readings:
                with context.charging([reading.row], lm.device):
                    after.append(self._adapt(reading, lm, context))
        adapted = {reading.row: state for reading, state in zip(readings, after, strict=True)}
        return [adapted.get(row, state) for row, state in enumerate(states)]

    def adapted(self, states: Sequence[WeightState], lm: LM) -> LM:
        return side_by_side(lm, [state.delta for state in states])

    def next_state(self, state: WeightState, lm: LM) -> WeightState:
        fresh = self.init(lm)
        return (
            WeightState(base=fresh.base, delta=fresh.delta, optimizer_state=state.optimizer_state)
            if self.reference
            else fresh
        )

    def _passages(self, state: WeightState, evidence: Evidence) -> Sequence[Passage]:
        if self.own_prefix and not state.history and evidence.prefix:
            return (Passage.whole(Document("", evidence.prefix)), *evidence.passages)
        return evidence.passages

    def _adapt_together(
        self, readings: Sequence[_Reading], lm: LM, context: Context
    ) -> list[WeightState] | None:
        """Return the states after reading, rows trained side by side; None, and nothing done, if they cannot.

        Where seconds are limited rows are trained one by one, so that none pays for the others.
        """
        if self.dropout or self.key_penalty or self.reference or context.budget.timed:
            return None
        ended = train_side_by_side(
            lm,
            self.trainable,
            [reading.state.delta for reading in readings],
            [context.generator("moves") for _ in readings],
            [self._pieces(reading, lm, context) for reading in readings],
            self.optimizer,
            chain(self.clip, self.transforms),
            [reading.state.optimizer_state for reading in readings],
            [reading.generator(context) for reading in readings],
        )
        if ended is None:
            return None
        after = []
        for reading, (delta, end) in zip(readings, ended, strict=True):
            if end.stopped:
                context.ledger(reading.row).stop("diverged", end.stopped)
                after.append(reading.state)
            else:
                after.append(reading.after(context, delta, end.optimizer_state))
        return after

    def _adapt(self, reading: _Reading, lm: LM, context: Context) -> WeightState:
        private, opened = lm.trainable_copy(self.trainable, reading.state.delta, context.generator("moves"))
        opened.module.train(self.dropout)

        def losses(piece: Piece) -> Losses:
            if not self.key_penalty:
                log_probs, _ = private.step(piece.inputs)
                return Losses.one(token_loss(log_probs, piece.targets, piece.weights), piece.document)
            log_probs, keys, _ = private.step_with_keys(piece.inputs)
            penalty = self.key_penalty * keys.square().sum(-1).mean()
            nll = token_loss(log_probs, piece.targets, piece.weights)
            return Losses.one(nll + penalty, piece.document)

        pieces = self._pieces(reading, lm, context)
        seed = int(context.generator("dropout", reading.evidence.query).initial_seed())
        with torch.random.fork_rng(enabled=self.dropout):
            if self.dropout:
                torch.manual_seed(seed)
            try:
                optimizer_state = descend(
                    losses,
                    opened.parameters,
                    pieces,
                    self.optimizer,
                    chain(self.clip, self.transforms),
                    reading.state.optimizer_state,
                    reading.generator(context),
                )
            except Diverged as error:
                context.ledger(reading.row).stop("diverged", str(error))
                return reading.state
        return reading.after(context, opened.delta(), optimizer_state)

    def _pieces(self, reading: _Reading, lm: LM, context: Context) -> Iterator[Piece]:
        """Yield one row's pieces as far as its budget goes."""
        pieces = self.pieces(lm, reading.passages, reading.state.passages)
        return self._affordable(pieces, context, reading.row)

    def pieces(self, lm: LM, passages: Sequence[Passage], before: Sequence[Passage] = ()) -> Iterator[Piece]:
        """Yield one piece a step; `before` is what was read before the passages."""
        size = min(self.chunk_tokens or lm.window, lm.window)
        ordered = passages if self.order == "nearest-first" else passages[::-1]
        for place, passage in enumerate([*ordered] * self.passes):
            earlier = [*before, *ordered[:place]]
            prompt = lm.tokenizer.encode(passage.prompt)[0]
            text, spans = lm.tokenizer.encode(passage.text)
            whole = torch.tensor([lm.tokenizer.opening, *prompt, *text], device=lm.device)
            weights = self.token_weights.of(passage, spans, earlier).to(lm.device)
            learnt = torch.cat([weights.new_zeros(len(prompt)), weights])
            for start in range(0, len(learnt), size):
                end = min(start + size, len(learnt))
                # One token of overlap: every token is learnt once, from what stands before it.
                if learnt[start:end].any():
                    yield Piece(
                        whole[None, start:end],
                        whole[None, start + 1 : end + 1],
                        learnt[None, start:end],
                        passage.document or passage.id,
                    )

    def _affordable(self, pieces: Iterator[Piece], context: Context, row: int) -> Iterator[Piece]:
        own, ledger = Budget(self.max_tokens, self.max_steps), context.ledger(row)
        for piece in pieces:
            tokens = piece.inputs.shape[1]
            # The method's own limits are how it reads: they stop nothing that anybody has to be told of.
            if ledger.exceeds(own, tokens) or not context.affords(row, tokens):
                return
            ledger.tokens_trained += tokens
            ledger.steps += 1
            yield piece


spec = MethodSpec(Finetune())
