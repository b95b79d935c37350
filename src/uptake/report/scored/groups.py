"""The gain by a field of the documents, such as their language: each group, the mean, the spread, the worst.

A mean over all text hides whom a method fails. Here each group counts once, whatever its size, as languages
do in ML-SUPERB 2.0 (Shi et al. 2024, arXiv 2406.08641). A byte of Thai says less than one of German: groups
are compared by their gain.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from uptake.report import metrics
from uptake.report.formatting import ends, number, percent, points
from uptake.report.page.layout import WordsSection
from uptake.report.results import BASE, Results
from uptake.report.scored.rows import Scored

SMALL = 5  # documents below which a group is called small
UNNAMED = "(not named)"  # the group of documents that lack the field


def grouped(results: Results, rows: Mapping[str, Sequence[Scored]]) -> dict[str, Any] | None:
    """Return the figures by group from the rows of each method, as they count; None if not asked for.

    `names` are the groups with how many documents each has; `methods[name]` holds `groups`, those of each
    in the same order, and over groups the `mean` gain, its `spread` (standard deviation, each with its 95 %
    interval), `beyond_chance`, the spread without what few documents scatter by themselves, and `worst`.
    """
    header = results.header
    if not header.by or not rows:
        return None
    first = next(iter(rows.values()))
    held: dict[str, set[str]] = {}
    for row in first:
        held.setdefault(_group(row, header.by_document), set()).add(row.document)
    names = sorted(held)
    return {
        "by": header.by,
        "names": [
            {"name": name, "documents": len(held[name]), "small": len(held[name]) < SMALL} for name in names
        ],
        "methods": {
            method: _of_method(some, names, header.by_document, header.seed) for method, some in rows.items()
        },
    }


def _group(row: Scored, by_document: Mapping[str, str]) -> str:
    return by_document.get(row.document) or UNNAMED


def _of_method(
    rows: Sequence[Scored], names: Sequence[str], by_document: Mapping[str, str], seed: int
) -> dict[str, Any]:
    parts = {name: [row for row in rows if _group(row, by_document) == name] for name in names}
    each = [_of_group(name, parts[name], seed) for name in names]
    found = metrics.over_groups(
        [row.base_bits - row.bits for row in rows],
        [row.base_bits for row in rows],
        [row.document for row in rows],
        [_group(row, by_document) for row in rows],
        seed=seed,
    )
    known = [one for one in each if one["gain"] is not None]
    return {
        "groups": each,
        "mean": found and found.mean.value,
        "mean_ci": _listed(found and found.mean.interval),
        "spread": found and found.spread.value,
        "spread_ci": _listed(found and found.spread.interval),
        "beyond_chance": found and found.beyond_chance,
        "worst": min(known, key=lambda one: (one["gain"], one["name"]))["name"] if known else None,
        "hardest": max(known, key=lambda one: (one["bits_per_byte"], one["name"]))["name"] if known else None,
    }


def _of_group(name: str, rows: Sequence[Scored], seed: int) -> dict[str, Any]:
    bits, base_bits, sizes = ([getattr(row, key) for row in rows] for key in ("bits", "base_bits", "bytes"))
    interval = metrics.gain_interval(bits, base_bits, [row.document for row in rows], seed=seed)
    return {
        "name": name,
        "queries": len(rows),
        "bits_per_byte": metrics.finite(metrics.bits_per_byte(bits, sizes)),
        "gain": metrics.finite(metrics.gain(bits, base_bits)),
        "gain_ci": _listed(interval),
    }


def _listed(interval: metrics.Interval | None) -> list[float] | None:
    return interval and list(interval)


def group_lines(found: dict[str, Any] | None) -> list[dict[str, str]]:
    """Return a line a group with every method's gain, then the mean, the spread and the worst of them."""
    if not found:
        return []
    methods = {name: method for name, method in found["methods"].items() if name != BASE}
    reference = found["methods"].get(BASE)
    made = []
    for place, group in enumerate(found["names"]):
        line = {found["by"]: group["name"] + (" *" if group["small"] else "")}
        line["documents"] = str(group["documents"])
        if reference:
            line[f"{BASE}, bits per byte"] = number(reference["groups"][place]["bits_per_byte"], 3)
        for name, method in methods.items():
            one = method["groups"][place]
            line[name] = percent(one["gain"]) + ends(one["gain_ci"])
        made.append(line)
    for title, value in (("mean", _mean), ("spread", _spread), ("worst", _worst)):
        line = {found["by"]: title}
        if reference and title == "worst":
            line[f"{BASE}, bits per byte"] = reference["hardest"] or ""
        made.append(line | {name: value(method) for name, method in methods.items()})
    return made


def _mean(method: dict[str, Any]) -> str:
    return percent(method["mean"]) + ends(method["mean_ci"])


def _spread(method: dict[str, Any]) -> str:
    return points(method["spread"]).lstrip("+") + ends(method["spread_ci"])


def _worst(method: dict[str, Any]) -> str:
    return method["worst"] or ""


def group_note(found: dict[str, Any] | None) -> str:
    """Return what the lines mean, and which groups are small; nothing where there are no groups."""
    if not found:
        return ""
    told = (
        f"each {found['by']} counts once in the mean; spread: the standard deviation of the gain over them, "
        "in percentage points"
    )
    beyond = [
        f"{name} {points(method['beyond_chance']).lstrip('+')}"
        for name, method in found["methods"].items()
        if name != BASE and method["beyond_chance"] is not None
    ]
    if beyond:
        told += f"; beyond what so few documents scatter by themselves: {', '.join(beyond)}"
    small = [group["name"] for group in found["names"] if group["small"]]
    if small:
        told += f"; * fewer than {SMALL} documents: {', '.join(small)}"
    return told


def group_section(found: dict[str, Any] | None) -> tuple[WordsSection, ...]:
    """Return the section of the page that shows the lines, if there are any."""
    lines = group_lines(found)
    if not found or not lines:
        return ()
    headings = tuple(dict.fromkeys(heading for line in lines for heading in line))
    rows = tuple(tuple(line.get(heading, "") for heading in headings) for line in lines)
    note = group_note(found)
    return (WordsSection(f"By {found['by']}", headings, rows, f"{note[0].upper()}{note[1:]}."),)
