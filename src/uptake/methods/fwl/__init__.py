"""Fast weight layers (Clark et al. 2022): a trained layer on top of the model that learns at every token.

What dynamic evaluation does with gradient steps, the layer does with linear attention, one pass and
trained for it: one step for every `stretch` tokens, and inside them a step at every position.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor, nn

from uptake.adaptation.delta import Delta
from uptake.adaptation.draws import seed_of_draws
from uptake.adaptation.inner_loop import token_loss
from uptake.adaptation.trainable import Trainable
from uptake.errors import BadInput
from uptake.lm.base import LM, Cache, Scores, Segment, Wrapper
from uptake.lm.capabilities import HiddenStates, Unembedding, capability
from uptake.lm.examples import Example, encode, pieces, rolling_windows
from uptake.lm.rows import RowCaches, each_row
from uptake.lm.wrappers import Routed
from uptake.methods.contract.learned import Learned, TrainingData
from uptake.methods.contract.method import Context, Evidence, MethodSpec, State, charged_by_row
from uptake.methods.fwl.network import FastWeights, Sums
from uptake.text.select import Nothing
from uptake.text.types import Document, Found, Passage, stable_hash

SHORTEST = 64  # tokens of an episode: less teaches nothing about learning from it


@dataclass(frozen=True, kw_only=True)
class FastWeightState(State):
    """The summed gradients of all that was read, by parameter of the layer, [1, ...]."""

    sums: Sums


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


class FastWeightCache(NamedTuple):
    """A cache: the inner LM's, each row's sums, and the last hidden states, whose labels are to come."""

    inner: Cache
    sums: list[Sums]
    last: Tensor | None


class FastWeightLM(Wrapper):
    """An LM that learns every token it reads: row i goes on from `sums[i]`.

    In `score` only the scored tokens are learnt, through as many windows as the text takes; in
    `step`, and so in generation, every token since the start is. No token is learnt before it was
    predicted.
    """

    def __init__(self, inner: LM, layer: FastWeights, sums: Sequence[Sums]) -> None:
        super().__init__(inner)
        self.states = capability(inner, HiddenStates)
        self.layer, self.sums, self.rows = layer, list(sums), len(sums)

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.layer, self.sums)

    def at(self, rows: Sequence[int]) -> LM:
        return FastWeightLM(self.inner.at(rows), self.layer, [self.sums[row] for row in rows])

    def start(self) -> Cache:
        inner = self.states.start()
        return None if inner is None else FastWeightCache(inner, self.sums, None)

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        if lengths is not None or isinstance(cache, RowCaches):
            return each_row(self, ids, cache, lengths)
        kept, sums, last = cache or FastWeightCache(None, self.sums, None)
        hidden, kept = self.states.hidden(ids, kept)
        out, answers, after = self.states.unembedding, [], []
        with in_precision_of(out):
            # Row by row: each is at another place of its stretch.
            for row, own in enumerate(sums):
                at = slice(row, row + 1)
                if last is not None:
                    own = self.layer.learn(last[at], ids[at, :1], out, own)
                answer, own = self.layer(hidden[at], ids[at, 1:], out, own)
                answers.append(answer)
                after.append(own)
        log_probs = torch.log_softmax(out.logits(torch.cat(answers)), -1)
        return log_probs, None if cache is None else FastWeightCache(kept, after, hidden[:, -1:])

    def score(self, segments: Sequence[Segment], batch_tokens: int | None = None) -> list[Scores]:
        return self.read(segments)[0]

    def read(self, segments: Sequence[Segment]) -> tuple[list[Scores], list[Sums]]:
        """Return the scores of segment i by row i, and the sums after it."""
        self._check_rows(len(segments))
        found = [self._read(row, segment) for row, segment in enumerate(segments)]
        return [scores for scores, _ in found], [sums for _, sums in found]

    @torch.no_grad()
    def _read(self, row: int, segment: Segment) -> tuple[Scores, Sums]:
        example = encode(self.tokenizer, segment.context, segment.text)
        parts, sums = [torch.zeros(0, dtype=torch.float64)], self.sums[row]
        out = self.states.unembedding
        for hidden, labels in windows(self.states, example, self.max_input_tokens(row)):
            with in_precision_of(out):
                answers, sums = self.layer(hidden, labels, out, sums)
            log_probs = torch.log_softmax(out.logits(answers), -1)
            parts.append(log_probs.gather(-1, labels[..., None])[0, :, 0].double().cpu())
        log_probs = torch.cat(parts)
        return Scores.of(self.tokenizer, segment.text, example.target, example.spans, log_probs), sums


def windows(lm: HiddenStates, example: Example, max_inputs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, window by window, the hidden states [1, time, width] before target tokens, and these."""
    for window in rolling_windows(example, max_inputs):
        hidden, _ = lm.hidden(torch.tensor([window.inputs], device=lm.device))
        yield hidden[:, -len(window.target) :], torch.tensor([window.target], device=lm.device)


def in_precision_of(out: Unembedding) -> AbstractContextManager[object]:
    """Multiply matrices in the base's precision, where that is half; sums stay as exact as they are."""
    kind = out.weight.dtype
    return torch.autocast(out.weight.device.type, kind) if kind.itemsize < 4 else nullcontext()


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
    """

    learns_while_scoring: ClassVar[bool] = True

    rate_scale: float = 1.0
    stretch: int = 128
    own_prefix: bool = False  # learn the query's own text first
    hidden: int | None = None
    trainable: Trainable | None = None
    episode_tokens: int = 2048
    start: str = ""  # a network to begin training from

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

    @classmethod
    def example(cls) -> Self:
        return cls(weights="untrained")

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
        for document in material.documents:
            whole = encode(lm.tokenizer, "", document.text)
            some = pieces(whole, self.episode_tokens)
            found += [piece for piece in some if len(piece.target) >= SHORTEST]
        if not found:
            raise BadInput(f"no document of {SHORTEST} tokens or more: give longer ones to train on")
        return found

    def loss(self, network: nn.Module, lm: LM, episode: Example) -> Tensor:
        assert isinstance(network, FastWeightNetwork)
        sums, parts = network.layer.start(1), []
        base = capability(network.base, HiddenStates)
        out = base.unembedding
        for hidden, labels in windows(base, episode, base.window):
            answers, sums = network.layer(hidden, labels, out, sums)
            loss = token_loss(torch.log_softmax(out.logits(answers), -1), labels)
            parts.append(loss * labels.shape[1])
        return torch.stack(parts).sum() / len(episode.target)

    def init(self, lm: LM) -> FastWeightState:
        return FastWeightState(base=lm.fingerprint, sums=self._network(lm).layer.start(1))

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
        under, sums = network.under(lm), [state.sums for state in states]
        if lm.rows is None:
            return FastWeightLM(under, network.layer, sums)
        return Routed([FastWeightLM(under.at([row]), network.layer, [own]) for row, own in enumerate(sums)])

    def read(
        self, states: Sequence[FastWeightState], lm: LM, segments: Sequence[Segment], context: Context
    ) -> tuple[list[Scores], list[FastWeightState]]:
        scores, after = [], []
        for row, (state, segment) in enumerate(zip(states, segments, strict=True)):
            model: Any = self.adapted([state], lm.at([row]))
            with context.charging([row], lm.device):
                (found,), (sums,) = model.read([segment])
            context.ledger(row).tokens_read += len(found.log_probs)
            scores.append(found)
            after.append(state.after(self.evidence_of(segment), context, sums=sums))
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
        base, sums = capability(lm, HiddenStates), state.sums
        for passage in passages:
            if not context.may_continue(row):
                break
            example = encode(base.tokenizer, passage.prompt, passage.text)
            for hidden, labels in windows(base, example, lm.max_input_tokens(row)):
                with in_precision_of(base.unembedding):
                    sums = layer.learn(hidden, labels, base.unembedding, sums)
            context.ledger(row).tokens_read += len(example.target)
        return state.after(evidence, context, sums=sums) if passages else state

    def _network(self, lm: LM) -> FastWeightNetwork:
        network = self.network(lm)
        assert isinstance(network, FastWeightNetwork)
        return network


spec = MethodSpec(FWL(own_prefix=True), Nothing())
