"""Which method saves most, and which within a cost: CPU seconds a query, or times the base's."""

import re
from collections.abc import Container
from typing import Any

from uptake.errors import BadInput
from uptake.report.formatting import number, percent
from uptake.report.metrics import finite
from uptake.report.results import BASE, CONTROL

USUAL = "6x"  # the cost where nobody names one: five passages in context take about four times the base
_RANDOM = "-random"


def control_of(name: str, methods: Container[str]) -> str | None:
    """Return the control that a method is set against: its own, if that is there, else `random`.

    A method's own control has its name and `-random`. None for the base and for controls themselves.
    """
    if name in (BASE, CONTROL) or is_control(name, methods):
        return None
    own = f"{name}{_RANDOM}"
    return own if own in methods else CONTROL


def is_control(name: str, methods: Container[str]) -> bool:
    """Whether a method is there to be measured against."""
    return name == CONTROL or (name.endswith(_RANDOM) and name.removesuffix(_RANDOM) in methods)


def rivals(methods: dict[str, Any]) -> dict[str, Any]:
    """Return the methods that may be best: neither the base nor a control, and measured."""
    return {
        name: method
        for name, method in methods.items()
        if name != BASE and not is_control(name, methods) and method["gain"] is not None
    }


def checked(within: str) -> str:
    """Return a cost as it was written, `3x` or `20s`. Raises BadInput where it is none."""
    if not re.fullmatch(r"(?=.*[1-9])\d{1,9}(\.\d{1,9})?[xs]", within):
        raise BadInput(
            f"--within {within!r}: write 3x for three times the base's CPU seconds, or 20s for 20 a query"
        )
    return within


def best_within(methods: dict[str, Any], within: str = "") -> dict[str, Any]:
    """Return the method that saves most within a cost, with its gain and cost; no name where none saves.

    `within` is the cost as written, the usual one if empty; `cpu_seconds` the most that it allows, None
    where it is in times the base's and the base was not run.
    """
    within = within or USUAL
    base = methods.get(BASE, {"cpu_seconds_per_query": {"total": None}})["cpu_seconds_per_query"]["total"]
    size = float(within[:-1])
    most = size if within.endswith("s") else (base and finite(size * base))
    found: dict[str, Any] = {"within": within, "cpu_seconds": most, "method": None}
    allowed = {
        name: method
        for name, method in rivals(methods).items()
        if most is not None and (cost := _seconds(method)) is not None and cost <= most and method["gain"] > 0
    }
    if not allowed:
        return found
    name = max(allowed, key=lambda each: allowed[each]["gain"])
    method = allowed[name]
    return {
        **found,
        "method": name,
        "k": method["k"],
        "gain": method["gain"],
        "gain_ci": method["gain_ci"],
        "cpu_seconds_per_query": (seconds := _seconds(method)),
        "times_base": finite(seconds / base) if base and seconds is not None else None,
    }


def said_within(methods: dict[str, Any], best: str, found: dict[str, Any]) -> str:
    """Return what follows the gain of the best method: its cost, and which is best within what counts."""
    base = methods.get(BASE, {"cpu_seconds_per_query": {"total": 0.0}})["cpu_seconds_per_query"]["total"]
    if found["cpu_seconds"] is None or not base:
        return ""
    by_base = found["within"].endswith("x")
    limit = f"{found['within'][:-1]} times" if by_base else f"{found['within'][:-1]} CPU seconds"

    def cost(name: str) -> str:
        seconds = _seconds(methods[name])
        if seconds is None:
            return "an unknown number of"
        return f"{number(seconds / base, 1)} times" if by_base else f"{number(seconds, 2)}"

    unit = "the base's CPU seconds" if by_base else "CPU seconds a query"
    told = f" at {cost(best)} {unit}"
    if found["method"] == best:
        return f"{told}, the best within {limit}"
    if found["method"] is None:
        return f"{told}; within {limit} none saves anything"
    name, gain = found["method"], percent(found["gain"])
    return f"{told}; the best within {limit} is {name}, {gain} at {cost(name)}"


def _seconds(method: dict[str, Any]) -> float | None:
    total: float | None = method["cpu_seconds_per_query"]["total"]
    return total
