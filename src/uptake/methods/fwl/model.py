"""A language model that learns every token it reads: by a fast weight layer, or mixed with its base."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Self, cast

import torch
from torch import Tensor

from uptake.lm.base import LM, Cache, Scores, Segment, Wrapper
from uptake.lm.capabilities import HiddenStates, Unembedding, capability
from uptake.lm.examples import Example, encode, rolling_windows
from uptake.lm.experts import FixedShare, MixtureCache, mixed, mixed_step
from uptake.lm.rows import RowCaches, each_row
from uptake.methods.fwl.network import FastWeights, Sums


class Known(NamedTuple):
    """What reading a text leaves: `sums` of gradients, by parameter of the layer, [1, ...].

    `weights` are the log-weights of the base and of the layer in their mixture, float64 [shares, 2]; None
    where the layer alone answers.
    """

    sums: Sums
    weights: Tensor | None = None


class FastWeightCache(NamedTuple):
    """A cache: the inner LM's, what each row knows, and the last hidden states, whose labels are to come.

    `said` are the predictions of the base and of the layer there, [rows, 2, vocabulary], in a mixture.
    """

    inner: Cache
    known: list[Known]
    last: Tensor | None
    said: Tensor | None = None


class FastWeightLM(Wrapper):
    """An LM that learns every token it reads: row i goes on from `known[i]`.

    With `sharing` the inner LM and the layer are experts of one mixture, whose weights go on from text to
    text as the sums do. In `score` only the scored tokens are learnt and weigh, through as many windows as
    the text takes; in `step`, and so in generation, every token since the start. No token is learnt before
    it was predicted.
    """

    def __init__(
        self, inner: LM, layer: FastWeights, known: Sequence[Known], sharing: FixedShare | None = None
    ) -> None:
        super().__init__(inner)
        self.states = capability(inner, HiddenStates)
        self.layer, self.known, self.sharing, self.rows = layer, list(known), sharing, len(known)

    def around(self, inner: LM) -> Self:
        return type(self)(inner, self.layer, self.known, self.sharing)

    def at(self, rows: Sequence[int]) -> LM:
        return FastWeightLM(self.inner.at(rows), self.layer, [self.known[row] for row in rows], self.sharing)

    def start(self) -> Cache:
        inner = self.states.start()
        return None if inner is None else FastWeightCache(inner, self.known, None)

    def step(
        self, ids: Tensor, cache: Cache = None, lengths: Sequence[int] | None = None
    ) -> tuple[Tensor, Cache]:
        if lengths is not None or isinstance(cache, RowCaches):
            return each_row(self, ids, cache, lengths)
        kept, known, last, said = cache or FastWeightCache(None, self.known, None)
        hidden, kept = self.states.hidden(ids, kept)
        out, answers, after = self.states.unembedding, [], []
        with in_precision_of(out):
            # Row by row: each is at another place of its stretch.
            for row, own in enumerate(known):
                at, sums = slice(row, row + 1), own.sums
                if last is not None:
                    sums = self.layer.learn(last[at], ids[at, :1], out, sums)
                answer, sums = self.layer(hidden[at], ids[at, 1:], out, sums)
                answers.append(answer)
                after.append(own._replace(sums=sums))
        log_probs = torch.log_softmax(out.logits(torch.cat(answers)), -1)
        if self.sharing is not None:
            parts = torch.stack([torch.log_softmax(out.logits(hidden), -1), log_probs], 1)
            before = MixtureCache(torch.stack([cast(Tensor, own.weights) for own in known]), said)
            log_probs, (weights, said) = mixed_step(self.sharing, parts, ids, before)
            after = [own._replace(weights=each) for own, each in zip(after, weights, strict=True)]
        return log_probs, None if cache is None else FastWeightCache(kept, after, hidden[:, -1:], said)

    def score(self, segments: Sequence[Segment], batch_tokens: int | None = None) -> list[Scores]:
        return self.read(segments)[0]

    def read(self, segments: Sequence[Segment]) -> tuple[list[Scores], list[Known]]:
        """Return the scores of segment i by row i, and what is known after it."""
        self._check_rows(len(segments))
        found = [self._read(row, segment) for row, segment in enumerate(segments)]
        return [scores for scores, _ in found], [known for _, known in found]

    @torch.no_grad()
    def _read(self, row: int, segment: Segment) -> tuple[Scores, Known]:
        example = encode(self.tokenizer, segment.context, segment.text)
        parts, known = [torch.zeros(0, dtype=torch.float64)], self.known[row]
        out = self.states.unembedding
        for hidden, labels in windows(self.states, example, self.max_input_tokens(row)):
            read = followed(self.layer, hidden, labels, out, known, self.sharing)
            parts.append(read.log_probs.double().cpu())
            known = read.known
        log_probs = torch.cat(parts)
        return Scores.of(self.tokenizer, segment.text, example.target, example.spans, log_probs), known


class Followed(NamedTuple):
    """The experts' log-probabilities of labels, their log-weights there, [time, experts], what is known."""

    said: Tensor
    along: Tensor
    known: Known

    @property
    def log_probs(self) -> Tensor:
        """Return the log-probability of each label, [time]; the base's own where both agree."""
        return mixed(self.said[..., None].unbind(1), self.along)[:, 0]


def followed(
    layer: FastWeights,
    hidden: Tensor,
    labels: Tensor,
    out: Unembedding,
    known: Known,
    sharing: FixedShare | None,
) -> Followed:
    """Predict labels [1, time] from hidden states [1, time, width]; each weighs once it was predicted."""
    with in_precision_of(out):
        answers, sums = layer(hidden, labels, out, known.sums)
    own = torch.log_softmax(out.logits(answers), -1).gather(-1, labels[..., None])[0]
    if sharing is None:
        return Followed(own, torch.zeros_like(own), Known(sums))
    plain = torch.log_softmax(out.logits(hidden), -1).gather(-1, labels[..., None])[0]
    assert known.weights is not None
    said = torch.cat([plain, own], -1)
    along, weights = sharing.along(known.weights, said)
    return Followed(said, along, Known(sums, weights))


def windows(lm: HiddenStates, example: Example, max_inputs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, window by window, the hidden states [1, time, width] before target tokens, and these."""
    for window in rolling_windows(example, max_inputs):
        hidden, _ = lm.hidden(torch.tensor([window.inputs], device=lm.device))
        yield hidden[:, -len(window.target) :], torch.tensor([window.target], device=lm.device)


def in_precision_of(out: Unembedding) -> AbstractContextManager[object]:
    """Multiply matrices in the base's precision, where that is half; sums stay as exact as they are."""
    kind = out.weight.dtype
    return torch.autocast(out.weight.device.type, kind) if kind.itemsize < 4 else nullcontext()
