"""What recipes/retrofit.py makes of its rows: gains beside their controls, and the leakage curve."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from uptake.report.metrics import gain, gain_difference, gain_interval

ALPHAS = (0.125, 0.25, 0.5, 1.0)
CONTROLS = {
    "retro": "retro, random chunks",
    "ttt-nn": "ttt-nn, random passages",
    "ttt-nn and retro": "ttt-nn and retro, both random",
}
METHODS = (*CONTROLS, *CONTROLS.values())


def stretch(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the longest run of tokens that stands in both."""
    best, before = 0, [0] * (len(other) + 1)
    for token in one:
        now = [0] + [before[j] + 1 if token == each else 0 for j, each in enumerate(other)]
        best, before = max(best, *now), now
    return best


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the gain of each method over the base and over its control, with intervals by document."""
    names = [each["document"] for each in rows]
    bits = {label: [each["bits"][label] for each in rows] for label in ("base", *METHODS)}
    tokens, size = sum(each["tokens"] for each in rows), sum(each["bytes"] for each in rows)
    told: dict[str, Any] = {
        "queries": len(rows), "base_bits_per_byte": sum(bits["base"]) / size,
        "base_seconds_per_token": sum(each["seconds"]["base"] for each in rows) / tokens,
    }  # fmt: skip

    def beyond(label: str, other: str) -> list[Any]:
        found = gain_difference(bits[label], bits[other], bits["base"], names)
        return [found.value, list(found.interval or ())]

    for label in METHODS:
        told[label] = {
            "gain": gain(bits[label], bits["base"]),
            "interval": list(gain_interval(bits[label], bits["base"], names) or ()),
            "seconds_per_token": sum(each["seconds"][label] for each in rows) / tokens,
        }
        if label in CONTROLS:
            told[label]["beyond control"] = beyond(label, CONTROLS[label])
    for other in ("retro", "ttt-nn"):
        told["ttt-nn and retro"][f"beyond {other}"] = beyond("ttt-nn and retro", other)
    return told


def leakage(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return bits per byte of chunks by the longest stretch they share with what they were read beside."""
    chunks = [[each["document"], *chunk] for each in rows for chunk in each["chunks"]]

    def told(some: Sequence[Any]) -> dict[str, Any]:
        names, _, sizes, base, retro = zip(*some, strict=True)
        return {
            "chunks": len(some), "base": sum(base) / sum(sizes), "retro": sum(retro) / sum(sizes),
            "gain": gain(retro, base), "interval": list(gain_interval(retro, base, names) or ()),
        }  # fmt: skip

    bins = list(zip((0.0, *ALPHAS), ALPHAS, strict=False))
    parts = {f"({a}, {b}]": [c for c in chunks if a < c[1] <= b] for a, b in bins}
    parts |= {"0": [c for c in chunks if c[1] == 0]}
    upto = {f"at most {alpha}": [c for c in chunks if c[1] <= alpha] for alpha in ALPHAS}
    return {name: told(some) for name, some in (parts | upto).items() if len(some) > 1}


def show(told: Mapping[str, Any]) -> None:
    table = Table("domain", "bits per byte", *METHODS, title="gain in % of the base's bits", box=None)
    for name, found in told["domains"].items():
        cells = (
            f"{100 * found[m]['gain']:.2f} [{', '.join(f'{100 * e:.2f}' for e in found[m]['interval'])}]"
            for m in METHODS
        )
        table.add_row(name, f"{found['base_bits_per_byte']:.3f}", *cells)
    Console(width=220).print(table)
    for name, found in told["leakage"].items():
        print(f"  stretch {name}: {found}")
