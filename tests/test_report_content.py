"""Reports whose content was changed under a sum that fits: refused in a line, or shown; never an accident.

What changed them first was the fuzzer of recipes/energy_fuzz.py, on the tree of JSON instead of bytes.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import synthetic
from uptake.errors import UptakeError
from uptake.report import summary
from uptake.report.page import write_page
from uptake.report.scored import SCORED
from uptake.sealed import to_json

HUGE = 10**400
VALUES = (
    None, True, 0, -1, 2**63, HUGE, -HUGE, 0.5, 1e308, -1e308, "", "a", "nan", "inf", "-", "\0", [], [1], {},
    {"a": 1}, "9" * 5000, "base", [[[]]],
)  # fmt: skip


def report() -> dict[str, Any]:
    made = synthetic.results(("base", "ttt-nn"), (2,), 1, 2, 0, 0, 0)
    whole = {
        **summary.summary(made),
        "peak_rss_bytes": dict(made.header.peak_rss_bytes),
        "peak_gpu_bytes": {},
        "by_document": {},
        "rows": [summary.tagged(row) for row in made.rows],
        "showcases": [],
        "samples": [],
    }
    plain = json.loads(json.dumps(whole))
    return {name: value for name, value in plain.items() if name not in SCORED.figure_names}


def shown(folder: Path, content: dict[str, Any]) -> bool:
    """Read, count, show and write a report again; return whether it was read at all."""
    path = folder / "r.json"
    path.write_bytes(to_json(content))
    try:
        results = summary.read_json(path, SCORED)
    except UptakeError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return False
    summary.table(results)
    write_page(results, folder / "r.html")
    summary.write_json(results, folder / "again.json")
    assert repr(summary.read_json(folder / "again.json", SCORED)) == repr(results)
    return True


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield from places(content[key], (*path, key))


def changed(content: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    made = copy.deepcopy(content)
    at: Any = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = copy.deepcopy(value)
    return made


CONTENT = report()
PLACES = [*places(CONTENT)]


@pytest.mark.parametrize(
    ("path", "value", "read"),
    [
        (("within",), "-", False),
        (("peak_rss_bytes", "ttt-nn"), HUGE, False),
        (("rows", 0, "withheld"), HUGE, False),
        (("rows", 0, "score_seconds"), "nan", True),
        (("rows", 0, "prepare_seconds"), "nan", True),
        (("rows", 0, "score_seconds"), 1e308, True),
        (("seed",), HUGE, False),
    ],
    ids=["within", "peak memory", "withheld", "seconds", "preparation", "many seconds", "seed"],
)
def test_odd_content_is_refused_or_shown(
    tmp_path: Path, path: tuple[Any, ...], value: Any, read: bool
) -> None:
    assert shown(tmp_path, CONTENT)
    assert shown(tmp_path, changed(CONTENT, path, value)) == read


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(PLACES) - 1), st.integers(0, len(VALUES) - 1)), max_size=2))
def test_no_change_of_content_is_an_accident(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    content = CONTENT
    for place, value in changes:
        if PLACES[place] in {*places(content)}:
            content = changed(content, PLACES[place], VALUES[value])
    if content:
        shown(tmp_path, content)
