"""Dynamic evaluation (Krause et al. 2018, 2019): learn the text so far, each piece once it is scored.

It needs no store: what it learns is the text itself, after what stands before it, every token
scored before it is learnt. The published rule divides by the usual size of training gradients,
which `uptake train dynamic-evaluation` counts; plain descent and Adam need no such file.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import Descent
from uptake.adaptation.optimizers import RMS, AdamW, Optimizer
from uptake.adaptation.token_weights import TokenWeights, Uniform
from uptake.adaptation.trainable import All, Trainable
from uptake.adaptation.transforms import GradientTransform, Losses, chain
from uptake.errors import BadInput, Diverged
from uptake.lm.base import LM, Scores, Segment, Window, rolling_windows
from uptake.lm.side_by_side import side_by_side
from uptake.methods.contract.learned import Learned, Material
from uptake.methods.contract.method import Context, Evidence, MethodSpec, same_length
from uptake.methods.finetune import WeightState
from uptake.text.select import Nothing
from uptake.text.types import Document, Passage


class GradientStatistics(nn.Module):
    """Sums of squared gradients of every weight of a base model, and how many were added."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = list(parameters)
        self.register_buffer("count", torch.zeros(()))
        for name, parameter in parameters.items():
            self.register_buffer(_buffer(name), torch.zeros_like(parameter, requires_grad=False))

    def add(self, gradients: Iterable[Tensor | None]) -> None:
        """Count one gradient, given in the order of the names."""
        self.get_buffer("count").add_(1)
        for name, gradient in zip(self.names, gradients, strict=True):
            if gradient is not None:
                self.get_buffer(_buffer(name)).addcmul_(gradient, gradient)

    def rms(self, name: str) -> Tensor:
        """Return the root mean square of a weight's gradients: ones where none was counted."""
        count, squares = self.get_buffer("count"), self.get_buffer(_buffer(name))
        return (squares / count).sqrt() if count > 0 else torch.ones_like(squares)


@dataclass(frozen=True)
class Piece:
    """What one step learns: a window, how much each of its targets counts, [targets], and its document."""

    window: Window
    weights: Tensor
    document: str | int


@dataclass(frozen=True, kw_only=True)
class DynamicEvaluation(Learned[WeightState, Window]):
    """One step a piece of at most `chunk_tokens`, on the loss that it was scored with.

    What is read is learnt as what follows the query, the text so far. The network is no network but
    the statistics of training gradients, of which `optimizer=rms` alone makes use; `weights=untrained`
    takes every weight's gradients for equally large, which leaves plain descent with an even decay.
    `token_weights` say how much each token counts in what is learnt, not in what is scored; where none
    counts there is no step. A step from a loss that is not finite is not taken: nothing of that reading
    is kept, and the ledger says why.
    """

    trainable: Trainable = field(default_factory=All)
    optimizer: Optimizer = field(default_factory=lambda: AdamW(learning_rate=1e-4, weight_decay=0.0))
    clip: float | None = None
    transforms: tuple[GradientTransform, ...] = ()  # of gradients, before they are clipped
    chunk_tokens: int = 256
    token_weights: TokenWeights = field(default_factory=Uniform)
    own_prefix: bool = True  # learn the query's own text first

    def __post_init__(self) -> None:
        if self.chunk_tokens < 1:
            raise BadInput(f"chunk_tokens {self.chunk_tokens}: use 1 or more")
        chain(self.clip, self.transforms)

    @classmethod
    def example(cls) -> Self:
        return cls(optimizer=RMS(learning_rate=0.1, decay=0.1), weights="untrained", chunk_tokens=16)

    def init(self, lm: LM) -> WeightState:
        self._statistics(lm)
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
        after = []
        for row, (state, found) in enumerate(zip(states, evidence, strict=True)):
            pieces = [*self._pieces(state, lm, found)]
            with context.charging([row], lm.device):
                after.append(self._learn(row, state, lm, pieces, found, context)[0] if pieces else state)
        return after

    def adapted(self, states: Sequence[WeightState], lm: LM) -> LM:
        return side_by_side(lm, [state.delta for state in states])

    def read(
        self, states: Sequence[WeightState], lm: LM, segments: Sequence[Segment], context: Context
    ) -> tuple[list[Scores], list[WeightState]]:
        """Score each segment, then take it up: in one forward pass, where it is learnt in one step."""
        read = [
            self._read(row, state, lm, segment, context)
            for row, (state, segment) in enumerate(zip(states, segments, strict=True))
        ]
        return [scores for scores, _ in read], [state for _, state in read]

    def _read(
        self, row: int, state: WeightState, lm: LM, segment: Segment, context: Context
    ) -> tuple[Scores, WeightState]:
        evidence = Evidence.of(segment.text, query=segment.context)
        ids, spans = lm.tokenizer.encode(segment.text)
        before = [lm.tokenizer.opening, *lm.tokenizer.encode(segment.context)[0]]
        pieces = [*self._pieces(state, lm, evidence)]
        windows = [piece.window for piece in pieces]
        if len(pieces) != 1 or windows != [*rolling_windows(0, before, ids, lm.window)]:
            (scores,), (state,) = super().read([state], lm, [segment], context.of(row))
            return scores, state
        with context.charging([row], lm.device):
            state, log_probs = self._learn(row, state, lm, pieces, evidence, context)
        return Scores(log_probs.double().cpu(), spans, len(segment.text.encode("utf8"))), state

    def _learn(
        self,
        row: int,
        state: WeightState,
        lm: LM,
        pieces: Sequence[Piece],
        evidence: Evidence,
        context: Context,
    ) -> tuple[WeightState, Tensor]:
        """Return the state after a step on each piece, and what the last of them was scored with."""
        private, opened = lm.trainable_copy(self.trainable, state.delta, context.generator("moves"))
        optimizer_state = {**state.optimizer_state, **self._sizes(lm, opened.parameters)}
        descent = Descent(
            opened.parameters,
            self.optimizer,
            chain(self.clip, self.transforms),
            optimizer_state,
            # What goes on from an earlier reading does not draw the same numbers again.
            context.generator("transforms", evidence.query, str(len(state.history))),
        )
        ledger = context.ledger(row)
        log_probs = torch.zeros(0)
        for piece in pieces:
            log_probs = _log_probs(private, piece.window)
            if not piece.weights.any():
                continue
            count = len(piece.weights)
            if not context.affords(row, count):
                break
            try:
                descent.step(Losses.one(-(log_probs * piece.weights).mean(), piece.document))
            except Diverged as error:
                ledger.stop("diverged", str(error))
                return state, log_probs.detach()
            ledger.tokens_trained += count
            ledger.steps += 1
        # What the statistics say is in their own file, not in every state.
        kept = {name: value for name, value in descent.optimizer_state.items() if not name.endswith("|rms")}
        return state.after(evidence, context, delta=opened.delta(), optimizer_state=kept), log_probs.detach()

    def _pieces(self, state: WeightState, lm: LM, evidence: Evidence) -> Iterator[Piece]:
        read = [*state.passages]
        if self.own_prefix and not state.history and evidence.prefix:
            prefix = Passage.whole(Document("", evidence.prefix))
            yield from self._weighed(lm, "", prefix, read)
        for passage in evidence.passages:
            yield from self._weighed(lm, evidence.prefix + passage.prompt, passage, read)
            read.append(passage)

    def _weighed(self, lm: LM, before: str, passage: Passage, read: Sequence[Passage]) -> Iterator[Piece]:
        """Yield the pieces of a passage that stands after the text `before` and comes after what was read."""
        weights = self.token_weights.of(passage, lm.tokenizer.encode(passage.text)[1], read).to(lm.device)
        done = 0
        for window in _windows(lm, before, passage.text, self.chunk_tokens, lm.window):
            yield Piece(window, weights[done : done + len(window.targets)], passage.document or passage.id)
            done += len(window.targets)

    def build(self, lm: LM) -> GradientStatistics:
        return GradientStatistics(_opened(lm)[1])

    def episodes(self, lm: LM, material: Material) -> list[Window]:
        """Return pieces of the length that is learnt from, each after as much text before it at most."""
        return [
            window
            for document in material.documents
            for window in _windows(lm, "", document.text, self.chunk_tokens, 2 * self.chunk_tokens)
        ]

    def loss(self, network: nn.Module, lm: LM, episode: Window) -> Tensor:
        raise BadInput(
            "gradient statistics are counted, none is better than another: give no validation text"
        )

    def gradients(self, network: nn.Module, lm: LM, episode: Window) -> tuple[float, Sequence[Tensor | None]]:
        """Count the gradient of one piece; there is nothing to move."""
        assert isinstance(network, GradientStatistics)
        private, parameters = _opened(lm)
        loss = -_log_probs(private, episode).mean()
        network.add(torch.autograd.grad(loss, list(parameters.values()), allow_unused=True))
        return loss.item(), []

    def _statistics(self, lm: LM) -> GradientStatistics | None:
        """Return the statistics if the rule asks for them; BadInput where it does and there are none."""
        if not isinstance(self.optimizer, RMS):
            if self.weights:
                raise BadInput(
                    f"weights={self.weights}: only optimizer=rms uses gradient statistics; "
                    "add --set optimizer=rms, or leave weights out"
                )
            return None
        if self.trained is None and not self.weights:
            raise BadInput(
                "optimizer=rms wants gradient statistics: count them with `uptake train dynamic-evaluation`, "
                "give them with --set weights=FILE; weights=untrained, optimizer=sgd and optimizer=adamw "
                "do without"
            )
        network = self.network(lm)
        assert isinstance(network, GradientStatistics)
        return network

    def _sizes(self, lm: LM, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        statistics = self._statistics(lm)
        if statistics is None:
            return {}
        if unknown := sorted(parameters.keys() - set(statistics.names)):
            raise BadInput(
                f"optimizer=rms has no statistics of {unknown[0]}: let weights of the model itself move, "
                "trainable=all or trainable=top"
            )
        return {f"{name}|rms": statistics.rms(name) for name in parameters}


def _windows(lm: LM, before: str, text: str, size: int, room: int) -> Iterator[Window]:
    """Yield even pieces of at most `size` tokens, each after as much of what stands before it as has room."""
    ids = lm.tokenizer.encode(text)[0]
    whole = [lm.tokenizer.opening, *lm.tokenizer.encode(before)[0], *ids]
    room = min(room, lm.window)
    count = math.ceil(len(ids) / min(size, room))
    for number in range(count):
        start, end = len(ids) * number // count, len(ids) * (number + 1) // count
        last = len(whole) - len(ids) + end
        yield Window(0, whole[max(0, last - 1 - room) : last - 1], ids[start:end])


def _log_probs(lm: LM, window: Window) -> Tensor:
    """Return the log-probabilities of the targets, differentiable."""
    log_probs, _ = lm.step(torch.tensor([window.inputs], device=lm.device))
    targets = torch.tensor(window.targets, device=lm.device)
    return log_probs[0, -len(targets) :].gather(-1, targets[:, None])[:, 0]


def _opened(lm: LM) -> tuple[LM, Mapping[str, nn.Parameter]]:
    private, opened = lm.trainable_copy(All(), Delta(lm.fingerprint), torch.Generator())
    return private, opened.parameters


def _buffer(name: str) -> str:
    # A buffer's name may hold no dot.
    return name.replace(".", "/")


spec = MethodSpec(DynamicEvaluation(), Nothing(), segment=256)
