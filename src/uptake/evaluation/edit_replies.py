"""What an evaluation of edits needs beside the methods: the base's replies, kept in a cache, and controls."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random

from uptake.cache import cache_root, private
from uptake.codec import Malformed, load, plain
from uptake.errors import BadInput, Damaged
from uptake.evaluation.identity import model_identity, named
from uptake.lm.base import LM
from uptake.lm.pretrained import Pretrained
from uptake.methods.contract.method import State
from uptake.methods.contract.state import save_state
from uptake.sealed import from_json, to_json, write_whole
from uptake.tasks.edit_asking import Reply, reply_to
from uptake.tasks.edit_marks import Asking
from uptake.tasks.edits import Edit


@dataclass(frozen=True)
class _Kept:
    of: str
    replies: tuple[Reply, ...]


def base_replies(lm: LM, asked: Sequence[Asking], tokens: int, batch: int) -> list[Reply]:
    """Return the base's reply to each asking, from the cache if it was asked the same before.

    What an unedited model knows is asked once for a model and a set of prompts, whatever is compared with it.
    """
    path = _path(lm, asked, tokens, batch)
    if path is not None and (found := _read(path)) is not None and len(found) == len(asked):
        return found
    replies = reply_to(lm, asked, tokens, batch)
    if path is not None and private(path.parent, make=True):
        write_whole(path, to_json(plain(_Kept(path.stem, tuple(replies)))))
    return replies


def _path(lm: LM, asked: Sequence[Asking], tokens: int, batch: int) -> Path | None:
    if not isinstance(lm, Pretrained):
        return None
    # How many stand side by side can change the last bit of a prediction.
    kept = [field.name for field in fields(Reply)]
    return cache_root() / "edits" / f"{named([model_identity(lm), asked, tokens, batch, kept])}.json"


def _read(path: Path) -> list[Reply] | None:
    """Return what was kept, None where nothing was, or what is there is damaged."""
    try:
        raw = path.read_bytes() if private(path.parent) else b""
        data = load(_Kept, from_json(raw, path, "cached reply", "it is asked again")) if raw else None
    except (OSError, Damaged, Malformed):
        return None
    return list(data.replies) if data is not None and data.of == path.stem else None


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
