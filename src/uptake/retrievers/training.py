"""Trains a query encoder on questions with candidate passages, whose vectors stay as they are.

It knows nothing of stores and readers: only vectors, what the reader made of each candidate, and a loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uptake.errors import BadInput, Diverged
from uptake.retrievers import losses
from uptake.retrievers.query_encoder import QueryMap
from uptake.store.passages.searching import VECTOR_WEIGHT

READER_LOSSES = ("emdr2", "emdr", "pdist", "loop")  # what a reader's table is enough for
LOSSES = (*READER_LOSSES, "adist", "contrastive")


@dataclass(frozen=True)
class Asked:
    """One question: its vector, and of each candidate vector, words' score and what the reader made of it.

    `tokens` is the reader's log-probability of each token of the answer, [candidates, tokens]; None where no
    reader was asked. `attention` is None where it was not measured. `gold` marks the right candidates.
    """

    vector: NDArray[np.float32]  # [dimensions]
    candidates: NDArray[np.float32]  # [candidates, dimensions]
    words: NDArray[np.float32]  # [candidates]
    gold: NDArray[np.bool_]  # [candidates]
    tokens: NDArray[np.float64] | None = None
    attention: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Tuning:
    """How a query encoder is trained; it scores `vector_weight` q.d, plus the words' score with `words`.

    `temperature` is that of the reader's targets (pdist, loop, adist), in nats a token, or of attention. With
    validation questions the best pass is kept, the start included.
    """

    loss: str = "pdist"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    passes: int = 40
    batch: int = 64
    temperature: float = 0.1
    vector_weight: float = VECTOR_WEIGHT
    words: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise BadInput(f"loss {self.loss!r}: use {', '.join(LOSSES)}")
        if min(self.learning_rate, self.temperature, self.vector_weight) <= 0 or self.weight_decay < 0:
            raise BadInput(
                f"learning_rate {self.learning_rate}, temperature {self.temperature}, vector_weight "
                f"{self.vector_weight}, weight_decay {self.weight_decay}: use positive numbers"
            )
        if self.passes < 1 or self.batch < 1:
            raise BadInput(f"passes {self.passes}, batch {self.batch}: use 1 or more")


@dataclass(frozen=True)
class Batch:
    """Questions side by side, their candidates padded; `there` is False beyond a question's own."""

    vectors: Tensor
    candidates: Tensor
    words: Tensor
    there: Tensor
    gold: Tensor
    tokens: Tensor | None
    lengths: Tensor | None
    attention: Tensor | None

    @classmethod
    def of(cls, asked: Sequence[Asked], dtype: torch.dtype = torch.float32) -> "Batch":
        """Return these questions as one batch."""
        widest = max(len(one.candidates) for one in asked)
        some = asked[0]

        def padded(rows: Sequence[NDArray[np.generic]], shape: tuple[int, ...], fill: float) -> Tensor:
            out = np.full((len(rows), *shape), fill)
            for row, values in zip(out, rows, strict=True):
                row[tuple(slice(0, size) for size in values.shape)] = values
            return torch.from_numpy(out)

        tokens = lengths = attention = None
        if all(one.tokens is not None for one in asked):
            known = [one.tokens for one in asked if one.tokens is not None]
            longest = max(each.shape[1] for each in known)
            tokens = padded(known, (widest, longest), 0.0).double()
            lengths = torch.tensor([each.shape[1] for each in known], dtype=torch.float64)
        if all(one.attention is not None for one in asked):
            weighed = [one.attention for one in asked if one.attention is not None]
            attention = padded(weighed, (widest,), -np.inf).double()
        width = some.candidates.shape[1]
        return cls(
            torch.from_numpy(np.stack([one.vector for one in asked])).to(dtype),
            padded([one.candidates for one in asked], (widest, width), 0.0).to(dtype),
            padded([one.words for one in asked], (widest,), 0.0).to(dtype),
            padded([np.ones(len(one.candidates), bool) for one in asked], (widest,), 0.0).bool(),
            padded([one.gold for one in asked], (widest,), 0.0).bool(),
            tokens,
            lengths,
            attention,
        )

    def at(self, places: Tensor) -> "Batch":
        """Return the questions at these places."""
        found: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        chosen: dict[str, Any] = {n: None if all_ is None else all_[places] for n, all_ in found.items()}
        return Batch(**chosen)


def scores(matrix: Tensor, batch: Batch, tuning: Tuning) -> Tensor:
    """Return the retriever's scores of a batch, [questions, candidates]; -inf where there is no candidate."""
    moved = torch.nn.functional.normalize(batch.vectors + batch.vectors @ matrix, dim=1)
    found = tuning.vector_weight * (batch.candidates @ moved[:, :, None])[:, :, 0]
    if tuning.words:
        found = found + batch.words
    return torch.where(batch.there, found, -torch.inf)


def loss_of(matrix: Tensor, batch: Batch, tuning: Tuning) -> Tensor:
    """Return the mean loss of a batch; raises BadInput where it lacks what the loss reads."""
    return loss_of_scores(scores(matrix, batch, tuning), batch, tuning)


def loss_of_scores(found: Tensor, batch: Batch, tuning: Tuning) -> Tensor:
    """Return the mean loss of scores, [questions, candidates]; raises BadInput as `loss_of` does."""
    if tuning.loss == "contrastive":
        return losses.contrastive(found, batch.gold).mean()
    if tuning.loss == "adist":
        if batch.attention is None:
            raise BadInput("loss adist: these questions have no attention of a reader; use pdist")
        return losses.adist(found, batch.attention.to(found), tuning.temperature).mean()
    if batch.tokens is None or batch.lengths is None:
        raise BadInput(f"loss {tuning.loss}: these questions have no reader's word; use contrastive")
    tokens = batch.tokens.to(found)
    answer = torch.where(batch.there, tokens.sum(2), -torch.inf)
    if tuning.loss == "emdr2":
        return losses.emdr2(found, answer).mean()
    if tuning.loss == "emdr":
        return losses.emdr(found, tokens).mean()
    lengths = batch.lengths.to(found)
    if tuning.loss == "pdist":
        return losses.pdist(found, answer / lengths[:, None], tuning.temperature).mean()
    return losses.loop(found, answer, lengths, tuning.temperature).mean()


@dataclass
class Trained:
    """A query encoder, and the mean losses after each pass: on training and on validation questions."""

    encoder: QueryMap
    training: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)


def train(
    asked: Sequence[Asked],
    encoder: str,
    tuning: Tuning,
    valid: Sequence[Asked] = (),
    progress: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> Trained:
    """Return a query encoder for vectors of the encoder of this fingerprint, trained on these questions.

    The seed fixes the order. It takes seconds, so nothing is kept for an interruption: what takes long, the
    reader's word, is in a table (table.py). Raises BadInput where there is no question, Diverged.
    """
    marked = tuning.loss == "contrastive"
    useful = [one for one in asked if len(one.candidates) > 1 and (one.gold.any() or not marked)]
    if not useful:
        raise none_useful(tuning, len(asked))
    generator = torch.Generator().manual_seed(tuning.seed)
    width = useful[0].candidates.shape[1]
    matrix = torch.zeros(width, width, requires_grad=True)
    descent = torch.optim.AdamW([matrix], lr=tuning.learning_rate, weight_decay=tuning.weight_decay)
    judged = _parts(valid, 256)
    trained = Trained(QueryMap(encoder, matrix.detach().numpy().copy()))
    best = _mean(matrix, judged, tuning) if judged else float("inf")
    if judged:
        trained.validation.append(best)
    kept = matrix.detach().clone()
    every = Batch.of(useful)
    for done in range(tuning.passes):
        total = 0.0
        for some in torch.split(torch.randperm(len(useful), generator=generator), tuning.batch):
            loss = loss_of(matrix, every.at(some), tuning)
            if not torch.isfinite(loss):
                raise Diverged(f"the loss is {loss.item()}: train with a smaller learning rate")
            matrix.grad = torch.autograd.grad(loss, matrix)[0]
            descent.step()
            total += loss.item() * len(some)
        trained.training.append(total / len(useful))
        if judged:
            trained.validation.append(_mean(matrix, judged, tuning))
            if trained.validation[-1] < best:
                best, kept = trained.validation[-1], matrix.detach().clone()
        else:
            kept = matrix.detach().clone()
        progress(done + 1, tuning.passes, trained.training[-1])
    said = f"{tuning.loss} on {len(useful)} questions, seed {tuning.seed}" + (
        ", with words" if tuning.words else ""
    )
    trained.encoder = QueryMap(encoder, kept.numpy(), said)
    return trained


def none_useful(tuning: Tuning, asked: int) -> BadInput:
    """Return what is wrong where none of so many questions can be trained on."""
    return BadInput(
        f"no question to train {tuning.loss} on: none of {asked} has two candidates"
        + (
            " and its right passage among them: name documents of the store in the questions, or learn "
            "from a reader"
            if tuning.loss == "contrastive"
            else ": add text to the store"
        )
    )


def _parts(asked: Sequence[Asked], size: int) -> list[Batch]:
    ends = [*range(0, len(asked), size), len(asked)]
    return [Batch.of(asked[start:end]) for start, end in pairwise(ends)]


def _mean(matrix: Tensor, parts: Sequence[Batch], tuning: Tuning) -> float:
    with torch.no_grad():
        sums = [
            (loss_of(matrix, part, tuning).item() * len(part.vectors), len(part.vectors)) for part in parts
        ]
    return sum(total for total, _ in sums) / sum(count for _, count in sums)
