"""Teach a base model the form of questions and answers, so that asking it measures what it knows.

The paper on CaMeLS does so with every base model before the stream, on questions on other documents.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import gradient_descent
from uptake.adaptation.optimizers import AdamW, Optimizer
from uptake.adaptation.trainable import All, Trainable
from uptake.adaptation.transforms import GradientTransform, Losses, chain
from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.lm.causal import Causal
from uptake.lm.examples import Example, encode, pieces
from uptake.lm.scoring import losses, shares
from uptake.tasks.asking import Asking
from uptake.tasks.questions import Question
from uptake.text.types import Document


@dataclass(frozen=True)
class Retuning:
    """Settings: `batch` texts a step, `passes` times over all of them, in an order the seed fixes.

    Only answers are learnt, and the end of their line; documents, where there are any, in full.
    """

    trainable: Trainable = field(default_factory=All)
    optimizer: Optimizer = field(default_factory=lambda: AdamW(learning_rate=1e-4, weight_decay=0.0))
    passes: int = 1
    batch: int = 16
    clip: float | None = 1.0
    transforms: tuple[GradientTransform, ...] = ()  # of gradients, before they are clipped
    seed: int = 0

    def __post_init__(self) -> None:
        if self.passes < 1 or self.batch < 1:
            raise BadInput(f"passes {self.passes}, batch {self.batch}: use 1 or more")
        chain(self.clip, self.transforms)


def retune(
    lm: LM,
    questions: Sequence[Question],
    asking: Asking | None = None,
    retuning: Retuning | None = None,
    documents: Sequence[Document] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Delta:
    """Return the difference in weights when the model learns to answer; the model itself is untouched.

    Each question is learnt with its first answer, from the prompt that `asking` makes of it, closed
    book. With `documents`, mixed in, it can also learn that what documents say is what is asked.
    Raises BadInput where there is nothing to learn, Diverged where the loss is no longer a number.
    """
    retuning = retuning or Retuning()
    generator = torch.Generator().manual_seed(retuning.seed)
    private, opened = lm.trainable_copy(retuning.trainable, Delta(lm.fingerprint), generator)
    texts = [*_answered(private, questions, asking or Asking()), *_read(private, documents)]
    if not texts:
        raise BadInput("no question to learn from: give at least one")

    def losses_of(batch: Sequence[Text]) -> Losses:
        examples = [example for example, _ in batch]
        # A mean over what is learnt: how long prompts are, or how much is padding, makes no difference.
        return Losses(shares(losses(private, examples), examples), [document for _, document in batch])

    total = -(-len(texts) // retuning.batch) * retuning.passes

    def batches() -> Iterator[Sequence[Text]]:
        done = 0
        for _ in range(retuning.passes):
            order = torch.randperm(len(texts), generator=generator).tolist()
            for start in range(0, len(order), retuning.batch):
                yield [texts[place] for place in order[start : start + retuning.batch]]
                done += 1
                progress(done, total)

    gradient_descent(
        losses_of,
        opened.parameters,
        batches(),
        retuning.optimizer,
        chain(retuning.clip, retuning.transforms),
        generator=torch.Generator().manual_seed(retuning.seed),
    )
    return opened.delta()


def save_retuned(lm: Causal, delta: Delta, folder: str | Path) -> None:
    """Write the model with a delta on it as a folder that `load` reads. Raises BadInput if one is there."""
    folder = Path(folder)
    if folder.exists():
        raise BadInput(f"{folder} is there already: name a folder to make")
    from transformers import GenerationConfig

    module: Any = lm.overlay(delta).module
    module.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    module.save_pretrained(folder)
    lm.tokenizer.inner.save_pretrained(folder)


Text = tuple[Example, str]  # and the document it is of


def _answered(lm: LM, questions: Sequence[Question], asking: Asking) -> Iterator[Text]:
    for question in questions:
        prompt, answer = asking.prompt(question), asking.learnt(question.answers[0])
        # A question too long for the window loses its beginning, never its answer.
        yield encode(lm.tokenizer, prompt, answer).ending(lm.window), question.document or question.id


def _read(lm: LM, documents: Sequence[Document]) -> Iterator[Text]:
    for document in documents:
        for piece in pieces(encode(lm.tokenizer, "", document.text), lm.window):
            yield piece, document.id
