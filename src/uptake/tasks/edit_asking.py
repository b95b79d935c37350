"""Ask a model what edits are to change and what they are not: by free generation, and with the answer given.

It knows nothing of how the model came to know.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from uptake.lm.base import LM, Scores
from uptake.lm.examples import Example, encode, of_target, rolling_windows
from uptake.lm.read_again import predictions_again
from uptake.lm.scoring import divergences
from uptake.tasks.asking import speak
from uptake.tasks.edit_marks import Asking, leaks, starts_with
from uptake.tasks.edits import after

_FORCED = ("edit", "rephrase")  # the kinds whose target is scored as well


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one asking; nats are a token's, and what was not to be measured is None."""

    said: str
    right: bool
    says_old: bool | None = None
    nats: float | None = None
    old_nats: float | None = None
    forced: bool | None = None
    said_nats: float = 0.0  # of what was said, its end included
    said_tokens: int = 0


def reply_to(
    lm: LM, asked: Sequence[Asking], tokens: int, batch: int = 64, rows: Sequence[int] | None = None
) -> list[Reply]:
    """Return the reply to each asking: at most `tokens` tokens up to the end of a line, greedily.

    Asking i goes by row `rows[i]` of the LM, or all by its one row. Raises Diverged for no numbers.
    """
    spoken = speak(lm, [one.prompt for one in asked], tokens, batch, rows)
    replies = [
        Reply(
            said.text,
            leaks(said.text, one.target) if one.leaks else starts_with(said.text, one.target, one.old),
            starts_with(said.text, one.old, one.target) if one.old else None,
            said_nats=said.nats,
            said_tokens=said.tokens,
        )
        for one, said in zip(asked, spoken, strict=True)
    ]
    scored = [
        (place, old, encode(lm.tokenizer, one.prompt, after(one.prompt, one.old if old else one.target)))
        for place, one in enumerate(asked)
        if one.kind in _FORCED
        for old in (False, True)
        if not old or one.old
    ]
    wanted = [(example, 0 if rows is None else rows[place]) for place, _, example in scored]
    for (place, old, _), (nats, likeliest) in zip(scored, _forced(lm, wanted, batch), strict=True):
        change = {"old_nats": nats} if old else {"nats": nats, "forced": likeliest}
        replies[place] = replace(replies[place], **change)  # type: ignore[arg-type]
    return replies


def _forced(lm: LM, wanted: Sequence[tuple[Example, int]], batch: int) -> list[tuple[float, bool]]:
    """Return for each example the nats a token of its target, and whether each token of it is likeliest."""
    found: list[tuple[float, bool]] = [(0.0, False)] * len(wanted)
    order = sorted(range(len(wanted)), key=lambda place: len(wanted[place][0].inputs))
    for start in range(0, len(order), batch):
        places = order[start : start + batch]
        rows = [wanted[place][1] for place in places]
        some = lm if lm.rows is None else lm.at(rows)
        examples = [wanted[place][0] for place in places]
        fitting = [each.ending(some.max_input_tokens(row)) for row, each in enumerate(examples)]
        with torch.no_grad():
            predicted = some.predictions(fitting)
        for place, example, log_probs in zip(places, fitting, predicted, strict=True):
            targets = torch.tensor(example.target, device=log_probs.device)
            nats = -float(of_target(log_probs, example).double().mean())
            found[place] = nats, bool((log_probs.argmax(-1) == targets).all())
    return found


@dataclass(frozen=True, slots=True)
class Drift:
    """One text under the base and under another model: bits of both, bytes, KL(base || it) of each token."""

    base_bits: float
    bits: float
    bytes: int
    kl: tuple[float, ...]  # nats


def drift(base: LM, adapted: LM, text: str) -> Drift:
    """Return how far a model has drifted from its base on a text, in the windows that fit both; float64."""
    example = encode(base.tokenizer, "", text)
    one, other = (lm if lm.rows is None else lm.at([0]) for lm in (base, adapted))
    logs: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []
    apart: list[torch.Tensor] = []
    for window in rolling_windows(example, min(one.max_input_tokens(0), other.max_input_tokens(0))):
        before = predictions_again(one, window)
        with torch.no_grad():
            (after_,) = other.predictions([window])
        for into, log_probs in zip(logs, (before, after_), strict=True):
            into.append(of_target(log_probs, window).double().cpu())
        apart.append(divergences(before, after_, torch.float64).cpu())
    scores = [
        Scores.of(base.tokenizer, text, example.target, example.spans, torch.cat(each)) for each in logs
    ]
    values = tuple(float(f"{value:.6g}") for value in torch.cat(apart).tolist())
    return Drift(scores[0].bits, scores[1].bits, scores[0].bytes, values)
