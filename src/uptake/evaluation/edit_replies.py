"""What an evaluation of edits needs beside the methods: the base's replies, kept in a cache, and controls."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

from uptake.codec import Malformed, load, plain
from uptake.errors import BadInput
from uptake.evaluation.identity import model_identity, named
from uptake.kept import cache_of, keep, read_kept
from uptake.lm.base import LM
from uptake.lm.pretrained import Pretrained
from uptake.methods.contract.method import State
from uptake.methods.contract.state import save_state
from uptake.tasks.edit_asking import Reply, reply_to
from uptake.tasks.edit_marks import Asking
from uptake.tasks.edits import Edit


@dataclass(frozen=True)
class _Kept:
    replies: tuple[Reply, ...]


def base_replies(lm: LM, asked: Sequence[Asking], tokens: int, batch: int) -> list[Reply]:
    """Return the base's reply to each asking, from the cache if it was asked the same before.

    What an unedited model knows is asked once for a model and a set of prompts, whatever is compared with it.
    """
    if not isinstance(lm, Pretrained):
        return reply_to(lm, asked, tokens, batch)
    # How many stand side by side can change the last bit of a prediction.
    of = named([model_identity(lm), asked, tokens, batch, [field.name for field in fields(Reply)]])
    folder = cache_of("edits")
    found = _replies(read_kept(folder, of))
    if len(found) != len(asked):
        found = reply_to(lm, asked, tokens, batch)
        keep(folder, of, plain(_Kept(tuple(found))))
    return found


def _replies(data: dict[str, Any] | None) -> list[Reply]:
    """Return kept replies, none where these are not what was written."""
    try:
        return list(load(_Kept, data or {}).replies)
    except Malformed:
        return []


def other_edits(edits: Sequence[Edit], seed: int) -> tuple[Edit, ...]:
    """Return for each edit another one, drawn at random: a turn of a shuffled circle, so none is its own."""
    order = list(range(len(edits)))
    Random(f"{seed} other edits").shuffle(order)
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    return tuple(edits[following[place]] for place in range(len(edits)))


def state_bytes(state: State) -> int:
    """Return how many bytes a state is on the disk, 0 where it cannot be saved."""
    with tempfile.TemporaryDirectory(prefix="uptake-edits-") as folder:
        try:
            save_state(state, Path(folder) / "state")
        except BadInput:
            return 0
        return (Path(folder) / "state").stat().st_size
