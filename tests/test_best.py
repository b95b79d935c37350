"""The best method within a cost, and the control that each method is set against."""

from typing import Any

import pytest

from uptake.errors import BadInput
from uptake.report import summary
from uptake.report.results import Header, Results
from uptake.report.scored import SCORED
from uptake.report.scored.best import best_within, checked, control_of
from uptake.report.scored.rows import Scored


def row(method: str, bits: float, seconds: float, query: str = "a") -> Scored:
    return Scored(method, 0, query, query, 100, bits, 100.0, score_seconds=seconds)


def results(*rows: Scored, within: str = "") -> Results:
    return Results(SCORED, Header(0, {}, {}, {}, {}, {}, within=within), rows)


THREE = (row("base", 100, 1.0), row("random", 60, 0.1), row("cheap", 95, 2.0), row("dear", 80, 10.0))


def told(found: Results) -> tuple[dict[str, Any], str]:
    figures = summary.summary(found)
    return figures["best"], SCORED.conclusion(figures)


def test_the_best_within_a_cost_is_told_in_times_of_the_base_and_in_seconds() -> None:
    found, said = told(results(*THREE))
    assert (found["within"], found["method"], found["cpu_seconds"]) == ("6x", "cheap", 6.0)
    assert found["gain"] == pytest.approx(0.05) and found["times_base"] == pytest.approx(2.0)
    assert said.replace("\N{NO-BREAK SPACE}", " ") == (
        "1 query: dear saves 20.0 % of the base's bits at 10.0 times the base's CPU seconds; the best within "
        "6 times is cheap, 5.0 % at 2.0 times"
    )
    found, said = told(results(*THREE, within="20s"))
    assert found["method"] == "dear" and said.endswith(
        "at 10.00 CPU seconds a query, the best within 20 CPU seconds"
    )
    found, said = told(results(*THREE, within="1.5x"))
    assert found["method"] is None and said.endswith("within 1.5 times none saves anything")


def test_a_control_is_never_the_best_and_without_the_base_times_mean_nothing() -> None:
    assert told(results(row("base", 100, 1.0), row("random", 50, 1.0)))[0]["method"] is None
    own = results(row("base", 100, 1.0), row("knn-lm", 90, 1.0), row("knn-lm-random", 50, 1.0))
    assert told(own)[0]["method"] == "knn-lm"
    alone = results(row("dear", 80, 10.0))
    assert told(alone)[0]["cpu_seconds"] is None and "times" not in told(alone)[1]
    assert told(results(row("dear", 80, 10.0), within="20s"))[0]["method"] == "dear"


def test_a_cost_is_written_as_times_or_seconds() -> None:
    assert [checked(each) for each in ("3x", "2.5x", "20s", "0.5s")] == ["3x", "2.5x", "20s", "0.5s"]
    for wrong in ("3", "x", "-1x", "0x", "0.0s", "3 x", "1e3s", "9" * 30 + "s", "nanx"):
        with pytest.raises(BadInput, match="write 3x"):
            checked(wrong)


def test_a_method_is_set_against_its_own_control_where_that_is_there() -> None:
    names = ["base", "random", "ttt-nn", "knn-lm", "knn-lm-random", "retro"]
    assert [control_of(name, names) for name in names] == [
        None, None, "random", "knn-lm-random", None, "random",
    ]  # fmt: skip
    rows = [row("base", 100, 1), row("random", 98, 1), row("ttt-nn", 90, 1), row("knn-lm", 95, 1),
            row("knn-lm-random", 99, 1)]  # fmt: skip
    figures = summary.summary(results(*rows))
    methods = figures["methods"]
    assert methods["knn-lm"]["control"] == "knn-lm-random"
    assert methods["knn-lm"]["against_random"]["difference"] == pytest.approx(0.04)
    assert methods["ttt-nn"]["control"] == "random"
    assert methods["ttt-nn"]["against_random"]["difference"] == pytest.approx(0.08)
    assert methods["knn-lm-random"]["against_random"] is None and methods["random"]["control"] is None
    assert "vs random: knn-lm against knn-lm-random" in SCORED.caption(figures)
    assert best_within({})["method"] is None
