"""Fast weight layers (Clark et al. 2022): a trained layer on top of the model that learns at every token.

What dynamic evaluation does with gradient steps, the layer does with linear attention, one pass and
trained for it: one step for every `stretch` tokens, and inside them a step at every position. The base may
stand beside it as an expert of one mixture, so that text which the base knows is left to the base.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta
from uptake.adaptation.draws import seed_of_draws
from uptake.adaptation.trainable import Trainable
from uptake.errors import BadInput
from uptake.lm.base import LM, Scores, Segment
from uptake.lm.capabilities import HiddenStates, capability
from uptake.lm.examples import Example, encode, pieces
from uptake.lm.experts import FixedShare
from uptake.lm.wrappers import Routed
from uptake.methods.contract.learned import Learned, TrainingData
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State, charged_by_row
from uptake.methods.fwl.model import FastWeightLM, Known, followed, in_precision_of, windows
from uptake.methods.fwl.network import FastWeights, Sums
from uptake.text.select import Nothing
from uptake.text.types import Document, Found, Passage, stable_hash

SHORTEST = 64  # tokens of an episode: less teaches nothing about learning from it


@dataclass(frozen=True, kw_only=True)
class FastWeightState(State):
    """What all that was read leaves, as `Known` says."""

    sums: Sums
    weights: Tensor | None = None

    @property
    def known(self) -> Known:
        return Known(self.sums, self.weights)


class FastWeightNetwork(nn.Module):
    """The layer, and the weights of the base that were trained along, if any."""

    def __init__(self, layer: FastWeights, lm: LM, trainable: Trainable | None) -> None:
        super().__init__()
        self.layer, self.base, self._opened = layer, lm, None
        moved: Mapping[str, nn.Parameter] = {}
        if trainable is not None:
            generator = torch.Generator().manual_seed(seed_of_draws())
            self.base, self._opened = lm.trainable_copy(trainable, Delta(lm.fingerprint), generator)
            moved = self._opened.parameters
        self.moved = nn.ParameterDict({name.replace(".", "/"): own for name, own in moved.items()})

    def under(self, lm: LM) -> LM:
        """Return the LM that the layer stands on: this one, with the base as it was trained along."""
        return lm if self._opened is None else lm.overlay(self._opened.delta())


@torch.no_grad()
def sampled(lm: HiddenStates, texts: int = 32, tokens: int = 96) -> Tensor:
    """Return hidden states [number, width] of texts that the model makes up itself."""
    generator = torch.Generator().manual_seed(0)
    ids, cache, found = torch.full((texts, 1), lm.tokenizer.opening, device=lm.device), lm.start(), []
    for _ in range(min(tokens, lm.window)):
        hidden, cache = lm.hidden(ids, cache)
        found.append(hidden[:, -1])
        likely = lm.unembedding.logits(hidden[:, -1]).softmax(-1)
        ids = torch.multinomial(likely.cpu(), 1, generator=generator).to(lm.device)
    # The opening token's state is the same in every text.
    return torch.cat(found[1:]).float()


@dataclass(frozen=True)
class FWL(Learned[FastWeightState, Example]):
    """Learns every token it reads, by a trained layer on top of the model.

    `rate_scale` multiplies the learnt learning rates; 0 is the control, the layer without learning.
    After every `stretch` tokens, gradients are taken at the updated weights; with 0 never, as published.
    `trainable` are weights of the base to train along with the layer; `hidden` is the layer's inner width,
    four times the model's if none. A training episode is `episode_tokens` of one document. Training
    may begin where another ended, `start`: the slow weights take long and are cheap to train at rate_scale 0.
    With `base_weight` above 0 the base and the layer are experts of one mixture, which begins with that
    weight on the base and follows, token by token, how well each predicts: a text then costs at most
    log2(len(shares) / base_weight) bits more than under the base. `shares` are the candidates for the share
    of the weight dealt out anew at each token, as `FixedShare` says.
    """

    learns_while_scoring: ClassVar[bool] = True

    rate_scale: float = 1.0
    stretch: int = 128
    own_prefix: bool = False  # learn the query's own text first
    hidden: int | None = None
    trainable: Trainable | None = None
    episode_tokens: int = 2048
    start: str = ""  # a network to begin training from
    base_weight: float = 0.0
    shares: tuple[float, ...] = (0.0, 0.01, 0.1)

    def __post_init__(self) -> None:
        if not 0 <= self.rate_scale < float("inf"):
            raise BadInput(f"rate_scale {self.rate_scale}: use a finite number, 0 or more")
        if self.trainable is not None and not self.trainable.neutral:
            raise BadInput(
                f"trainable={type(self.trainable).__name__.lower()}: fast weights train along what begins as "
                "the base itself, a soft prompt does not; use ia3, lora, compacter or tarp"
            )
        if self.stretch < 0:
            raise BadInput(f"stretch {self.stretch}: use a number of tokens, or 0 for one step on all")
        if self.episode_tokens < SHORTEST or (self.hidden is not None and self.hidden < 1):
            raise BadInput(
                f"episode_tokens {self.episode_tokens}, hidden {self.hidden}: "
                f"use {SHORTEST} or more, and 1 or more"
            )

        if not 0 <= self.base_weight < 1:
            raise BadInput(
                f"base_weight {self.base_weight}: use a probability below 1, or 0 for the layer alone"
            )
        if self.base_weight and self.trainable is not None:
            raise BadInput(
                f"base_weight {self.base_weight} beside trainable={type(self.trainable).__name__.lower()}: "
                "a base that is trained along is not the one to leave known text to; use one of the two"
            )
        self._sharing()

    @classmethod
    def example(cls) -> Self:
        return cls(weights="untrained")

    def _sharing(self) -> FixedShare | None:
        if not self.base_weight:
            return None
        return FixedShare((self.base_weight, 1 - self.base_weight), self.shares)

    def build(self, lm: LM) -> FastWeightNetwork:
        if self.start:
            return cast(FastWeightNetwork, self.load(Path(self.start), lm))
        base = capability(lm, HiddenStates)
        states = sampled(base)
        layer = self._layer(lm)
        layer.fit(states, base.unembedding)
        return FastWeightNetwork(layer, lm, self.trainable)

    def restore(self, lm: LM, about: Mapping[str, str]) -> FastWeightNetwork:
        return FastWeightNetwork(self._layer(lm), lm, self.trainable)

    def _layer(self, lm: LM) -> FastWeights:
        width = capability(lm, HiddenStates).unembedding.weight.shape[1]
        return FastWeights(width, self.hidden, rate_scale=self.rate_scale, stretch=self.stretch)

    def episodes(self, lm: LM, material: TrainingData) -> list[Example]:
        found = []
        for document in material.some_documents():
            whole = encode(lm.tokenizer, "", document.text)
            some = pieces(whole, self.episode_tokens)
            found += [piece for piece in some if len(piece.target) >= SHORTEST]
        if not found:
            raise BadInput(f"no document of {SHORTEST} tokens or more: give longer ones to train on")
        return found

    def loss(self, network: nn.Module, lm: LM, episode: Example) -> Tensor:
        assert isinstance(network, FastWeightNetwork)
        known, parts = self._nothing_known(network.layer, lm), []
        base = capability(network.base, HiddenStates)
        out, sharing = base.unembedding, self._sharing()
        for hidden, labels in windows(base, episode, base.window):
            read = followed(network.layer, hidden, labels, out, known, sharing)
            # Unlike `log_probs` it has a gradient where both agree, as they do before any training.
            parts.append(-(read.said + read.along).logsumexp(-1).mean() * labels.shape[1])
            known = read.known
        return torch.stack(parts).sum() / len(episode.target)

    def init(self, lm: LM) -> FastWeightState:
        known = self._nothing_known(self._network(lm).layer, lm)
        return FastWeightState(base=lm.fingerprint, sums=known.sums, weights=known.weights)

    def _nothing_known(self, layer: FastWeights, lm: LM) -> Known:
        sharing = self._sharing()
        return Known(layer.start(1), None if sharing is None else sharing.start(lm.device))

    def adapt(
        self,
        states: Sequence[FastWeightState],
        lm: LM,
        evidence: Sequence[Evidence],
        context: Context,
        donate: bool = False,
    ) -> list[FastWeightState]:
        network = self._network(lm)
        under = network.under(lm)

        def learn(row: int, state: FastWeightState, read: Evidence) -> FastWeightState:
            return self._adapt(network.layer, row, state, under, read, context)

        return charged_by_row(learn, states, evidence, context, lm.device)

    def adapted(self, states: Sequence[FastWeightState], lm: LM) -> LM:
        network = self._network(lm)
        under, known, sharing = network.under(lm), [state.known for state in states], self._sharing()
        if lm.rows is None:
            return FastWeightLM(under, network.layer, known, sharing)
        return Routed(
            [FastWeightLM(under.at([row]), network.layer, [own], sharing) for row, own in enumerate(known)]
        )

    def read(
        self, states: Sequence[FastWeightState], lm: LM, segments: Sequence[Segment], context: Context
    ) -> tuple[list[Scores], list[FastWeightState]]:
        scores, after = [], []
        for row, (state, segment) in enumerate(zip(states, segments, strict=True)):
            model: Any = self.adapted([state], lm.at([row]))
            with context.charging([row], lm.device):
                (found,), (known,) = model.read([segment])
            context.ledger(row).tokens_read += len(found.log_probs)
            scores.append(found)
            after.append(state.after(self.evidence_of(segment), context, **known._asdict()))
        return scores, after

    def evidence_of(self, segment: Segment) -> Evidence:
        # The context is seen and not learnt: it was when it was scored itself.
        passage = Passage(stable_hash(segment.text), segment.text, segment.context)
        return Evidence(Found((passage,), (0.0,), (0.0,)))

    @torch.no_grad()
    def _adapt(
        self,
        layer: FastWeights,
        row: int,
        state: FastWeightState,
        lm: LM,
        evidence: Evidence,
        context: Context,
    ) -> FastWeightState:
        passages = evidence.passages
        if self.own_prefix and not state.history and evidence.prefix:
            passages = (Passage.whole(Document("", evidence.prefix)), *passages)
        base, known, sharing = capability(lm, HiddenStates), state.known, self._sharing()
        for passage in passages:
            if not context.may_continue(row):
                break
            example = encode(base.tokenizer, passage.prompt, passage.text)
            for hidden, labels in windows(base, example, lm.max_input_tokens(row)):
                if sharing is not None:  # it has to answer, for how well it does is what weighs
                    known = followed(layer, hidden, labels, base.unembedding, known, sharing).known
                    continue
                with in_precision_of(base.unembedding):
                    known = Known(layer.learn(hidden, labels, base.unembedding, known.sums))
            context.ledger(row).tokens_read += len(example.target)
        return state.after(evidence, context, **known._asdict()) if passages else state

    def _network(self, lm: LM) -> FastWeightNetwork:
        network = self.network(lm)
        assert isinstance(network, FastWeightNetwork)
        return network


spec = MethodSpec(FWL(own_prefix=True), Nothing())
