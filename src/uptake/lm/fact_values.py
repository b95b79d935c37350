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
    change is brought back to at most `limit` times |W k*|. `together` facts share each pass: quicker on a
    GPU, and then a fact's last bits go by those beside it.
    """

    steps: int = 20
    learning_rate: float = 0.5
    kl: float = 0.0625
    decay: float = 0.5
    limit: float = 4.0
    enough: float = 0.05
    contexts: int = 3
    context_tokens: int = 8
    together: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.contexts, self.context_tokens, self.together) < 1:
            raise BadInput(
                f"steps {self.steps}, contexts {self.contexts}, context_tokens {self.context_tokens}, "
                f"together {self.together}: use 1 or more of each"
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
    (found,) = search_all(lm, place, [fact], how)
    if not isinstance(found, Written):
        raise found
    return found


def search_all(
    lm: Causal, place: LinearPlace, facts: Sequence[Fact], how: ValueSearch
) -> list[Written | BadInput | Diverged]:
    """Return the key and the value of each fact, or what `search` would raise for it.

    `how.together` of them share each pass; with 1 no fact's last bits depend on another.
    """
    found: list[Written | BadInput | Diverged] = []
    for start in range(0, len(facts), how.together):
        found += _search_some(lm, place, facts[start : start + how.together], how)
    return found


def _search_some(
    lm: Causal, place: LinearPlace, facts: Sequence[Fact], how: ValueSearch
) -> list[Written | BadInput | Diverged]:
    ended: dict[int, Written | BadInput | Diverged] = {}
    sought: dict[int, _Sought] = {}
    texts = list[PlacedText]()
    for number, fact in enumerate(facts):
        try:
            target, own = _fitting(lm, fact, how)
        except BadInput as error:
            ended[number] = error
            continue
        sought[number] = _Sought(fact, target, len(texts), len(own), sum(len(text.rest) for text in own))
        texts += own
    if sought:
        ended |= _descended(ChangedPlace(lm, place, texts), sought, how)
    return [ended[number] for number in range(len(facts))]


@dataclass(frozen=True)
class _Sought:
    """A fact that is looked for: which of a pass's texts are its own, and how many tokens they have."""

    fact: Fact
    target: tuple[int, ...]
    first: int
    texts: int
    tokens: int


def _descended(
    run: ChangedPlace, sought: dict[int, _Sought], how: ValueSearch
) -> dict[int, Written | Diverged]:
    """Return where Adam ends for each of these facts, by its number; each has its own loss and end."""
    stated = how.contexts  # the texts after which the target is to come; one more is to stay as it was
    initial = {number: run.outputs[one.first : one.first + stated].mean(0) for number, one in sought.items()}
    sizes = {number: float(output.norm()) for number, output in initial.items()}
    changes = torch.zeros_like(torch.stack(list(initial.values()))).requires_grad_()
    counts = torch.tensor([one.texts for one in sought.values()], device=changes.device)
    adam = torch.optim.Adam([changes], lr=how.learning_rate)
    ended: dict[int, Written | Diverged] = {}
    for step in range(how.steps + 1):
        losses = dict[int, Tensor]()
        with torch.set_grad_enabled(step < how.steps):
            found = run.predictions(changes.repeat_interleave(counts, 0))
            for change, (number, one) in zip(changes, sought.items(), strict=True):
                if number not in ended:
                    losses[number] = _loss(run, one, found, change, sizes[number], how)
        for change, (number, one) in zip(changes, sought.items(), strict=True):
            if number in ended:
                continue
            loss = losses[number].item()
            if not math.isfinite(loss):
                ended[number] = Diverged(
                    f"the loss of {one.fact.target!r:.40} is not finite: use a smaller learning rate"
                )
            elif step == how.steps or loss < how.enough:
                key = run.keys[one.first : one.first + stated].mean(0)
                own = change.detach().clone()
                ended[number] = Written(key, initial[number], own, loss, step, step * one.tokens)
        left = [loss for number, loss in losses.items() if number not in ended]
        if not left:
            break
        adam.zero_grad()
        torch.stack(left).sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
        with torch.no_grad():
            for change, size in zip(changes, sizes.values(), strict=True):
                change.mul_((how.limit * size / change.norm().clamp(min=1e-12)).clamp(max=1))
    return ended


def _loss(
    run: ChangedPlace, one: _Sought, found: Sequence[Tensor], change: Tensor, size: float, how: ValueSearch
) -> Tensor:
    own, before = (each[one.first : one.first + one.texts] for each in (found, run.unchanged))
    chosen = torch.tensor(one.target, device=change.device)[:, None]
    nll = -torch.stack([each.gather(-1, chosen).mean() for each in own[: how.contexts]]).mean()
    loss: Tensor = nll + how.decay * change.norm() / size**2
    for was, now in zip(before[how.contexts :], own[how.contexts :], strict=True):
        loss = loss + how.kl * divergence(was, now).mean()
    return loss


def _fitting(lm: Causal, fact: Fact, how: ValueSearch) -> tuple[tuple[int, ...], list[PlacedText]]:
    """Return the tokens of a fact's target and its texts. Raises BadInput where they do not fit."""
    target = tuple(lm.tokenizer.encode(fact.target)[0])
    if not target:
        raise BadInput(f"target {fact.target!r:.60} has no tokens: write what the model is to say")
    texts = _texts(lm, fact, target, how)
    longest = max(len(text.before) + len(text.rest) for text in texts)
    if longest > lm.window:
        raise BadInput(
            f"a fact of {longest:,} tokens, where the model reads {lm.window:,}: shorten its prompt"
        )
    return target, texts


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
