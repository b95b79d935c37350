"""The page: whole in itself, nothing in a text can act, figures as in the summary, pieces may be missing."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

import synthetic
from uptake.errors import BadInput
from uptake.report.page import chart, page, visible, write_chart, write_page
from uptake.report.results import Neighbour, Results, Sample
from uptake.report.scored import SCORED
from uptake.report.scored.page import headline, level
from uptake.report.scored.rows import Showcase
from uptake.report.summary import summary

VOID = {"meta", "br", "wbr", "input", "hr", "img", "link"}


class Tree(HTMLParser):
    """Collects what a browser would act on, and holds every tag to its end."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.scripts, self.text, self.open = [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)


def embedded(tree):
    return json.loads(tree.scripts[0])


@pytest.fixture(scope="module")
def html():
    return page(synthetic.results())


def test_the_file_is_whole_in_itself(html, tmp_path):
    write_page(synthetic.results(), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf8") == html
    tree = Tree(html)
    assert {"link", "img", "iframe", "object", "embed", "base"}.isdisjoint(tree.tags)
    assert {"src", "href", "srcset", "action"}.isdisjoint(name for _, name, _ in tree.attributes)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in html


def test_no_text_becomes_markup(html):
    tree = Tree(html)
    assert tree.tags.count("script") == 2
    assert "b" not in tree.tags[tree.tags.index("main") :]
    assert not any(name.startswith("on") for _, name, _ in tree.attributes)
    assert "alert('x')" in "".join(tree.text)
    assert "漢字" in html and "👩‍🚀" in html


HOSTILE = synthetic.HOSTILE + "\"><img src=x onerror=alert(1)>'{{ 7 * 7 }}<!--"


def test_hostile_text_everywhere_stays_text():
    neighbour = Neighbour(HOSTILE, 0, 0.5, 0.1, HOSTILE, HOSTILE)
    results = synthetic.results(ks=(5,), documents=3)
    rows = [
        dataclasses.replace(
            row, method=HOSTILE if row.method == "ttt-nn" else row.method, query=HOSTILE, failed=HOSTILE
        )
        for row in results.rows
    ]
    header = dataclasses.replace(
        results.header,
        model={"name": HOSTILE, HOSTILE: HOSTILE},
        settings={HOSTILE: {HOSTILE: [HOSTILE]}},
        notes=(HOSTILE,),
    )
    logs = {"base": (-1.0, -2.0), HOSTILE: (-0.5, -3.0)}
    showcase = Showcase(HOSTILE, HOSTILE, HOSTILE, (HOSTILE, HOSTILE), logs, (neighbour,))
    sample = Sample(HOSTILE, {"base": HOSTILE, HOSTILE: HOSTILE}, (neighbour,))
    tree = Tree(page(Results(SCORED, header, tuple(rows), (showcase,), (sample,))))
    assert tree.tags.count("script") == 2
    assert "img" not in tree.tags
    assert not any(name.startswith("on") for _, name, _ in tree.attributes)
    assert "49" not in re.findall(r"\{\{ 7 \* 7 \}\}|49", "".join(tree.text))
    assert embedded(tree)["methods"][HOSTILE]["failures"][0]["query"] == HOSTILE


def test_the_embedded_summary_is_the_summary(html):
    tree = Tree(html)
    assert embedded(tree) == summary(synthetic.results())


def test_the_page_allows_its_own_script_alone(html):
    digest = base64.b64encode(hashlib.sha256(Tree(html).scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html.replace("&#39;", "'").replace("&#43;", "+")


def test_every_chart_is_sound_xml_and_says_its_figures(html):
    charts = re.findall(r"<svg.*?</svg>", html)
    for one in charts:
        ElementTree.fromstring(one)
        assert "nan" not in one and "inf" not in one
    assert sum('role="img"' in one for one in charts) == 3
    at = summary(synthetic.results())["methods"]["ttt-nn"]["by_k"][2]
    assert f"ttt-nn, 5 neighbours: {at['bits_per_byte']:.3f} bits per byte" in html


def test_tokens_are_coloured_by_what_the_chosen_way_gained():
    logs = {"base": (-3.0, -1.0, -1.0), "random": (-3.0, -1.0, -1.0), "ttt-nn": (-0.1, -1.0, -2.0)}
    showcase = Showcase("q", "d", "before ", ("gained", "\nsame", " lost"), logs, ())
    html = page(dataclasses.replace(synthetic.results(ks=(5,)), showcases=(showcase,)))
    assert re.search(r'class="g5" data-levels="o g5" title="[^"]*4\.18 bits saved">gained<', html)
    assert re.search(r'class="o" data-levels="o o" data-start title="[^"]*">\nsame<', html)
    assert re.search(r'class="l3" data-levels="o l3" title="[^"]*1\.44 bits lost"> lost<', html)
    assert re.search(r'value="1" autocomplete="off" checked>ttt-nn', html)
    assert html.count("<input") == 2


def test_a_name_too_long_for_its_place_at_an_axis_is_written_in_lines():
    names = ["base", "in-context", "in-context+n-gram", "in-context+n-gram/ttt-nn"]
    points = [chart.Series("", 2, (chart.Mark(place, 1.0),)) for place in range(len(names))]
    axis = chart.linear("y", [0, 1])
    for width in (1120.0, 640.0):
        svg = chart.draw("points", points, chart.names("", names), axis, summary="", width=width)
        written = re.findall(r'<text class="tick middle"[^>]*>([^<]*)<', svg)
        assert "".join(written) == "".join(names)
    assert written[-2:] == ["n-gram/", "ttt-nn"]


def test_level_deepens_with_the_bits():
    assert [level(saved) for saved in (0.05, 0.1, 0.5, 1, 2, 4, -0.05, -4, float("nan"))] == [
        "o", "g1", "g2", "g3", "g4", "g5", "o", "l5", "o",
    ]  # fmt: skip


def told(results):
    return headline(summary(results)).replace("\N{NO-BREAK SPACE}", " ")


def test_the_headline_says_the_best_way_and_the_control():
    results = synthetic.results()
    methods = summary(results)["methods"]
    low, high = (f"{100 * end:.1f}" for end in methods["ttt-nn"]["gain_ci"])
    assert told(results) == (
        f"Reading 50 neighbours with ttt-nn saved {100 * methods['ttt-nn']['gain']:.1f} % of the bits "
        f"(95 % interval {low} to {high}); the same number of random passages saved "
        f"{100 * methods['random']['gain']:.1f} %."
    )
    assert re.search(
        r"bytes scored\. That gain was at [\d.]+ times the base.{1,6}s CPU seconds; "
        r"the best within 6 times is in-context",
        page(results),
    )


def test_the_headline_owns_up_to_a_loss():
    results = synthetic.results(methods=("base", "random", "ttt-nn"), ks=(1,), failures=0)
    rows = [
        dataclasses.replace(row, bits=row.base_bits * 1.02) if row.method != "base" else row
        for row in results.rows
    ]
    assert told(dataclasses.replace(results, rows=tuple(rows))) == (
        "Reading 1 neighbour with ttt-nn cost 2.0 % more bits (95 % interval 2.0 to 2.0); "
        "the same number of random passages cost 2.0 % more."
    )
    assert "could be chance" in page(dataclasses.replace(results, rows=tuple(rows)))


def test_a_gain_that_may_be_chance_is_called_so():
    results = synthetic.results(methods=("base", "ttt-nn"), ks=(5,))
    rows = [
        dataclasses.replace(row, bits=row.base_bits * (0.9 if number % 2 else 1.09))
        for number, row in enumerate(results.rows)
    ]
    assert "The interval includes zero" in page(dataclasses.replace(results, rows=tuple(rows)))


@pytest.mark.parametrize(
    "missing",
    [
        {"ks": (20,)},
        {"methods": ("ttt-nn",)},
        {"methods": ("base",)},
        {"methods": ("random",)},
        {"methods": ()},
        {"documents": 1, "queries": 1},
        {"showcases": 0, "samples": 0, "failures": 0},
        {"documents": 0},
        {"ks": (0,)},
    ],
    ids=str,
)
def test_pieces_may_be_missing(missing):
    results = synthetic.results(**missing)
    if "methods" in missing:
        logs = {"base": (-1.0, float("-inf")), "new": (float("-inf"),)}
        bare = Showcase("", "", "", ("", "a", "b"), logs, ())
        results = dataclasses.replace(results, showcases=(bare, dataclasses.replace(bare, log_probs={})))
    html = page(results)
    Tree(html)
    for one in re.findall(r"<svg.*?</svg>", html):
        ElementTree.fromstring(one)
        assert "nan" not in one


def test_what_would_hide_or_turn_text_is_shown():
    assert visible("a\x00b\x1b\x7f\tc\n") == "a␀b␛␡\tc\n"
    assert visible("\u202egnp") == "⟨U+202E⟩gnp"
    assert visible("\ud800x") == "\N{REPLACEMENT CHARACTER}x"
    assert visible("\ud83d\ude80 é 漢字") == "🚀 é 漢字"


def test_a_page_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(BadInput, match="cannot write"):
        write_page(synthetic.results(ks=(1,)), tmp_path / "no" / "page.html")


@pytest.mark.parametrize(
    "values", [[0.0], [0.0, 0.0], [1e-9, 2e-9], [-3.0, 4.5], [2.128, 1.779], [1e6, 3e6], [7.0], [0.1, 0.3]]
)
def test_a_linear_axis_holds_its_values_at_round_ticks(values):
    axis = chart.linear("", values)
    assert axis.low <= min(values) + 1e-12 and max(values) <= axis.high + 1e-12
    assert axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 8
    assert len({label for _, label in axis.ticks}) == len(axis.ticks)
    for value, label in axis.ticks:
        assert float(label.replace("\N{MINUS SIGN}", "-")) == pytest.approx(value, abs=1e-12)


def test_a_logarithmic_axis_places_equal_ratios_evenly():
    axis = chart.logarithmic("", [0.4, 40])
    assert [label for _, label in axis.ticks] == ["0.5", "1", "2", "5", "10", "20"]
    places = [axis.at(value, 0, 1) for value in (0.5, 5, 50)]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])


def test_a_chart_is_a_file_that_opens_by_itself(tmp_path):
    line = chart.Series("one <way>", 2, (chart.Mark(1, 2.0), chart.Mark(2, 3.0)))
    svg = chart.draw("lines", [line], chart.counts("k", [1, 2]), chart.linear("y", [2, 3]), summary="a & b")
    write_chart(svg, tmp_path / "chart.svg")
    root = ElementTree.parse(tmp_path / "chart.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("aria-label") == "a & b"
    style = "".join(root.itertext())
    used = set(re.findall(r"var\((--\w+)\)", style))
    assert used and all(f"{name}:" in style for name in used), "every colour is defined in the file"
