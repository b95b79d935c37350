"""The summary against plain arithmetic, the JSON file there and back, the table's width."""

import dataclasses
import io
import json
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spoiling
import synthetic
from uptake.errors import BadInput, Damaged, Missing
from uptake.report import metrics
from uptake.report import summary as report
from uptake.report.results import Header, Results
from uptake.report.scored import SCORED, ScoredReport
from uptake.report.scored.rows import Scored

EMPTY = Header(0, {}, {}, {}, {}, {})


def row(method="ttt-nn", query="q", bits=80.0, **more):
    return Scored(method, more.pop("k", 5), query, more.pop("document", query), 50, bits, 100.0, **more)


def of(*rows, header=EMPTY):
    return report.summary(Results(SCORED, header, rows))["methods"]


def test_the_figures_are_the_rows_arithmetic():
    results = synthetic.results(failures=0)
    method = report.summary(results)["methods"]["ttt-nn"]
    rows = [row for row in results.rows if row.method == "ttt-nn" and row.k == 50]
    base, bits = sum(row.base_bits for row in rows), sum(row.bits for row in rows)
    assert method["k"] == 50
    assert method["gain"] == pytest.approx((base - bits) / base, rel=1e-12)
    assert method["bits_per_byte"] == pytest.approx(bits / sum(row.bytes for row in rows), rel=1e-12)
    assert method["base_bits_per_byte"] == pytest.approx(base / sum(row.bytes for row in rows), rel=1e-12)
    assert method["queries"] == len(rows) == 72
    assert method["gain_ci"][0] < method["gain"] < method["gain_ci"][1]
    assert method["cpu_seconds_per_query"] == pytest.approx(
        {"retrieve": 0.01, "train": 5.0, "score": 0.4, "total": 5.41}
    )
    assert method["tokens_trained_per_query"] == 10_500
    assert method["neighbours_per_query"] == 50
    assert method["peak_rss_bytes"] == results.header.peak_rss_bytes["ttt-nn"]


def test_every_k_is_there_and_the_largest_leads():
    methods = report.summary(synthetic.results(ks=(20, 1, 5)))["methods"]
    assert [at["k"] for at in methods["ttt-nn"]["by_k"]] == [1, 5, 20]
    last = methods["ttt-nn"]["by_k"][-1]
    assert all(methods["ttt-nn"][name] == value for name, value in last.items())
    assert [at["k"] for at in methods["base"]["by_k"]] == [0]


def test_the_header_comes_once():
    results = synthetic.results()
    figures = report.summary(results)
    for name in ("seed", "versions", "model", "store", "protocol"):
        assert figures[name] == getattr(results.header, name)
    assert figures["settings"]["ttt-nn"]["betas"] == [0.9, 0.999]
    assert figures["notes"] == list(results.header.notes)


def test_a_failed_query_counts_at_the_base():
    method = of(row(query="a"), row(query="b", bits=3.0, failed="out of memory"))["ttt-nn"]
    assert method["gain"] == pytest.approx(20 / 200)
    assert (method["queries"], method["failed"], method["share_helped"]) == (2, 1, 0.5)
    assert method["failures"] == [{"query": "b", "reason": "out of memory"}]


@pytest.mark.parametrize("bits", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_a_failure(bits):
    method = of(row(query="a"), row(query="b", bits=bits))["ttt-nn"]
    assert method["gain"] == pytest.approx(0.1)
    assert method["failures"] == [{"query": "b", "reason": f"the loss became {bits}"}]


def test_one_document_gives_no_interval():
    method = of(row(document="d", query="a"), row(document="d", query="b"))["ttt-nn"]
    assert method["gain"] == pytest.approx(0.2)
    assert method["gain_ci"] is None


def test_against_random_pairs_queries_whatever_their_order():
    mine = [row(query=name, bits=bits) for name, bits in (("a", 70), ("b", 90), ("c", 60))]
    other = [row("random", name, bits) for name, bits in (("c", 99), ("a", 98), ("b", 97))]
    found = of(*mine, *other)
    expected = metrics.gain_difference([70, 90, 60], [98, 97, 99], [100] * 3, ["a", "b", "c"])
    assert found["ttt-nn"]["against_random"]["difference"] == pytest.approx(expected.value)
    assert found["ttt-nn"]["against_random"]["ci"] == pytest.approx(expected.interval)
    assert found["random"]["against_random"] is None


def test_against_random_needs_random_at_the_same_k():
    assert of(row(k=5), row("random", k=2))["ttt-nn"]["against_random"] is None
    assert of(row())["ttt-nn"]["against_random"] is None


def test_a_query_asked_twice_is_paired_in_turn():
    mine = [row(bits=70.0), row(bits=90.0)]
    other = [row("random", bits=80.0), row("random", bits=80.0)]
    assert of(*mine, *other)["ttt-nn"]["against_random"]["difference"] == pytest.approx(0.0)


def test_overlap_bins_split_the_queries():
    rows = [
        row(query=str(n), neighbours=5, overlap=overlap) for n, overlap in enumerate((0.3, 0.0, 0.05, 0.09))
    ]
    bins = of(*rows)["ttt-nn"]["overlap_bins"]
    assert [(found["bin"], found["queries"]) for found in bins] == [
        ("0", 1),
        ("(0, 0.1]", 2),
        ("(0.25, 0.5]", 1),
    ]
    assert of(row())["ttt-nn"]["overlap_bins"] == []


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_file_holds_summary_and_rows_and_comes_back_exactly(tmp_path):
    results = synthetic.results()
    report.write_json(results, tmp_path / "out.json")
    data = strict((tmp_path / "out.json").read_text())
    assert {name: data[name] for name in report.summary(results)} == report.summary(results)
    assert len(data["rows"]) == len(results.rows)
    assert report.read_json(tmp_path / "out.json", SCORED) == results
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_odd_floats_come_back_too(tmp_path):
    odd = row(bits=math.inf)
    header = dataclasses.replace(EMPTY, settings={"ttt-nn": {"clip": math.inf, "where": tmp_path}})
    report.write_json(Results(SCORED, header, (odd,)), tmp_path / "out.json")
    strict((tmp_path / "out.json").read_text())
    back = report.read_json(tmp_path / "out.json", SCORED)
    assert back.rows == (odd,)
    assert back.header.settings == {"ttt-nn": {"clip": "inf", "where": str(tmp_path)}}
    nothing = dataclasses.replace(row(), bits=math.nan, base_bits=math.nan)
    report.write_json(Results(SCORED, EMPTY, (nothing,)), tmp_path / "out.json")
    assert strict((tmp_path / "out.json").read_text())["methods"]["ttt-nn"]["gain"] is None
    assert math.isnan(report.read_json(tmp_path / "out.json", SCORED).rows[0].bits)


FLOATS = st.floats(0, 1e12)
ROWS = st.builds(
    Scored,
    method=st.text(max_size=4),
    k=st.integers(0, 99),
    query=st.text(st.characters(), max_size=5),  # lone surrogates as well
    document=st.text(max_size=2),
    bytes=st.integers(0, 10**6),
    bits=st.floats(),
    base_bits=FLOATS,
    overlap=st.floats(0, 1),
    neighbours=st.integers(0, 5),
    train_seconds=FLOATS,
    failed=st.text(max_size=3),
)


@given(st.lists(ROWS, max_size=6))
@settings(max_examples=40)
def test_any_rows_make_strict_json_and_come_back(tmp_path_factory, few_resamples, rows):
    path = tmp_path_factory.getbasetemp() / "any.json"
    report.write_json(Results(SCORED, EMPTY, tuple(rows)), path)
    strict(path.read_text())
    assert repr(report.read_json(path, SCORED).rows) == repr(tuple(rows))  # repr: NaN is not equal to itself


@pytest.fixture(scope="module")
def few_resamples():
    """Fewer resamples, where the figures do not matter."""
    defaults = metrics.ratio_interval.__kwdefaults__
    metrics.ratio_interval.__kwdefaults__ = {**defaults, "resamples": 50}
    yield
    metrics.ratio_interval.__kwdefaults__ = defaults


def _written(tmp_path):
    path = tmp_path / "out.json"
    report.write_json(synthetic.results(ks=(5,), documents=2), path)
    return path


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda data: data.pop("format"), "format"),
        (lambda data: data.pop("seed"), "seed"),
        (lambda data: data["rows"][3].pop("bits"), r"rows\[3\]\.bits is missing"),
        (lambda data: data["rows"][0].update(bits="many"), r"rows\[0\]\.bits is 'many'"),
        (lambda data: data["rows"][0].update(k=True), r"rows\[0\]\.k is True"),
        (lambda data: data["rows"][0].update(bits=10**400), "too large"),
        (lambda data: data.update(rows={}), r"rows is \{\}"),
        (lambda data: data["showcases"][0].update(tokens=[1]), r"tokens\[0\] is 1"),
    ],
)
def test_a_malformed_file_is_told_in_one_line(tmp_path, spoil, told):
    path = _written(tmp_path)
    spoiling.change(path, spoil)
    with pytest.raises(BadInput, match=told) as caught:
        report.read_json(path, SCORED)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": 1}', b"[" * 100_000])
def test_what_is_no_report_is_refused(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(Damaged, match="no report"):
        report.read_json(path, SCORED)


@pytest.mark.parametrize("where", [lambda data: data, lambda data: data["rows"][0]], ids=["report", "row"])
def test_fields_that_nobody_knows_are_refused(tmp_path, where):
    path = _written(tmp_path)
    spoiling.change(path, lambda data: where(data).update(later=1))
    with pytest.raises(BadInput, match="has fields that nobody knows: 'later'"):
        report.read_json(path, SCORED)


def test_a_figure_that_its_kind_does_not_name_is_never_written(tmp_path):
    class Careless(ScoredReport):
        def figures(self, results):
            return {**super().figures(results), "later": 1}

    with pytest.raises(TypeError, match=r"Careless\.figure_names .*'later'"):
        report.write_json(Results(Careless(), EMPTY, (row(),)), tmp_path / "out.json")
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(Missing, match=r"nowhere\.json"):
        report.read_json(tmp_path / "nowhere.json", SCORED)


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    path = _written(tmp_path)
    old = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match="No space left"):
        report.write_json(synthetic.results(), path)
    assert path.read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(BadInput, match="cannot write"):
        report.write_json(synthetic.results(ks=(1,)), tmp_path / "no" / "out.json")
    with pytest.raises(BadInput, match="cannot write"):
        report.write_json(synthetic.results(ks=(1,)), tmp_path)


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    report.write_json(synthetic.results(ks=(1,)), tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert report.read_json(tmp_path / "real.json", SCORED).rows


def printed(results, width=100):
    from rich.console import Console

    console = Console(width=width, file=io.StringIO())
    console.print(report.table(results))
    return console.file.getvalue()


def test_the_table_fits_100_columns_with_nothing_cut():
    text = printed(synthetic.results())
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    line = next(line for line in text.splitlines() if line.strip().startswith("ttt-nn"))
    method = report.summary(synthetic.results())["methods"]["ttt-nn"]
    low, high = (100 * end for end in method["gain_ci"])
    assert f"{100 * method['gain']:.1f}\N{NO-BREAK SPACE}% [{low:.1f}, {high:.1f}]" in line
    assert "2 queries failed under ttt-nn" in text


def test_the_table_shows_losses_markup_and_the_base_without_its_own_rows():
    text = printed(Results(SCORED, EMPTY, (row("[bold]x[/]", "a", 130.0), row("[bold]x[/]", "b", 110.0))))
    assert "[bold]x[/]" in text
    assert "\N{MINUS SIGN}20.0" in text
    assert next(line for line in text.splitlines() if "base" in line).split()[:2] == ["base", "2.000"]
    assert "random" not in text


def test_a_table_of_nothing_prints():
    assert printed(Results(SCORED, EMPTY, ())) is not None
