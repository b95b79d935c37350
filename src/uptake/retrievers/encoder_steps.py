"""One step of an encoder's training: retrieve, score again, choose the candidates, and what the loss says.

As in EMDR2 and Atlas: an index that has grown stale gives more passages than are wanted, the encoder as it is
now scores them again, and the best of them are the candidates of the loss, whose gradient reaches the
questions and, with `sides=both`, the passages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uptake.errors import BadInput
from uptake.retrievers.corpus import Corpus, Pool
from uptake.retrievers.schedule import Schedule
from uptake.retrievers.table import Entry, ReaderTable
from uptake.retrievers.training import Asked, Batch, Tuning, loss_of_scores
from uptake.retrievers.upper_layers import UpperLayers
from uptake.tasks.questions import Question

SIDES = ("query", "both")


@dataclass(frozen=True)
class EncoderTuning(Tuning):
    """How an encoder is trained. Of `over` times `candidates` passages the best by its newest scores count.

    With `sides=query` passages keep the vectors that the store has; with `both` they are those of the encoder
    that trains. `refresh` says when the store is encoded and searched again, see `Schedule`.
    """

    learning_rate: float = 1e-4
    passes: int = 3
    batch: int = 32
    layers: int = 1
    sides: str = "both"
    candidates: int = 10
    over: int = 2
    refresh: str = "50"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss == "adist":
            raise BadInput(
                "loss adist: the reader has all candidates in one prompt, and they change as the encoder "
                "does; use pdist, or train without --layers"
            )
        if self.sides not in SIDES:
            raise BadInput(f"sides {self.sides!r}: use {' or '.join(SIDES)}")
        if min(self.layers, self.candidates - 1, self.over) < 1:
            raise BadInput(
                f"layers {self.layers}, candidates {self.candidates}, over {self.over}: use 1 or more, and 2 "
                "candidates or more"
            )
        Schedule.of(self.refresh)


@dataclass
class Steps:
    """The steps of one training: what they share, and what each does."""

    encoder: UpperLayers
    corpus: Corpus
    tuning: EncoderTuning
    table: ReaderTable | None
    report: Callable[[str, int, int], None]

    def found(self, questions: Sequence[Question], over: int) -> list[Pool]:
        """Search the corpus for these questions, and have the reader asked after what is new."""
        tuning = self.tuning
        pools = self.corpus.pools(
            questions,
            self.encoder.embed([question.text for question in questions]),
            tuning.candidates * over,
            tuning.vector_weight,
            tuning.words,
            tuning.loss == "contrastive",
            lambda done, total: self.report("searching", done, total),
        )
        self.ask(questions, pools)
        return pools

    def ask(self, questions: Sequence[Question], pools: Sequence[Pool]) -> None:
        """Have the reader's table hold each answer after each passage of its pool."""
        if self.table is None or self.tuning.loss == "contrastive":
            return
        entries = [
            Entry(question.text, self.corpus.texts[place], question.answers[0])
            for question, pool in zip(questions, pools, strict=True)
            for place in pool.places
        ]
        self.table.fill(entries, progress=lambda done, total: self.report("reading", done, total))

    def refreshed(self, questions: Sequence[Question]) -> list[Pool]:
        """Encode the corpus as the encoder is now, where passages train as well, and search it anew."""
        if self.tuning.sides == "both":
            self.corpus.vectors = self.encoder.embed(
                self.corpus.texts, lambda done, total: self.report("encoding", done, total)
            )
        return self.found(questions, self.tuning.over)

    def step(self, questions: Sequence[Question], pools: Sequence[Pool]) -> tuple[float, list[Tensor]]:
        """Return the mean loss of these questions and its gradient in what trains."""
        texts, vectors = self.vectors(questions, pools)
        vectors.requires_grad_(True)
        loss = self.loss(questions, pools, vectors)
        (found,) = torch.autograd.grad(loss, vectors)
        # Of what was over-retrieved most is no candidate and has no gradient: it is not run again.
        moved = [n for n in range(len(texts)) if bool(found[n].any())]
        return loss.item(), self.encoder.gradients([texts[n] for n in moved], found[moved])

    def mean(self, judged: Sequence[tuple[Question, Pool]]) -> float:
        """Return the mean loss of questions on what was retrieved for them."""
        questions, pools = [question for question, _ in judged], [pool for _, pool in judged]
        _, vectors = self.vectors(questions, pools)
        return self.loss(questions, pools, vectors).item()

    def vectors(self, questions: Sequence[Question], pools: Sequence[Pool]) -> tuple[list[str], Tensor]:
        """Return what the encoder reads, and the vectors of questions, then of each passage of their pools.

        With `sides=query` it reads the questions alone.
        """
        texts, places = [question.text for question in questions], _places(pools)
        both = self.tuning.sides == "both"
        if both:
            texts += [self.corpus.texts[place] for place in places]
        found = self.encoder.embed(texts)
        if not both:
            found = np.concatenate([found, self.corpus.vectors[places]]).astype(found.dtype)
        return texts, torch.from_numpy(found)

    def loss(self, questions: Sequence[Question], pools: Sequence[Pool], vectors: Tensor) -> Tensor:
        """Return the mean loss over each question's best candidates, by its scores in these vectors."""
        row = {place: len(questions) + n for n, place in enumerate(_places(pools))}
        asked, rows = [], []
        for n, (question, pool) in enumerate(zip(questions, pools, strict=True)):
            own = [row[place] for place in pool.places.tolist()]
            scores = self.tuning.vector_weight * (vectors[own] @ vectors[n]).detach().numpy() + pool.words
            best = self.best(scores, pool)
            rows.append([own[each] for each in best])
            asked.append(self._asked(question, pool, best))
        batch = Batch.of(asked, vectors.dtype)
        padded = torch.tensor([[*each, *[0] * (batch.there.shape[1] - len(each))] for each in rows])
        found = self.tuning.vector_weight * (vectors[padded] @ vectors[: len(questions), :, None])[:, :, 0]
        scored = torch.where(batch.there, found + batch.words, -torch.inf)
        return loss_of_scores(scored, batch, self.tuning)

    def best(self, scores: NDArray[np.floating], pool: Pool) -> list[int]:
        """Return which of a pool are candidates: the best by these scores, and what is marked as right."""
        order = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
        best = order[: self.tuning.candidates]
        marked = self.tuning.loss == "contrastive"
        return best + [n for n in order[self.tuning.candidates :] if marked and pool.gold[n]]

    def _asked(self, question: Question, pool: Pool, best: Sequence[int]) -> Asked:
        """Return a question as the losses take it, its vectors left out: they come from the encoder."""
        tokens = None
        if self.table is not None and self.tuning.loss != "contrastive":
            texts = [self.corpus.texts[pool.places[n]] for n in best]
            tokens = self.table.tokens(question.text, texts, question.answers[0])
        none = np.zeros((len(best), 0), np.float32)
        return Asked(none[0], none, pool.words[best], pool.gold[best], tokens)


def _places(pools: Sequence[Pool]) -> list[int]:
    """Return every passage of these pools once."""
    return sorted({place for pool in pools for place in pool.places.tolist()})
