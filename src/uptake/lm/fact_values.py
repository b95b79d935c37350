"""Finds what a layer should be given and should answer so that a model states a fact: ROME's key and value.

k* is what enters the down projection at the subject's last token, averaged over short texts before the
prompt. v* = W k* + change; Adam looks for the change under which the target follows the prompt (Meng et al.
2022, arXiv 2202.05262). Key, value and what is lacking all stand on the one averaged key: the published code
mixes the key of one text with the averaged one, which lets its denominators vanish (arXiv 2403.07175).
Everything is solved on the base, each fact by itself, so no fact's result depends on another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uptake.errors import BadInput, Diverged
from uptake.lm.causal import Causal
from uptake.lm.changed_place import ChangedPlace, PlacedText
from uptake.lm.feed_forward import LinearPlace
from uptake.lm.own_text import openings
from uptake.lm.scoring import divergence
from uptake.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Fact:
    """After `prompt` comes `target`; the fact is about the subject, which ends before character `end`.

    `essence` is a text that ends with the subject, whose continuation is to stay as it was; "" for none.
    """

    prompt: str
    target: str
    end: int
    essence: str = ""


@dataclass(frozen=True)
class ValueSearch:
    """How v* is looked for.

    The loss is the mean of -log p(target) over `contexts` texts before the prompt, the first of them none,
    plus `kl` times KL(base, changed) after "{subject} is a", plus `decay` times |change| / |W k*|².
    Adam takes at most `steps` steps at `learning_rate` and stops below a loss of `enough`; after each the
    change is brought back to at most `limit` times |W k*|.
    """

    steps: int = 20
    learning_rate: float = 0.5
    kl: float = 0.0625
    decay: float = 0.5
    limit: float = 4.0
    enough: float = 0.05
    contexts: int = 3
    context_tokens: int = 8

    def __post_init__(self) -> None:
        if min(self.steps, self.contexts, self.context_tokens) < 1:
            raise BadInput(
                f"steps {self.steps}, contexts {self.contexts}, context_tokens {self.context_tokens}: use 1 "
                "or more of each"
            )
        for name in ("learning_rate", "limit"):
            if not 0 < getattr(self, name) < math.inf:
                raise BadInput(f"{name} {getattr(self, name)}: use a positive number")
        for name in ("kl", "decay", "enough"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadInput(f"{name} {getattr(self, name)}: use 0 for none, or a small positive number")


@dataclass(frozen=True, eq=False)
class Written:
    """What a layer is to answer: at `key` [in] its `output` [out] = W k* and the `change` v* - W k*."""

    key: Tensor
    output: Tensor
    change: Tensor
    loss: float
    steps: int
    tokens: int  # that the search was trained on, over all steps


def search(lm: Causal, place: LinearPlace, fact: Fact, how: ValueSearch) -> Written:
    """Return the key and the value of a fact at one layer.

    Raises BadInput where the fact does not fit the window, Diverged where the loss is no number.
    """
    target = tuple(lm.tokenizer.encode(fact.target)[0])
    if not target:
        raise BadInput(f"target {fact.target!r:.60} has no tokens: write what the model is to say")
    texts = _texts(lm, fact, target, how)
    longest = max(len(text.before) + len(text.rest) for text in texts)
    if longest > lm.window:
        raise BadInput(
            f"a fact of {longest:,} tokens, where the model reads {lm.window:,}: shorten its prompt"
        )
    run = ChangedPlace(lm, place, texts)
    stated = how.contexts  # the texts after which the target is to come; one more is to stay as it was
    key, initial = run.keys[:stated].mean(0), run.outputs[:stated].mean(0)
    size = float(initial.norm())
    change = torch.zeros_like(initial, requires_grad=True)
    adam = torch.optim.Adam([change], lr=how.learning_rate)
    chosen = torch.tensor(target, device=lm.device)[:, None]
    loss, taken = torch.zeros(()), 0
    for step in range(how.steps + 1):
        with torch.set_grad_enabled(step < how.steps):
            found = run.predictions(change)
            nll = -torch.stack([each.gather(-1, chosen).mean() for each in found[:stated]]).mean()
            loss = nll + how.decay * change.norm() / size**2
            for before, after in zip(run.unchanged[stated:], found[stated:], strict=True):
                loss = loss + how.kl * divergence(before, after).mean()
        if not torch.isfinite(loss):
            raise Diverged(f"the loss of {fact.target!r:.40} is not finite: use a smaller learning rate")
        if step == how.steps or loss.item() < how.enough:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        taken += 1
        with torch.no_grad():
            change.mul_((how.limit * size / change.norm().clamp(min=1e-12)).clamp(max=1))
    tokens = taken * sum(len(text.rest) for text in texts)
    return Written(key, initial, change.detach(), loss.item(), taken, tokens)


def place_in(tokenizer: Tokenizer, text: str, end: int) -> int:
    """Return which token of a text holds the last character before `end`; -1 where none does."""
    _, spans = tokenizer.encode(text)
    holding = [number for number, (start, stop) in enumerate(spans) if start < end <= stop]
    return holding[-1] if holding else -1


def _texts(lm: Causal, fact: Fact, target: Sequence[int], how: ValueSearch) -> list[PlacedText]:
    contexts = lm.derived(
        ("contexts", how.contexts, how.context_tokens), lambda: openings(lm, how.contexts, how.context_tokens)
    )
    texts = []
    for context in contexts:
        before, rest = _parted(lm.tokenizer, context + fact.prompt, len(context) + fact.end)
        texts.append(PlacedText(before, (*rest, *target[:-1]), len(target)))
    if fact.essence and how.kl:
        before, rest = _parted(lm.tokenizer, f"{fact.essence} is a", len(fact.essence))
        texts.append(PlacedText(before, rest))
    return texts


def _parted(tokenizer: Tokenizer, text: str, end: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens before that of the subject's end, the opening one first, and those from it on."""
    ids, place = tokenizer.opened(text), place_in(tokenizer, text, end) + 1
    if place == 0:
        raise BadInput("an edit without a prompt changes every text: write what stands before its target")
    return tuple(ids[:place]), tuple(ids[place:])
