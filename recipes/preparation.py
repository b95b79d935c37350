"""Teach a small model to be asked about what it has read in a made-up world.

A stream pays only where the model can answer such questions at all. `prepare` teaches a model the
forms of documents and questions and to tell people apart, never a fact that is asked for later: it learns
some people by heart, then it is trained through one step of fine-tuning on documents about new ones; at
the end that step weighs all tokens alike, so that it takes facts up as uniform weights would have it.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from online_common import ASKING, Names, Rows, StatedAnswers, World, nll, rows, save, world
from torch import Tensor, nn

from uptake.adaptation.delta import Delta
from uptake.adaptation.inner_loop import unroll
from uptake.adaptation.optimizers import SGD
from uptake.adaptation.trainable import All, Trainable
from uptake.adaptation.transforms import Losses
from uptake.lm.causal import Causal
from uptake.lm.loading import load
from uptake.text.types import Passage


@dataclass(frozen=True)
class Crowd:
    """So many steps of a preparation, on so many people each, and how their documents look."""

    steps: int
    people: int
    distractors: int = 0
    known: int = 0  # people that are learnt by heart: these few, again and again
    alone: bool = False  # the step that is gone through learns the answers' tokens alone


@dataclass(frozen=True)
class Course:
    """Crowds under one optimiser, whose rate climbs for 50 steps and falls in the last third."""

    crowds: tuple[Crowd, ...]
    rate: float  # AdamW's
    begin: float  # the size of the step that is gone through, before it is learnt too


@dataclass(frozen=True)
class Preparation:
    """How a model learns to be asked: people it gets to know by heart, then new ones through a step.

    Answers alone come before all tokens alike, which is what the baseline learns from: among all
    other tokens hardly anything is learnt of telling people apart.
    """

    courses: tuple[Course, ...] = (
        Course((Crowd(350, 128, known=512), Crowd(200, 32)), 4e-3, 9.0),
        Course((Crowd(300, 64, alone=True), Crowd(120, 128, 1, alone=True), Crowd(200, 64, 1)), 3e-3, 7.4),
    )
    trainable: Trainable = field(default_factory=All)  # what the step moves that is gone through


def worlds(names: Names, course: Course) -> Iterator[tuple[World, Crowd]]:
    """Yield what each step of a course is on.

    Who is reported 128 people can answer one time in ten by what is asked for alone. So every other
    step on new people asks all of them for the same thing: nothing but names tells them apart.
    """
    crowds = [crowd for crowd in course.crowds for _ in range(crowd.steps)]
    for step, crowd in enumerate(crowds):
        if crowd.known:
            pool = world(names, crowd.known, crowd.distractors, "train", seed=1_000_000)
            yield part_of(pool, Random(step).sample(range(crowd.known), crowd.people)), crowd
        elif step % 2:
            made = world(names, 14 * crowd.people, crowd.distractors, "train", seed=step)
            things = [question.meta["attribute"] for question in made.questions]
            every = sorted(set(things))
            thing = every[step % len(every)]
            alike = [place for place, other in enumerate(things) if other == thing]
            yield part_of(made, alike[: crowd.people]), crowd
        else:
            yield world(names, crowd.people, crowd.distractors, "train", seed=step), crowd


def part_of(made: World, places: Sequence[int]) -> World:
    """Return the documents of a world of one fact a document at these places, and their questions."""
    documents, questions = made.documents, made.questions
    some = tuple(documents[at] for at in places), tuple(questions[at] for at in places)
    return World(*some, made.unrelated)


def prepare(lm: Causal, names: Names, stage: Preparation) -> tuple[Any, float]:
    """Return the prepared module, and the rate for one document at a time that it came to."""
    generator = torch.Generator().manual_seed(0)
    written = lm.trainable_copy(stage.trainable, Delta(lm.fingerprint), generator)[1].parameters.keys()
    private, opened = lm.trainable_copy(All(), Delta(lm.fingerprint), generator)
    values = dict(opened.parameters)
    rate = 0.0
    for course in stage.courses:
        rate = take(course, private, values, {name: values[name] for name in written}, names)
    return opened.module, rate


def take(
    course: Course, lm: Any, values: Mapping[str, nn.Parameter], written: Mapping[str, Tensor], names: Names
) -> float:
    """Take a course, in place; return the rate for one document at a time that it came to."""
    exponent = torch.tensor(course.begin).log().requires_grad_()  # of the rate
    optimizer = torch.optim.AdamW([*values.values()], course.rate, weight_decay=0.01, betas=(0.9, 0.98))
    slow = torch.optim.Adam([exponent], 3e-2)
    total = sum(crowd.steps for crowd in course.crowds)
    heard: list[tuple[float, float]] = []
    started = time.process_time()
    for step, (made, crowd) in enumerate(worlds(names, course)):
        down = 0.05 + 0.95 * (1 - step / total) / 0.3
        optimizer.param_groups[0]["lr"] = course.rate * min(1.0, (step + 1) / 50) * min(1.0, down)
        told = rows(lm, [each.text for each in made.documents], [])
        asked = rows(
            lm,
            [ASKING.prompt(question) for question in made.questions],
            [ASKING.answer(question.answers[0]) for question in made.questions],
        )
        other = rows(lm, [each.text[:200] for each in made.unrelated[:4]], [])
        telling = nll(lm.with_parameters(values), told)
        adapted = dict(values)
        if not crowd.known:
            ids = [each.id for each in made.documents]
            moved, _ = unroll(
                lambda at, batch, ids=ids: Losses(
                    exponent.exp() * nlls(lm.with_parameters({**values, **at}), batch), ids
                ),
                written,
                [(told[0], answers_alone(lm, made, told[1])) if crowd.alone else told],
                SGD(1.0),
            )
            adapted |= moved
        asking = nll(lm.with_parameters(adapted), asked)
        loss = asking + 0.5 * telling + 0.1 * nll(lm.with_parameters(values), other)
        optimizer.zero_grad()
        slow.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*values.values()], 1.0)
        optimizer.step()
        if exponent.grad is not None:
            slow.step()
        heard.append((telling.item(), asking.item()))
        if (step + 1) % 50 == 0:
            means = [sum(part) / 50 for part in zip(*heard[-50:], strict=True)]
            print(
                f"step {step + 1}/{total}: documents {means[0]:.3f}, answers {means[1]:.3f}, rate "
                f"{exponent.exp().item() / crowd.people:.4f}, {time.process_time() - started:.0f} CPU s",
                flush=True,
            )
    return exponent.exp().item() / course.crowds[-1].people


def nlls(lm: Any, batch: Rows) -> Tensor:
    """Return what each row of a batch adds to `nll`, the mean over all tokens that are learnt."""
    ids, learnt = batch
    log_probs, _ = lm.step(ids[:, :-1])
    found = -log_probs.gather(-1, ids[:, 1:, None])[..., 0]
    return (found * learnt).sum(-1) / learnt.sum()


def answers_alone(lm: Causal, made: World, learnt: Tensor) -> Tensor:
    """Return which tokens of padded documents are those of an answer, where it is stated."""
    told = StatedAnswers({question.document: question.answers for question in made.questions})
    out = torch.zeros_like(learnt)
    for row, document in enumerate(made.documents):
        spans = lm.tokenizer.encode(document.text)[1]
        out[row, : len(spans)] = told.of(Passage(0, document.text, document=document.id), spans).bool()
    return out


def grown(small: nn.Module, large: nn.Module) -> nn.Module:
    """Return `large`, an untrained Llama, made to compute what `small` does; what is new can learn.

    Wider: the new part of the residual stream is never written to, and norms are scaled to the mean
    square over all of it. Deeper: new layers stand before the last and write nothing. Heads keep
    their size. After Net2Net (Chen et al. 2016) and stacking of layers that write nothing.
    """
    before, after = small.config, large.config
    if before.head_dim != after.head_dim:
        raise ValueError(f"heads of {before.head_dim} cannot be of {after.head_dim}: their positions turn")
    last, now = (f"layers.{config.num_hidden_layers - 1}." for config in (before, after))
    old = {name.replace(last, now): value for name, value in small.state_dict().items()}
    with torch.no_grad():
        for name, value in large.named_parameters():
            if "norm" in name:
                value.fill_((before.hidden_size / after.hidden_size) ** 0.5)
                if name in old:
                    value[: before.hidden_size] *= old[name]
                continue
            if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
                value.zero_()  # these write to the residual stream
            if name in old:
                value[tuple(slice(0, size) for size in old[name].shape)] = old[name]
    return large


def prepared(lm: Causal, names: Names, stage: Preparation, folder: Path) -> tuple[Causal, float]:
    """Return what `prepare` does, from its folder where an earlier run left it."""
    told = folder / "rate"  # written last
    if not told.exists():
        module, rate = prepare(lm, names, stage)
        save(module, lm.tokenizer, folder)
        told.write_text(repr(rate))
    return load(str(folder)), float(told.read_text())
