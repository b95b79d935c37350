"""How `editing.py tune` looks for an editor's settings: one after another, each at the best of those before.

The score is the mean of four shares: edits that are said, tight paraphrases that are, neighbours that stay
as they were, and how far bits per byte of other text stay within 1 %.
"""

from collections.abc import Callable, Mapping

ALLOWED = 0.01  # relative change of bits per byte
COLUMNS = ("success", "tight", "forced", "same", "leak", "kl", "bits_change")
DEPTHS = ("0.2", "0.35", "0.5")
# Of each editor what is tried, setting by setting in this order.
SEARCH: dict[str, dict[str, tuple[str, ...]]] = {
    "memit": {"depth": DEPTHS, "strength": ("0.1", "1.0", "10.0")},
    "alphaedit": {
        "strength": ("0.001", "0.01", "0.1", "1.0"),
        "energy": ("0.01", "0.03", "0.1"),
        "depth": DEPTHS,
    },
    "rome": {"depth": DEPTHS},
    "grace": {"radius": ("1.0", "4.0", "16.0"), "depth": ("0.35", "0.5", "0.7", "0.85")},
    "ultraedit": {
        "learning_rate": ("3e-5", "1e-4", "2e-4", "4e-4"),
        "turn": ("10", "100"),
        "first": ("0.35", "0.62"),
    },
    "wise": {"learning_rate": ("1.0", "5.0"), "inside": ("0.3", "1.0"), "ratio": ("0.7", "0.88")},
    "finetune": {"optimizer.learning_rate": ("2e-4", "5e-4", "1e-3")},
    "breadth-first": {"stay": ("0.1", "0.5", "2.0")},
}


def score(told: Mapping[str, float | None]) -> float:
    """Return what settings are compared by, from 0 to 1, of an editor's figures on the valid part.

    A share that was not asked for, such as that of paraphrases where edits have none, does not count.
    """
    change = abs(told["bits_change"] or 0.0)
    kept = 1.0 if change <= ALLOWED else ALLOWED / change
    shares = [told[name] for name in ("success", "tight", "same")]
    counted = [kept, *(share for share in shares if share is not None)]
    return sum(counted) / len(counted)


def best(axes: Mapping[str, tuple[str, ...]], try_out: Callable[[list[str]], float]) -> list[str]:
    """Return the settings that score highest along one axis after another; of equal ones the first."""
    chosen: dict[str, str] = {}
    for name, values in axes.items():
        scores = {value: try_out(_written({**chosen, name: value})) for value in values}
        chosen[name] = max(values, key=scores.__getitem__)
    return _written(chosen)


def _written(settings: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in settings.items()]
