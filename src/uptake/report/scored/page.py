"""What a page of scored text shows: the headline, charts, and texts token by token."""

import math
from collections.abc import Sequence
from typing import Any

from uptake.report.formatting import ONE_OFF, many, number, one_off, percent, points
from uptake.report.page.layout import Page, TokensSection
from uptake.report.results import BASE, CONTROL, Results
from uptake.report.scored import figures as counting
from uptake.report.scored.best import is_control, said_within
from uptake.report.scored.groups import group_section
from uptake.report.scored.plots import plots, strips
from uptake.report.scored.rows import Scored, Showcase

Figures = dict[str, Any]

STEPS = (0.1, 0.5, 1.0, 2.0, 4.0)  # bits gained or lost at which a token's colour deepens
PREFIX_SHOWN = 320  # characters: enough to see where the scored text begins


def page(results: Results, figures: Figures) -> Page:
    """Return the page of scored text."""
    methods = figures["methods"]
    best = _best(methods)
    texts = tuple(_showcase(one, best) for one in results.showcases)
    return Page(
        headline=headline(figures).replace("-", "\N{NON-BREAKING HYPHEN}"),
        caution=_caution(methods.get(best)),
        extent=_extent(results) + _cost(figures),
        legend=_legend(methods) + (f" {twins}." if (twins := counting.twins(figures)) else ""),
        measured=(
            "Bits per byte is over UTF-8 bytes. Gain is total bits saved divided by total bits of the base. "
            f"Intervals resample whole documents, 10,000 times with seed {figures['seed']}, and pair every "
            "method with the base on the same queries. A query that failed counts at the base’s score."
            + (f" {lost[0].upper()}{lost[1:]}." if (lost := counting.unscored(figures)) else "")
        ),
        plots=tuple(plots(methods)),
        sections=group_section(figures["groups"])
        + ((TokensSection("Gain of every token", _TOKENS, texts, STEPS),) if texts else ()),
        pictures=strips(methods),
        pictured="gain",
    )


_TOKENS = (
    "In grey: the context. Then: the text that was scored. Point at a token for its "
    "probability under each method."
)


def _legend(methods: Figures) -> str:
    prepared = any(one_off(method["preparation_cpu_seconds"]) for method in methods.values())
    against = (
        "Against random is in percentage points: the gain over as many random passages, or over the "
        "method’s own control where that was run. "
        if any(method["against_random"] for method in methods.values())
        else ""
    )
    return (
        "Gain is the share of the base model’s bits that were saved, with its 95 % interval (paired "
        f"bootstrap by document). {against}Helped is the share of queries that took fewer bits. Costs are "
        "a query’s mean, memory the process’s peak."
        + (f" O{ONE_OFF[1:].replace(' CPU', ': CPU', 1)}." if prepared else "")
    )


def headline(figures: Figures) -> str:
    """Return the result in one plain sentence: the best method's gain beside the control's."""
    methods = figures["methods"]
    best = _best(methods)
    if best is None:
        base = next((method["base_bits_per_byte"] for method in methods.values()), None)
        return f"The base model takes {number(base, 3)} bits per byte." if base else "No query was scored."
    method = methods[best]
    read = f"{method['k']} {'neighbour' if method['k'] == 1 else 'neighbours'}"
    if best == CONTROL:
        read = f"{method['k']} random passages"
    told = f"Reading {read} with {best}" if method["k"] else f"Reading with {best}"
    told += f" {_saved(method['gain'])}"
    if method["gain_ci"]:
        low, high = sorted(math.copysign(100, method["gain"]) * end for end in method["gain_ci"])
        told += f" (95 % interval {number(low, 1)} to {number(high, 1)})"
    if method["against_random"]:
        control = method["control"]
        told += "; the same number of random passages" if control == CONTROL else f"; {control}"
        told += f" {_saved(methods[control]['gain'], brief=True)}"
    return f"{told}.".replace(" %", "\N{NO-BREAK SPACE}%")


def _cost(figures: Figures) -> str:
    """Return the sentence on what the best method costs, and which is best within what counts."""
    methods = figures["methods"]
    best = _best(methods)
    if best is None or methods[best]["gain"] <= 0:
        return ""
    said = said_within(methods, best, figures["best"]).strip()
    return f". That gain was {said}" if said else ""


def _saved(gain: float, brief: bool = False) -> str:
    if gain < 0:
        return f"cost {percent(-gain)} more" + ("" if brief else " bits")
    return f"saved {percent(gain)}" + ("" if brief else " of the bits")


def _best(methods: Figures) -> str | None:
    """Return the method with the largest gain; the control only where it stands alone."""
    gains = {
        name: method["gain"]
        for name, method in methods.items()
        if name != BASE and method["gain"] is not None
    }
    rivals = {name: gain for name, gain in gains.items() if not is_control(name, methods)} or gains
    return max(rivals, key=lambda name: rivals[name], default=None)


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
    sizes = {(row.document, row.query): row.bytes for row in results.of(Scored)}
    documents = len({document for document, _ in sizes})
    counted = many(len(sizes), "query", "queries"), many(documents, "document", "documents")
    return f"{counted[0]} from {counted[1]}, {many(sum(sizes.values()), 'byte', 'bytes')} scored"


def _showcase(one: Showcase, best: str | None) -> dict[str, Any]:
    """Return a scored text with a colour class a token and method, and the words of its hover title."""
    base = one.log_probs.get(BASE, ())
    methods = {name: log_probs for name, log_probs in one.log_probs.items() if name != BASE and base}
    chosen = list(methods).index(best) if best in methods else len(methods) - 1
    tokens = []
    for place, text in enumerate(one.tokens):
        told, levels = [], []
        if place < len(base):
            told.append(f"{BASE}: {_probability(base[place])}")
        for name, log_probs in methods.items():
            if place < min(len(base), len(log_probs)):
                saved = (log_probs[place] - base[place]) / math.log(2)
                kept = f"{number(abs(saved), 2)} bits {'saved' if saved >= 0 else 'lost'}"
                told.append(f"{name}: {_probability(log_probs[place])}, {kept}")
                levels.append(level(saved))
        tokens.append({"text": text, "levels": levels, "title": "\n".join(told)})
    return {
        "name": one.document or one.query,
        "prefix": _ending(one.prefix),
        "tokens": tokens,
        "methods": [(name, _share(base, log_probs)) for name, log_probs in methods.items()],
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
