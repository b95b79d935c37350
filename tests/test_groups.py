"""Figures by a field of the documents: what they are, where they stand, and what is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import synthetic
import toys
import uptake
from uptake.errors import BadInput
from uptake.report import metrics, summary
from uptake.report.page import write_page
from uptake.report.results import Results
from uptake.report.scored import SCORED
from uptake.text.types import Document


def by_language(results: Results, sizes: tuple[int, ...] = (12, 9, 2)) -> Results:
    """Give the documents of synthetic results a language each; the last group lacks the field."""
    documents = list(dict.fromkeys(row.document for row in results.rows))
    named = [name for name, size in zip(("German", "Thai", ""), sizes, strict=True) for _ in range(size)]
    by = {name: language for name, language in zip(documents, named, strict=False) if language}
    return replace(results, header=replace(results.header, by="language", by_document=by))


def figures(results: Results) -> dict[str, Any]:
    return summary.summary(results)


def test_each_group_is_what_it_is_alone_and_counts_once() -> None:
    results = by_language(synthetic.results(ks=(5,), documents=23))
    found = figures(results)["groups"]
    assert [group["name"] for group in found["names"]] == ["(not named)", "German", "Thai"]
    assert [group["documents"] for group in found["names"]] == [2, 12, 9]
    assert [group["small"] for group in found["names"]] == [True, False, False]
    mine = found["methods"]["ttt-nn"]
    for group in mine["groups"]:
        inside = [
            row
            for row in results.rows
            if results.header.by_document.get(row.document, "(not named)") == group["name"]
        ]
        alone = figures(replace(results, rows=tuple(inside)))["methods"]["ttt-nn"]
        assert (group["gain"], group["gain_ci"]) == (alone["gain"], alone["gain_ci"])
        assert (group["bits_per_byte"], group["queries"]) == (alone["bits_per_byte"], alone["queries"])
    gains = {group["name"]: group["gain"] for group in mine["groups"]}
    assert mine["mean"] == pytest.approx(np.mean([*gains.values()]))
    assert mine["spread"] == pytest.approx(np.std([*gains.values()], ddof=1))
    assert mine["worst"] == min(gains, key=gains.__getitem__)
    assert mine["mean_ci"][0] < mine["mean"] < mine["mean_ci"][1]
    assert 0 <= mine["beyond_chance"] <= mine["spread"]
    assert mine["hardest"] == max(mine["groups"], key=lambda group: group["bits_per_byte"])["name"]


def test_the_draws_are_of_documents_within_groups() -> None:
    random = np.random.default_rng(0)
    below = random.uniform(1, 3, 24)
    above = below * random.normal(0.1, 0.05, 24)
    documents = [f"d{number // 2}" for number in range(24)]
    groups = ["a"] * 10 + ["b"] * 14
    found = metrics.over_groups(above, below, documents, groups, seed=3, resamples=200)
    assert found is not None
    means, spreads, each = [], [], []
    inside = {"a": [f"d{n}" for n in range(5)], "b": [f"d{n}" for n in range(5, 12)]}
    generators = [np.random.default_rng([3, place]) for place in range(2)]
    picked = [
        generator.integers(0, len(names), size=(200, len(names)))
        for generator, names in zip(generators, inside.values(), strict=True)
    ]
    for turn in range(200):
        ratios = []
        for rows, names in zip(picked, inside.values(), strict=True):
            drawn = [names[at] for at in rows[turn]]
            places = [at for name in drawn for at, own in enumerate(documents) if own == name]
            ratios.append(above[places].sum() / below[places].sum())
        means.append(np.mean(ratios))
        spreads.append(np.std(ratios, ddof=1))
        each.append(ratios)
    assert found.mean.interval == pytest.approx(np.quantile(means, metrics.TAILS))
    assert found.spread.interval == pytest.approx(np.quantile(spreads, metrics.TAILS))
    noise = np.var(each, axis=0).mean()
    assert found.beyond_chance == pytest.approx(math.sqrt(max(0, found.spread.value**2 - noise)))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 5), st.integers(2, 6), st.integers(0, 1000))
def test_equal_groups_have_no_spread_and_order_means_nothing(groups: int, size: int, seed: int) -> None:
    below = np.random.default_rng(seed).uniform(1, 2, groups * size)
    named = [f"g{number % groups}" for number in range(groups * size)]
    documents = [f"d{number}" for number in range(groups * size)]
    found = metrics.over_groups(below / 4, below, documents, named, resamples=50)
    assert found is not None
    assert found.mean.value == pytest.approx(0.25) and found.spread.value == pytest.approx(0, abs=1e-12)
    order = np.random.default_rng(seed).permutation(groups)
    names = {f"g{number}": f"h{order[number]}" for number in range(groups)}
    other = metrics.over_groups(below**2, below, documents, [names[name] for name in named], resamples=50)
    same = metrics.over_groups(below**2, below, documents, named, resamples=50)
    assert other and same and other.mean.value == pytest.approx(same.mean.value)
    assert other.spread.value == pytest.approx(same.spread.value)


def test_a_group_of_one_document_leaves_figures_and_takes_the_intervals() -> None:
    found = metrics.over_groups([1, 2, 3], [10, 10, 10], ["a", "b", "c"], ["x", "x", "y"], resamples=20)
    assert found is not None and found.mean.value == pytest.approx((0.15 + 0.3) / 2)
    assert found.mean.interval is found.spread.interval is found.beyond_chance is None
    assert metrics.over_groups([1, 2], [10, 10], ["a", "b"], ["x", "x"]) is None
    with pytest.raises(BadInput, match="2 documents, 1 groups for 2 queries"):
        metrics.over_groups([1, 2], [10, 10], ["a", "b"], ["x"])


def test_table_file_and_page_show_the_groups(tmp_path: Path) -> None:
    results = by_language(synthetic.results(ks=(1, 5), documents=23))
    found = figures(results)
    lines, by_k = SCORED.details(found)
    assert [line["language"] for line in lines] == [
        "(not named) *", "German", "Thai", "mean", "spread", "worst",
    ]  # fmt: skip
    assert lines[-1]["ttt-nn"] == found["groups"]["methods"]["ttt-nn"]["worst"] and "gain at k" in by_k[0]
    assert "base" not in lines[0] and float(lines[0]["base, bits per byte"]) > 1
    assert "* fewer than 5 documents: (not named)" in SCORED.caption(found)
    report = tmp_path / "r.json"
    summary.write_json(results, report)
    assert json.loads(report.read_text())["groups"] == json.loads(json.dumps(found["groups"]))
    assert summary.read_json(report, SCORED).header == results.header
    write_page(results, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "By language" in page and "fewer than 5 documents: (not named)" in page


def test_without_a_field_nothing_is_told() -> None:
    found = figures(synthetic.results(ks=(5,), documents=6))
    assert found["groups"] is None and SCORED.details(found) == []
    assert "spread" not in SCORED.caption(found)


def test_compare_groups_by_a_field_of_the_documents() -> None:
    text = "a cat sat on the mat. the dog ran in the fog. " * 3
    documents = [Document(f"{n}", text[n:], meta={"language": "xy"[n % 2]}) for n in range(4)]
    found = uptake.compare(toys.lm("gpt2"), documents, ["base"], by="language", showcases=0)
    assert found.header.by_document == {"0": "x", "1": "y", "2": "x", "3": "y"}
    groups = uptake.summary(found)["groups"]
    assert [group["documents"] for group in groups["names"]] == [2, 2]
    assert groups["methods"]["base"]["mean"] == 0
    with pytest.raises(BadInput, match=r"--by tongue: no document has such a field; they have language"):
        uptake.compare(toys.lm("gpt2"), documents, ["base"], by="tongue")
    with pytest.raises(BadInput, match=r"they have no fields"):
        uptake.compare(toys.lm("gpt2"), [Document("0", text)], ["base"], by="tongue")
