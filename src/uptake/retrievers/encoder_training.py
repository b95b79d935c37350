"""Trains the upper layers of a store's encoder on questions, with candidates found again as it moves.

Now and then the passages are encoded again and searched anew, and a frozen reader is asked after what is new
among the candidates. `encoder_steps.py` says what one step is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from uptake.adaptation.inner_loop import GradientDescent
from uptake.adaptation.optimizers import AdamW
from uptake.adaptation.transforms import chain
from uptake.codec import plain
from uptake.errors import BadInput, Diverged
from uptake.retrievers.corpus import Corpus, Pool
from uptake.retrievers.encoder_checkpoint import Progress, read, write
from uptake.retrievers.encoder_steps import EncoderTuning, Steps
from uptake.retrievers.schedule import Schedule
from uptake.retrievers.table import ReaderTable
from uptake.retrievers.training import none_useful
from uptake.retrievers.upper_layers import UpperLayers
from uptake.settings import describe
from uptake.tasks.questions import Question
from uptake.text.types import stable_hash

_CLIP = 1.0  # the norm of a step's gradient at most


@dataclass
class TrainedLayers:
    """What it was trained on, and the mean losses after each pass, in training and validation."""

    said: str
    training: list[float]
    validation: list[float]


def train(
    encoder: UpperLayers,
    corpus: Corpus,
    questions: Sequence[Question],
    tuning: EncoderTuning,
    valid: Sequence[Question] = (),
    table: ReaderTable | None = None,
    checkpoint: Path | None = None,
    save_every: int = 100,
    report: Callable[[str, int, int], None] = lambda doing, done, total: None,
) -> TrainedLayers:
    """Train the encoder's upper layers in place.

    The seed fixes the order. With `valid` questions the layers are those of the pass that does best on what
    is retrieved for them at first, the start included. With `checkpoint`, written every `save_every` steps
    and after each pass, a call that was interrupted is resumed, and ends at the same weights.
    `report(doing, done, total)` is told of steps ("training") and of what comes between. Raises BadInput
    where there is no question, Mismatch where the checkpoint is of another training, Diverged.
    """
    if tuning.loss != "contrastive" and table is None:
        raise BadInput(f"loss {tuning.loss}: these questions have no reader's word; use contrastive")
    run = Steps(encoder, corpus, tuning, table, report)
    first = run.found(questions, tuning.over)
    useful = [n for n, pool in enumerate(first) if _useful(pool, tuning)]
    if not useful:
        raise none_useful(tuning, len(questions))
    asked, pools = [questions[n] for n in useful], [first[n] for n in useful]
    tested = zip(valid, run.found(valid, 1), strict=True)
    judged = [(question, pool) for question, pool in tested if _useful(pool, tuning)]
    key = _key(corpus, questions, valid, tuning, table, encoder)
    progress = read(checkpoint, key) if checkpoint is not None and checkpoint.exists() else None
    if progress is None:
        progress = Progress(encoder.state())
        if judged:
            progress.validation.append(run.mean(judged))
            progress.best = encoder.state()
    else:
        encoder.put(progress.network)
        pools = [
            corpus.pool(q, places, tuning.words) for q, places in zip(asked, progress.pools, strict=True)
        ]
        run.ask(asked, pools)
    optimizer = AdamW(learning_rate=tuning.learning_rate, weight_decay=tuning.weight_decay)
    descent = GradientDescent(encoder.parameters, optimizer, chain(_CLIP), progress.optimizer_state)
    batches, schedule = _batches(len(asked), tuning), Schedule.of(tuning.refresh)
    report("training", progress.step, len(batches))
    for step in range(progress.step, len(batches)):
        if schedule.due(step):
            pools = run.refreshed(asked)
        some = batches[step]
        loss, gradients = run.step([asked[n] for n in some], [pools[n] for n in some])
        if not np.isfinite(loss):
            raise Diverged(f"the loss is {loss}: train with a smaller learning rate")
        descent.apply(gradients)
        progress.sum += loss * len(some)
        progress.step = step + 1
        if ends := progress.step % (len(batches) // tuning.passes) == 0:
            progress.training.append(progress.sum / len(asked))
            progress.sum = 0.0
            if judged:
                progress.validation.append(run.mean(judged))
                if progress.validation[-1] < min(progress.validation[:-1]):
                    progress.best = encoder.state()
        if checkpoint is not None and (ends or progress.step % save_every == 0):
            progress.network, progress.optimizer_state = encoder.state(), descent.optimizer_state
            progress.pools = [pool.places.tolist() for pool in pools]
            write(checkpoint, key, progress)
        report("training", progress.step, len(batches))
    if judged:
        encoder.put(progress.best)
    layers = f"{tuning.layers} {'layer' if tuning.layers == 1 else 'layers'} of {tuning.sides}"
    said = f"{tuning.loss} on {len(asked)} questions, {layers}, seed {tuning.seed}"
    said += ", with words" if tuning.words else ""
    return TrainedLayers(said, progress.training, progress.validation)


def _useful(pool: Pool, tuning: EncoderTuning) -> bool:
    return len(pool.places) > 1 and (tuning.loss != "contrastive" or bool(pool.gold.any()))


def _batches(count: int, tuning: EncoderTuning) -> list[list[int]]:
    generator = torch.Generator().manual_seed(tuning.seed)
    orders = [torch.randperm(count, generator=generator) for _ in range(tuning.passes)]
    return [some.tolist() for order in orders for some in torch.split(order, tuning.batch)]


def _key(
    corpus: Corpus,
    questions: Sequence[Question],
    valid: Sequence[Question],
    tuning: EncoderTuning,
    table: ReaderTable | None,
    encoder: UpperLayers,
) -> str:
    """Name a training by all that decides where it ends."""
    reader = "" if table is None else f"{table.lm.fingerprint} {table.prompt}"
    parts = [encoder.encoder.fingerprint, corpus.contents, repr(plain(describe(tuning))), reader]
    return f"{stable_hash(*parts, repr([*questions]), repr([*valid])):016x}"
