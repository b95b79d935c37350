"""On-the-fly adaptation to a source file (Shrivastava et al. 2020): gradient steps on the code around a hole.

Weights and Adam are fresh for each hole. The initial weights are the base's, or meta-trained by FOMAML or
Reptile so that a few steps help most.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta, Dense
from uptake.adaptation.optimizers import SGD, AdamW
from uptake.errors import BadInput
from uptake.lm.base import LM, Segment
from uptake.lm.examples import encode, rolling_windows
from uptake.lm.scoring import losses, per_token
from uptake.methods.contract.composed import MethodWrapper
from uptake.methods.contract.learned import UNTRAINED, Learned, TrainingData
from uptake.methods.contract.method import Context, Evidence, MethodSpec
from uptake.methods.contract.weight_state import WeightState
from uptake.methods.finetune import Finetune
from uptake.tasks.holes import Making
from uptake.text.select import Nothing
from uptake.text.types import Found, Source


class TrainedStart(nn.Module):
    """The initial weights of adaptation, as differences of each trainable weight from the base."""

    def __init__(self, shapes: dict[str, torch.Size]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(torch.zeros(shape)))

    def values(self) -> dict[str, Tensor]:
        """Return the differences by the names of the weights."""
        return {name.replace("/", "."): value.detach() for name, value in self.named_parameters()}


@dataclass(frozen=True)
class HoleEpisode:
    """One hole: what may be read for it, and what is to be filled in after which context."""

    evidence: Evidence
    hole: Segment


@dataclass(frozen=True, kw_only=True)
class SourceCode(Learned[WeightState, HoleEpisode], MethodWrapper[WeightState]):
    """`inner` adapts, 16 steps a hole as published; `weights` are the initial weights.

    `outer` says how that start is trained, on holes made as `making` says. Without
    reading, nothing changes: a trained start is used from the first passage on.
    """

    trains_weights_only: ClassVar[bool] = True

    weights: str = UNTRAINED
    inner: Finetune = field(
        default_factory=lambda: Finetune(optimizer=AdamW(5e-4, weight_decay=0.0), passes=16, max_steps=16)
    )
    outer: Literal["fomaml", "reptile"] = "fomaml"
    making: Making = field(default_factory=Making)

    def __post_init__(self) -> None:
        if self.outer not in ("fomaml", "reptile"):
            raise BadInput(f"outer {self.outer!r}: use fomaml or reptile")

    @property
    def wrapped(self) -> Finetune:
        return self.inner

    @classmethod
    def example(cls) -> Self:
        inner = Finetune(optimizer=SGD(learning_rate=0.03), chunk_tokens=16, passes=2)
        return cls(inner=inner)

    def build(self, lm: LM) -> nn.Module:
        _, opened = lm.trainable_copy(
            self.inner.trainable, Delta(lm.fingerprint), Context().generator("moves")
        )
        if opened.delta().kinds - {Dense}:
            raise BadInput("source-code trains whole weights: set inner.trainable to all or top")
        return TrainedStart({name: value.shape for name, value in opened.parameters.items()})

    def episodes(self, lm: LM, material: TrainingData) -> Sequence[HoleEpisode]:
        making = self.making
        found = [
            HoleEpisode(
                Evidence(Found().behind(making.support(hole)), query=making.context(hole)),
                Segment(hole.target, making.context(hole)),
            )
            for document in material.some_documents()
            for hole in making.holes(document)
        ]
        if not found:
            raise BadInput("no hole to train on: give Python files")
        return found

    def loss(self, network: nn.Module, lm: LM, episode: HoleEpisode) -> Tensor:
        ended = self._adapted(network, lm, episode)
        with torch.no_grad():
            return hole_loss(lm.overlay(ended), episode.hole)

    def gradients(
        self, network: nn.Module, lm: LM, episode: HoleEpisode
    ) -> tuple[float, Sequence[Tensor | None]]:
        """Return the gradient where adaptation ends (FOMAML), or the way from there back (Reptile)."""
        start = _delta(network, lm)
        ended = self._adapted(network, lm, episode)
        names = [name.path for name in start.parts]
        if self.outer == "reptile":
            with torch.no_grad():
                loss = hole_loss(lm.overlay(ended), episode.hole)
            return loss.item(), [start.difference(name) - ended.difference(name) for name in names]
        private, opened = lm.trainable_copy(self.inner.trainable, ended, Context().generator("moves"))
        loss = hole_loss(private, episode.hole)
        ends = [opened.parameters[name] for name in names]
        return loss.item(), torch.autograd.grad(loss, ends, allow_unused=True)

    def check(self, lm: LM, source: Source | None = None) -> None:
        super().check(lm, source)
        if self.trained is not None or self.weights != UNTRAINED:
            self.network(lm)

    def adapt(
        self,
        states: Sequence[WeightState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[WeightState]:
        # The untrained start is the base itself, whatever is trainable.
        untrained = self.trained is None and self.weights == UNTRAINED
        start = Delta(lm.fingerprint) if untrained else _delta(self.network(lm), lm)
        begun = [state if state.history else replace(state, delta=start) for state in states]
        ended = self.inner.adapt(begun, lm, evidence, context, donate)
        # What read nothing, or gave up, is where it was.
        return [
            state if after is before else after
            for state, before, after in zip(states, begun, ended, strict=True)
        ]

    def _adapted(self, network: nn.Module, lm: LM, episode: HoleEpisode) -> Delta:
        begun = replace(self.inner.init(lm), delta=_delta(network, lm))
        (state,) = self.inner.adapt([begun], lm, [episode.evidence], Context(continues=False))
        return state.delta


def hole_loss(lm: LM, hole: Segment) -> Tensor:
    """Return the mean negative log-likelihood of a hole's tokens, differentiable."""
    example = encode(lm.tokenizer, hole.context, hole.text)
    windows = [*rolling_windows(example, lm.max_input_tokens(0))]
    # A window at a time, as they are scored: none is padded.
    return per_token(torch.cat([losses(lm, [window]) for window in windows]), windows)


def _delta(network: nn.Module, lm: LM) -> Delta:
    assert isinstance(network, TrainedStart)
    return Delta.dense(lm.fingerprint, network.values())


spec = MethodSpec(SourceCode(), Nothing())
