"""What the page shows, as words, figures and charts: results in, the template's variables out."""

import math
from collections.abc import Sequence
from typing import Any

from uptake.codec import plain
from uptake.report.page.plots import colours, plots, strips
from uptake.report.results import Results, Showcase
from uptake.report.summary import BASE, CONTROL, lines, many, number, percent, points, summary

Figures = dict[str, Any]

STEPS = (0.1, 0.5, 1.0, 2.0, 4.0)  # bits gained or lost at which a token's colour deepens
PREFIX_SHOWN = 320  # characters: enough to see where the scored text begins


def view(results: Results) -> dict[str, Any]:
    """Return the template's variables. Text is as it came: the template escapes it."""
    figures = summary(results)
    methods = figures["methods"]
    best = _best(methods)
    return {
        "model": str(results.header.model.get("name", "the model")),
        "headline": headline(figures).replace("-", "\N{NON-BREAKING HYPHEN}"),
        "caution": _caution(methods.get(best)),
        "extent": _extent(results),
        "lines": lines(figures),
        "strips": strips(methods),
        "colours": colours(methods),
        "plots": plots(methods),
        "samples": results.samples,
        "showcases": [_showcase(one, best) for one in results.showcases],
        "steps": STEPS,
        "facts": {
            "Protocol": figures["protocol"],
            "Model": figures["model"],
            "Store": figures["store"],
            "Versions": figures["versions"],
        },
        "seed": figures["seed"],
        "settings": {way: plain(values) for way, values in figures["settings"].items()},
        "notes": figures["notes"],
        "failures": {way: method["failures"] for way, method in methods.items() if method["failures"]},
        "figures": figures,
    }


def headline(figures: Figures) -> str:
    """Return the result in one plain sentence: the best way's gain beside the control's."""
    methods = figures["methods"]
    best = _best(methods)
    if best is None:
        base = next((method["base_bits_per_byte"] for method in methods.values()), None)
        return f"The base model takes {number(base, 3)} bits per byte." if base else "No query was scored."
    method = methods[best]
    read = f"{method['k']} {'neighbour' if method['k'] == 1 else 'neighbours'}"
    if best == CONTROL:
        read = f"{method['k']} random passages"
    told = f"Reading {read} with {best}" if method["k"] else f"Taking text up with {best}"
    told += f" {_saved(method['gain'])}"
    if method["gain_ci"]:
        low, high = sorted(math.copysign(100, method["gain"]) * end for end in method["gain_ci"])
        told += f" (95 % interval {number(low, 1)} to {number(high, 1)})"
    if method["against_random"]:
        told += f"; the same number of random passages {_saved(methods[CONTROL]['gain'], brief=True)}"
    return (told + ".").replace(" %", "\N{NO-BREAK SPACE}%")


def _saved(gain: float, brief: bool = False) -> str:
    if gain < 0:
        return f"cost {percent(-gain)} more" + ("" if brief else " bits")
    return f"saved {percent(gain)}" + ("" if brief else " of the bits")


def _best(methods: Figures) -> str | None:
    """Return the way with the largest gain; the control only where it stands alone."""
    gains = {
        way: method["gain"] for way, method in methods.items() if way != BASE and method["gain"] is not None
    }
    rivals = {way: gain for way, gain in gains.items() if way != CONTROL} or gains
    return max(rivals, key=lambda way: rivals[way], default=None)


def _caution(method: Figures | None) -> str:
    if method is None:
        return ""
    if method["gain_ci"] is None:
        return "All queries come from one document, so there is no interval: try it on more."
    low, high = method["gain_ci"]
    against = method["against_random"]
    if low <= 0 <= high:
        return "The interval includes zero: on these documents this could be chance."
    if against and against["ci"] and against["ci"][0] <= 0 <= against["ci"][1]:
        return "Over the random passages the difference could be chance: its interval includes zero."
    return ""


def _extent(results: Results) -> str:
    sizes = {(row.document, row.query): row.bytes for row in results.rows}
    documents = len({document for document, _ in sizes})
    counted = many(len(sizes), "query", "queries"), many(documents, "document", "documents")
    return f"{counted[0]} from {counted[1]}, {many(sum(sizes.values()), 'byte', 'bytes')} scored"


def _showcase(one: Showcase, best: str | None) -> dict[str, Any]:
    """Return a scored text with a colour class a token and way, and the words of its hover title."""
    base = one.log_probs.get(BASE, ())
    ways = {way: log_probs for way, log_probs in one.log_probs.items() if way != BASE and base}
    chosen = list(ways).index(best) if best in ways else len(ways) - 1
    tokens = []
    for place, text in enumerate(one.tokens):
        told, levels = [], []
        if place < len(base):
            told.append(f"{BASE}: {_probability(base[place])}")
        for way, log_probs in ways.items():
            if place < min(len(base), len(log_probs)):
                saved = (log_probs[place] - base[place]) / math.log(2)
                kept = f"{number(abs(saved), 2)} bits {'saved' if saved >= 0 else 'lost'}"
                told.append(f"{way}: {_probability(log_probs[place])}, {kept}")
                levels.append(level(saved))
        tokens.append({"text": text, "levels": levels, "title": "\n".join(told)})
    return {
        "name": one.document or one.query,
        "prefix": _ending(one.prefix),
        "tokens": tokens,
        "ways": [(way, _share(base, log_probs)) for way, log_probs in ways.items()],
        "chosen": chosen,
        "neighbours": one.neighbours,
    }


def _ending(text: str) -> str:
    """Return the end of a long text, from the start of a line if there is one."""
    if len(text) <= PREFIX_SHOWN:
        return text
    end = text[-PREFIX_SHOWN:]
    return f"…\n{end.split(chr(10), 1)[1]}" if "\n" in end else f"…{end}"


def level(saved: float) -> str:
    """Return the colour class of a token that gained `saved` bits: g1 to g5, l1 to l5 for a loss, or `o`."""
    depth = sum(abs(saved) >= step for step in STEPS)
    return f"{'g' if saved > 0 else 'l'}{depth}" if depth else "o"


def _probability(log_prob: float) -> str:
    share = 100 * math.exp(min(log_prob, 0.0))
    shown = f"{share:.2f}" if share >= 0.1 else f"{share:.1g}"
    return f"{shown} % ({number(-log_prob / math.log(2), 2)} bits)"


def _share(base: Sequence[float], mine: Sequence[float]) -> str:
    total = sum(base)
    return points((total - sum(mine)) / total) + " %" if total else ""
