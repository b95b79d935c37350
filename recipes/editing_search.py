"""How `editing.py tune` looks for an editor's settings: one after another, each at the best of those before.

The score is the mean share of edits and tight paraphrases that are said, times that of what is to stay:
neighbours, and how far bits per byte of other text stay within 1 %. So an editor that does nothing has none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from uptake.lm.fact_values import Fact, ValueSearch
from uptake.lm.feed_forward import LinearPlace
from uptake.methods.contract import editor

ALLOWED = 0.01  # relative change of bits per byte
COLUMNS = ("success", "tight", "forced", "same", "leak", "kl", "bits_change")
DEPTHS = ("0.35", "0.2", "0.5")
# Of each editor what is tried, setting by setting in this order; the first value of each is where it begins.
SEARCH: dict[str, dict[str, tuple[str, ...]]] = {
    "memit": {"strength": ("1.0", "10.0"), "depth": DEPTHS},
    "alphaedit": {"strength": ("1.0", "0.1", "10.0"), "energy": ("0.01", "0.05")},
    "rome": {"depth": DEPTHS},
    "grace": {"depth": ("0.7", "0.5", "0.35"), "radius": ("4.0", "1.0", "16.0")},
    "ultraedit": {
        "learning_rate": ("1e-4", "3e-5", "2e-4", "4e-4"),
        "first": ("0.62", "0.35"),
        "turn": ("100", "10"),
    },
    "wise": {"learning_rate": ("1.0", "5.0"), "ratio": ("0.88", "0.7", "1.0"), "inside": ("1.0", "0.3")},
    "finetune": {"optimizer.learning_rate": ("5e-4", "2e-4", "1e-3")},
    "breadth-first": {"stay": ("0.5", "2.0"), "optimizer.learning_rate": ("1e-3", "5e-4")},
}


def score(told: Mapping[str, float | None]) -> float:
    """Return what settings are compared by, from 0 to 1, of an editor's figures on the valid part.

    A share that was not asked for, such as that of paraphrases where edits have none, does not count.
    """
    change = abs(told["bits_change"] or 0.0)
    kept = 1.0 if change <= ALLOWED else ALLOWED / change
    return _mean(told["success"], told["tight"]) * _mean(told["same"], kept)


def _mean(*shares: float | None) -> float:
    counted = [share for share in shares if share is not None]
    return sum(counted) / len(counted)


def best(axes: Mapping[str, tuple[str, ...]], try_out: Callable[[list[str]], float]) -> list[str]:
    """Return the settings that score highest along one axis after another; of equal ones the first."""
    chosen = {name: values[0] for name, values in axes.items()}
    for name, values in axes.items():
        scores = {value: try_out(_written({**chosen, name: value})) for value in values}
        chosen[name] = max(values, key=scores.__getitem__)
    return _written(chosen)


@contextmanager
def values_kept() -> Iterator[None]:
    """Look for the value of the same facts once, though editors with other settings want it: it is dear.

    Only where costs are not told: an editor that finds its values there would seem to cost nothing.
    """
    kept: dict[tuple[str, LinearPlace, tuple[Fact, ...], ValueSearch], list[Any]] = {}
    search = editor.search_all

    def found(lm: Any, place: LinearPlace, facts: Sequence[Fact], how: ValueSearch) -> list[Any]:
        key = (lm.fingerprint, place, tuple(facts), how)
        if key not in kept:
            kept[key] = search(lm, place, facts, how)
        return kept[key]

    with patch.object(editor, "search_all", found):
        yield


def _written(settings: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]
