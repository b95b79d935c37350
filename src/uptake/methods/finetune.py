"""Fine-tuning: gradient steps on the documents of a stream, on the text so far, or on neighbours."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from uptake.adaptation.delta import Delta
from uptake.adaptation.draws import drawing_from
from uptake.adaptation.inner_loop import GradientDescent
from uptake.adaptation.optimizers import SGD, AdamW, Optimizer
from uptake.adaptation.privacy.dp import DP
from uptake.adaptation.token_weights import ByLoss, TokenWeights, Uniform
from uptake.adaptation.trainable import All, Auto, Trainable, TrainableCopy
from uptake.adaptation.transforms import GradientTransform, Losses, chain
from uptake.adaptation.update_masks import mixing
from uptake.errors import BadInput, Diverged
from uptake.lm.activations import likelier, text_losses, token_losses
from uptake.lm.base import LM, Scores, Segment
from uptake.lm.capabilities import FeedForwardKeys, capability
from uptake.lm.examples import (
    Example,
    Piece,
    encode,
    even_pieces,
    of_targets,
    rolling_windows,
    training_pieces,
)
from uptake.lm.scoring import token_log_probs_at, weighted
from uptake.lm.side_by_side import side_by_side, train_side_by_side
from uptake.lm.size import settled
from uptake.lm.upper_blocks import above_frozen, activations_of
from uptake.methods.contract import private
from uptake.methods.contract.method import Context, Evidence, Method, MethodSpec, same_length
from uptake.methods.contract.spending import Budget
from uptake.methods.contract.weight_state import RowReading, WeightState
from uptake.text.activations import Activations
from uptake.text.types import Document, Passage, Source


@dataclass(frozen=True)
class Finetune(Method[WeightState]):
    """One gradient step a piece of at most `chunk_tokens` (the model's window if None), in reading order.

    Weights, optimizer state and random numbers are fresh for every query. Where only low-rank factors are
    trained, all queries of a batch are trained side by side, each by itself. `reference` does as the
    published TTT-NN code does: it passes the optimizer state on from query to query, so that results depend
    on the order of queries, and learns passages without an opening token, in pieces that do not overlap (so
    does `opening_token=false`). `dropout` trains in training mode, seeded for each query. Where a loss is not
    finite, the state stays as it was before that reading, and the ledger gives the reason.

    `after_context` learns a passage as the continuation of the query, the text so far: in pieces of even
    length, each after as much of the text before it as the window holds. `read` then trains on the same
    loss that the text was scored with, in one forward pass, wherever the text is a single step.

    `key_penalty` times the mean squared length of the keys (what enters the last feed-forward) is added
    to the loss, as Ton et al. (2021, arXiv 2109.08249) train a model that kNN-LM is to search with.

    With `least_drop` reading ends at a piece that all read before it has made less than so much likelier than
    the model itself finds it: neighbours that no longer resemble each other promise less than they cost.

    Where blocks below those that train stay frozen, a text goes through them once. With `activations=view`
    what they make of a store's passages, and the model's own loss of each token, comes from the store
    (`uptake index activations`); what was not kept there, and text without a store, is computed when needed.
    """

    trains_weights_only: ClassVar[bool] = True

    trainable: Trainable = field(default_factory=Auto)
    optimizer: Optimizer = field(default_factory=AdamW)
    clip: float | None = 1.0
    transforms: tuple[GradientTransform, ...] = ()  # of gradients, before they are clipped
    chunk_tokens: int | None = None
    passes: int = 1
    order: Literal["nearest-first", "farthest-first"] = "nearest-first"
    token_weights: TokenWeights = field(default_factory=Uniform)
    own_prefix: bool = False  # learn the query's own text first
    after_context: bool = False  # learn each piece after the text before it
    least_drop: float | None = None  # in nats a token, below which reading ends
    max_steps: int | None = None  # a query
    max_tokens: int | None = None  # a query
    dropout: bool = False
    key_penalty: float = 0.0
    opening_token: bool | None = None  # before each passage; None: yes, but not under `reference`
    activations: Literal["memory", "view"] = "memory"
    reference: bool = False
    privacy: DP | None = None  # then all that one reading holds is trained on together

    def __post_init__(self) -> None:
        if self.order not in ("nearest-first", "farthest-first"):
            raise BadInput(f"order {self.order!r}: use nearest-first or farthest-first")
        if self.passes < 0 or (self.chunk_tokens is not None and self.chunk_tokens < 2):
            raise BadInput(
                f"passes {self.passes}, chunk_tokens {self.chunk_tokens}: use 0 or more, and 2 or more"
            )
        if self.least_drop is not None and not math.isfinite(self.least_drop):
            raise BadInput(f"least_drop {self.least_drop}: use a number of nats such as 0.01, or none")
        if min(self.max_steps or 0, self.max_tokens or 0) < 0:
            raise BadInput(f"max_steps {self.max_steps}, max_tokens {self.max_tokens}: use 0 or more")
        if self.opening_token is False and self.after_context:
            raise BadInput("opening_token=false is for passages read by themselves: leave after_context out")
        if self.activations not in ("memory", "view"):
            raise BadInput(f"activations {self.activations!r}: use memory or view")
        if self.activations == "view" and (self.dropout or self.key_penalty or self.after_context):
            raise BadInput(
                "activations=view is what the base reads: leave dropout, key_penalty and after_context out"
            )
        chain(self.clip, self.transforms)
        if self.least_drop is not None and mixing(self.transforms):
            raise BadInput(
                "least_drop asks what is likelier by now, mixout reads at other weights: leave one out"
            )
        if not 0 <= self.key_penalty < float("inf"):
            raise BadInput(f"key_penalty {self.key_penalty}: use 0 for none, or a small positive number")
        if self.privacy is not None:
            private.check(self)

    @property
    def opens(self) -> bool:
        """Whether the opening token stands before each passage."""
        return self.after_context or not self.reference if self.opening_token is None else self.opening_token

    @property
    def sequential(self) -> bool:
        return self.reference

    @property
    def separate(self) -> bool:
        return not self.trainable.stacks

    @property
    def views(self) -> tuple[str, ...]:
        return ("activations",) if self.activations == "view" else ()

    @property
    def incremental(self) -> bool:
        random = self.dropout or self.private or any(transform.random for transform in self.transforms)
        return self.passes == 1 and self.least_drop is None and self.order == "nearest-first" and not random

    @classmethod
    def example(cls) -> Self:
        return cls(optimizer=SGD(learning_rate=0.1), chunk_tokens=16)

    def check(self, lm: LM, source: Source | None = None) -> None:
        super().check(lm, source)
        if self.key_penalty:
            capability(lm, FeedForwardKeys)
        # A file or a pipeline that is not there is told of by the first text.
        if not isinstance(self.token_weights, ByLoss):
            self.token_weights.of(Passage(0, "A word"), [(0, 6)])
        if isinstance(self.trainable, All) and self.activations == "memory":
            return  # those a model may lack are tried; a copy of all it has costs memory
        start = Delta(lm.fingerprint)
        private, opened = lm.trainable_copy(self.trainable, start, torch.Generator().manual_seed(0))
        self._kept(lm, private, opened, start, source)

    def init(self, lm: LM) -> WeightState:
        # A missing file raises its error before anything is read.
        self.optimizer.known({}, lm.fingerprint)
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
        if self.privacy is not None:
            return private.adapt(self, states, lm, evidence, context)
        readings = [
            RowReading(row, state, read, passages)
            for row, (state, read) in enumerate(zip(states, evidence, strict=True))
            if (passages := self._passages(state, read))
        ]
        with context.charging_together([reading.row for reading in readings], lm.device):
            after = self._adapt_together(readings, lm, context)
        if after is None:
            after = []
            for reading in readings:
                with context.charging([reading.row], lm.device):
                    after.append(self._learn(reading, lm, context)[0])
        adapted = {reading.row: state for reading, state in zip(readings, after, strict=True)}
        return [adapted.get(row, state) for row, state in enumerate(states)]

    def adapted(self, states: Sequence[WeightState], lm: LM) -> LM:
        return side_by_side(lm, [state.delta for state in states])

    def next_state(self, state: WeightState, lm: LM) -> WeightState:
        fresh = self.init(lm)
        return replace(fresh, optimizer_state=state.optimizer_state) if self.reference else fresh

    def read(
        self, states: Sequence[WeightState], lm: LM, segments: Sequence[Segment], context: Context
    ) -> tuple[list[Scores], list[WeightState]]:
        """Score each segment, then learn it: in one forward pass where that is the pass it is scored in."""
        if not self.after_context:
            return super().read(states, lm, segments, context)
        read = [
            self._read(row, state, lm, segment, context)
            for row, (state, segment) in enumerate(zip(states, segments, strict=True))
        ]
        return [scores for scores, _ in read], [state for _, state in read]

    def _read(
        self, row: int, state: WeightState, lm: LM, segment: Segment, context: Context
    ) -> tuple[Scores, WeightState]:
        evidence = self.evidence_of(segment)
        reading = RowReading(row, state, evidence, self._passages(state, evidence))
        pieces = [*self.pieces(lm, reading.passages, state.passages)]
        example = encode(lm.tokenizer, segment.context, segment.text)
        alike = [piece.example for piece in pieces] == [*rolling_windows(example, lm.window)]
        # Dropout, mixout, or a part that changes something untrained, learns from another pass than scores.
        apart = self.dropout or mixing(self.transforms) or state.delta.input_tokens
        same = alike and self.trainable.neutral and not apart
        if len(pieces) != 1 or not same or not self._affords(pieces[0], context, row):
            (scores,), (state,) = super().read([state], lm, [segment], context.of(row))
            return scores, state
        with context.charging([row], lm.device):
            state, own = self._learn(reading, lm, context, pieces)
        return Scores.of(lm.tokenizer, segment.text, example.target, example.spans, own), state

    def _passages(self, state: WeightState, evidence: Evidence) -> Sequence[Passage]:
        """Return what is learnt, in the order found: the query's own text first, if it is and was not yet."""
        passages, prefix = evidence.passages, evidence.prefix
        if self.after_context:
            passages = tuple(replace(passage, prompt=prefix + passage.prompt) for passage in passages)
        if self.own_prefix and not state.history and prefix:
            passages = (Passage.whole(Document("", prefix)), *passages)
        return passages

    def _adapt_together(
        self, readings: Sequence[RowReading], lm: LM, context: Context
    ) -> list[WeightState] | None:
        """Return the states after reading, rows trained side by side; None, and nothing done, if they cannot.

        Where seconds are limited rows are trained one by one, so that no row is charged for the others.
        """
        alone = self.dropout or self.key_penalty or self.reference or self.optimizer.informed
        if alone or self.least_drop is not None or context.budget.timed:
            return None
        ended = train_side_by_side(
            lm,
            self.trainable,
            [reading.state.delta for reading in readings],
            [context.generator("moves") for _ in readings],
            [self._pieces(reading, lm, context) for reading in readings],
            settled(self.optimizer, lm),
            chain(self.clip, self.transforms),
            [reading.state.resumed() for reading in readings],
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
                after.append(
                    reading.state.after_training(reading.evidence, context, delta, end.optimizer_state)
                )
        return after

    def _learn(
        self, reading: RowReading, lm: LM, context: Context, pieces: Iterable[Piece] | None = None
    ) -> tuple[WeightState, Tensor]:
        """Return the state after a step on each piece, and the log-probabilities of the last piece's targets.

        Where no pieces are given, they are cut to what the trained copy can take.
        """
        private, opened = lm.trainable_copy(self.trainable, reading.state.delta, context.generator("moves"))
        opened.module.train(self.dropout)
        known = self.optimizer.known(opened.parameters, lm.fingerprint)
        resumed, transforms = {**reading.state.resumed(), **known}, chain(self.clip, self.transforms)
        descent = GradientDescent(
            opened.parameters, settled(self.optimizer, lm), transforms, resumed, reading.generator(context)
        )
        kept = None
        if not self.dropout and not self.key_penalty:
            kept = self._kept(lm, private, opened, reading.state.delta, reading.evidence.source)
            private = above_frozen(lm, private, opened, reading.state.delta, kept)
        scored, begun, least = pieces is not None, bool(reading.state.passages), self.least_drop
        losses = partial(token_losses, lm, kept=kept)
        if pieces is None:
            pieces = self.pieces(private, reading.passages, reading.state.passages, losses)
        evidence, scores = reading.evidence, torch.zeros(0)
        with drawing_from(context.generator("dropout", evidence.query)) if self.dropout else nullcontext():
            try:
                for piece in self._affordable(pieces, context, reading.row):
                    with descent.reading():
                        scores, loss = self._loss(private, piece, scored)
                        if begun and least is not None and likelier(piece, scores, losses) < least:
                            break
                        begun = True
                        descent.step(Losses.one(loss, piece.document))
            except Diverged as error:
                context.ledger(reading.row).stop("diverged", str(error))
                return reading.state, scores
        # What the optimizer knew beforehand is in a file of its own, not in every state.
        own_state = {name: value for name, value in descent.optimizer_state.items() if name not in known}
        after = reading.state.after_training(evidence, context, opened.delta(), own_state, self.reference)
        return after, scores

    def _kept(
        self, lm: LM, private: LM, opened: TrainableCopy, start: Delta, source: Source | None
    ) -> Activations | None:
        """Return what the store keeps of the frozen blocks; None where it is not asked, or there is none."""
        if self.activations == "memory":
            return None
        size = min(self.chunk_tokens or lm.window, lm.window)
        return activations_of(lm, private, opened, start, source, self.opens, size)

    def _loss(self, lm: LM, piece: Piece, scored: bool) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of a piece's targets, detached, and the loss to minimise.

        Where they are not needed (`scored` is False), tokens that count for nothing are left out of both.
        """
        if not self.key_penalty:
            counted = piece.weights.nonzero()[:, 0]
            if not scored and len(counted) < len(piece.weights):
                some = token_log_probs_at(lm, piece.example, counted)
                return some.detach(), -(some * piece.weights[counted]).sum() / len(piece.weights)
            scores = lm.token_log_probs([piece.example])
            return scores[0].detach(), weighted(scores, [piece.weights])[0]
        inputs = torch.tensor([piece.example.inputs], device=lm.device)
        log_probs, keys, _ = capability(lm, FeedForwardKeys).step_with_keys(inputs)
        scores = of_targets(log_probs, [piece.example])
        loss = weighted(scores, [piece.weights])[0]
        return scores[0].detach(), loss + self.key_penalty * keys.square().sum(-1).mean()

    def _pieces(self, reading: RowReading, lm: LM, context: Context) -> Iterator[Piece]:
        """Yield one row's pieces as far as its budget goes."""
        pieces = self.pieces(lm, reading.passages, reading.state.passages)
        return self._affordable(pieces, context, reading.row)

    def pieces(
        self,
        lm: LM,
        passages: Sequence[Passage],
        before: Sequence[Passage] = (),
        losses: Callable[[Example], Tensor] | None = None,
    ) -> Iterator[Piece]:
        """Yield one piece a step, none where nothing counts; `before` was read before the passages.

        `losses` gives the base's loss of each token of a target, [targets]; those of `lm` if left out.
        """
        losses = losses or partial(token_losses, lm)
        size = self.chunk_tokens or lm.window
        ordered = passages if self.order == "nearest-first" else passages[::-1]
        for place, passage in enumerate([*ordered] * self.passes):
            whole = encode(lm.tokenizer, passage.prompt, passage.text)
            cut = [*self._cut(whole, size, lm.window)]
            if isinstance(self.token_weights, ByLoss):
                weights = self.token_weights.of_losses(passage, text_losses(whole, cut, losses))
            else:
                weights = self.token_weights.of(passage, whole.spans, [*before, *ordered[:place]])
            weights = weights.to(lm.device)
            for start, example in cut:
                own = weights[start : start + len(example.target)]
                if own.any():
                    # A loss is a mean over all tokens that it is charged for, a prompt's among them.
                    share = len(example.target) / self._tokens(example)
                    yield Piece(example, own if share == 1 else own * share, passage.document or passage.id)

    def _cut(self, whole: Example, size: int, window: int) -> Iterator[tuple[int, Example]]:
        """Yield the pieces of a passage, each with its place in the target."""
        if self.after_context:
            return even_pieces(whole, size, window)
        return training_pieces(whole, min(size, window), self.opens)

    def _tokens(self, example: Example) -> int:
        """Return how many tokens a piece is charged for; context that was learnt before is free."""
        return len(example.target if self.after_context else example.inputs)

    def _affordable(self, pieces: Iterable[Piece], context: Context, row: int) -> Iterator[Piece]:
        ledger = context.ledger(row)
        for piece in pieces:
            if not self._affords(piece, context, row):
                return
            ledger.tokens_trained += self._tokens(piece.example)
            ledger.steps += 1
            yield piece

    def _affords(self, piece: Piece, context: Context, row: int) -> bool:
        tokens, own = self._tokens(piece.example), Budget(self.max_tokens, self.max_steps)
        # The method's own limits are how it reads: reaching them is no stop to report.
        return not context.ledger(row).exceeds(own, tokens) and context.affords(row, tokens)


spec = MethodSpec(Finetune())
