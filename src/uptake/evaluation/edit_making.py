"""Make several edits at once, and where that fails find out which cannot be made: the others are."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from uptake.errors import BadInput, Diverged, UptakeError
from uptake.evaluation.failures import finite
from uptake.lm.base import LM
from uptake.lm.examples import encode
from uptake.methods.contract.method import Context, Evidence, Method
from uptake.tasks.edits import Edit
from uptake.text.types import Found


def check_edits(edits: Sequence[Edit]) -> None:
    """Raise BadInput for an edit that cannot be made, or an id that is there twice."""
    seen: set[str] = set()
    for edit in edits:
        if fault := edit.fault():
            raise BadInput(f"edit {edit.id!r}: {fault}")
        if edit.id in seen:
            raise BadInput(f"edit id {edit.id!r} is there twice: give each an id of its own")
        seen.add(edit.id)


def check_lengths(edits: Sequence[Edit], lm: LM, tokens: int) -> None:
    """Raise BadInput for a target longer than an answer's `tokens`, or an edit longer than the window."""
    for edit in edits:
        count = len(lm.tokenizer.encode(edit.text)[0])
        if count > tokens:
            raise BadInput(
                f"the target of edit {edit.id!r} has {count} tokens and an answer at most {tokens}: "
                f"use --answer-tokens {count} or more, or leave it out"
            )
        whole = 1 + len(lm.tokenizer.encode(edit.prompt)[0]) + count
        if whole > lm.window:
            raise BadInput(
                f"edit {edit.id!r} has {whole:,} tokens and the model reads {lm.window:,}: shorten its prompt"
            )


def make_edits(
    method: Method[Any], state: Any, lm: LM, edits: Sequence[Edit], context: Context, first: bool = True
) -> tuple[Any, list[tuple[int, str]]]:
    """Return the state after these edits, and (place, reason) of each that cannot be made.

    All are made in one call of `adapt`. Where that fails, halves are tried, so that few that are bad cost few
    calls, and then all that can be made by themselves are made at once: the bad ones change nothing. Where
    none can be made and it is the `first` time, what the method says is wrong with the set-up is raised.
    """
    after, reason, error = _made(method, state, lm, edits, context)
    if not reason:
        return after, []
    bad = _bad(method, state, lm, list(range(len(edits))), edits, context, reason)
    good = [edit for place, edit in enumerate(edits) if place not in bad]
    if not good and first and isinstance(error, UptakeError) and not isinstance(error, Diverged):
        raise error
    if good:
        after, reason, _ = _made(method, state, lm, good, context)
        if reason:  # each can be made, but not all together
            return state, [(place, bad.get(place, reason)) for place in range(len(edits))]
    return after if good else state, sorted(bad.items())


def _bad(
    method: Method[Any],
    state: Any,
    lm: LM,
    places: Sequence[int],
    edits: Sequence[Edit],
    context: Context,
    reason: str,
) -> dict[int, str]:
    """Return the reason for each of these edits that cannot be made; together they cannot, for `reason`."""
    if len(places) == 1:
        return {places[0]: reason}
    bad: dict[int, str] = {}
    half = len(places) // 2
    for some in (places[:half], places[half:]):
        _, why, _ = _made(method, state, lm, [edits[place] for place in some], context)
        if why:
            bad |= _bad(method, state, lm, some, edits, context, why)
    return bad


def _made(
    method: Method[Any], state: Any, lm: LM, edits: Sequence[Edit], context: Context
) -> tuple[Any, str, Exception | None]:
    """Return the state after the edits, or the one before with the reason and the error."""
    passages = tuple(edit.passage() for edit in edits)
    evidence = Evidence(Found(passages, (0.0,) * len(passages)))
    own = replace(context, ledgers=[])
    try:
        (after,) = method.adapt([state], lm, [evidence], own)
    except Exception as error:  # whatever a network can raise is an edit that is not made
        return state, f"{type(error).__name__}: {error}".splitlines()[0][:300], error
    ledger, mine = context.ledger(0), own.ledger(0)
    ledger.tokens_trained += mine.tokens_trained  # trials cost as well
    ledger.steps += mine.steps
    if mine.failed:
        return state, mine.failed, None
    if not finite(after):
        return state, "the state became infinite or no number", None
    if any(True for _ in _tensors(after)) and not _speaks(method, after, lm, edits[-1]):
        return state, "the edited model gives no numbers: use a smaller learning rate", None
    return after, "", None


def _speaks(method: Method[Any], state: Any, lm: LM, edit: Edit) -> bool:
    """Whether the edited model has numbers to give after an edit's prompt: weights may be too large."""
    adapted = method.adapted([state], lm)
    one = adapted if adapted.rows is None else adapted.at([0])
    example = encode(lm.tokenizer, edit.prompt, edit.text).ending(one.max_input_tokens(0))
    with torch.no_grad():
        (log_probs,) = one.predictions([example])
    return not bool(log_probs.isnan().any())


def _tensors(state: Any) -> Iterator[Tensor]:
    """Yield every tensor of a state, its history left aside: one that holds none cannot have diverged."""
    if isinstance(state, Tensor):
        yield state
    elif dataclasses.is_dataclass(state):
        for part in dataclasses.fields(state):
            if part.name != "history":
                yield from _tensors(getattr(state, part.name))
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, tuple | list):
        for value in state:
            yield from _tensors(value)
