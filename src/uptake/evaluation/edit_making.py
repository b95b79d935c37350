"""Make several edits at once, and where that fails find out which cannot be made: the others are."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from uptake.errors import Diverged, UptakeError
from uptake.evaluation.failures import finite
from uptake.lm.base import LM
from uptake.methods.contract.method import Context, Evidence, Method
from uptake.tasks.edits import Edit
from uptake.text.types import Found


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
    return (after, "", None) if finite(after) else (state, "the state became infinite or no number", None)
