"""The one failure policy: what goes wrong with some of the work is recorded and never ends the rest.

A reading that diverges, or whatever a network can raise, is a failure of what was being read or
scored: it is named in the table, the file and the page, and its rows count at the base's score. What
is wrong with the set-up (bad settings, no store) is wrong for every unit and ends the run at once.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from uptake.errors import Diverged, UptakeError

ItemT = TypeVar("ItemT")
MadeT = TypeVar("MadeT")


def reason_of(error: Exception) -> str:
    """Return in one line why some work failed; raises the error again where the set-up is what is wrong."""
    if isinstance(error, UptakeError) and not isinstance(error, Diverged):
        raise error
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def attempt(
    items: Sequence[ItemT],
    do: Callable[[Sequence[ItemT]], list[MadeT]],
    failed: Callable[[ItemT, str], MadeT],
) -> list[MadeT]:
    """Return what `do` makes of the items together, one result an item.

    Where that fails each is done by itself, so that one failure stays one; `failed` gives its result.
    """
    try:
        return do(items)
    except Exception as error:
        reason = reason_of(error)
        if len(items) > 1:
            return [made for item in items for made in attempt([item], do, failed)]
        return [failed(items[0], reason)]


def finite(state: Any) -> bool:
    """Whether every number of a state is one; its history holds none."""
    if isinstance(state, Tensor):
        # The ends tell of all between, in a tenth of the time of looking at each.
        ends = state.aminmax() if state.is_floating_point() and state.numel() else ()
        return all(map(math.isfinite, ends))
    if dataclasses.is_dataclass(state):
        parts = (getattr(state, part.name) for part in dataclasses.fields(state) if part.name != "history")
        return all(map(finite, parts))
    if isinstance(state, Mapping):
        return all(map(finite, state.values()))
    return all(map(finite, state)) if isinstance(state, tuple | list) else True
