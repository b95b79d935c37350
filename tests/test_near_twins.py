"""Near twins that the leak filter lets pass: noted in rows, told in the table, the file and on the page."""

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toys
import uptake
from shelf import Shelf
from uptake import api
from uptake.evaluation.noting import NotingSource
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.report import metrics
from uptake.report.results import Header, Results
from uptake.report.scored import SCORED
from uptake.report.scored.rows import Scored
from uptake.report.summary import read_json, summary, table, write_json
from uptake.store import Datastore
from uptake.text.overlap import NEAR_TWIN, LeakFilter, Overlap
from uptake.text.types import Chunking, Document, Found, Passage

EVERY = 17  # words from one edit to the next: most 13-grams change, and less than half of the runs of letters
SMALL = PerQuery(300, 60)
EMPTY = Header(0, {}, {}, {}, {}, {})


def code(seed: int, words: int = 130) -> list[str]:
    drawn = random.Random(seed)
    return ["".join(drawn.choices("abcdefghijklmnop", k=drawn.randint(5, 8))) for _ in range(words)]


def renamed_async(words: Sequence[str]) -> str:
    return " ".join(f"await {word}" if place % EVERY == 7 else word for place, word in enumerate(words))


DOCUMENTS = [Document(f"d{n}", " ".join(code(n))) for n in range(3)]
TWIN = Document("async/d0", renamed_async(code(0)))


def stored(path: Path, *documents: Document, **made: Any) -> Datastore:
    store = Datastore.create(path, retriever="lexical", chunking=Chunking(400), **made)
    # Each shares words with a document and none of its text, so that every query has neighbours.
    others = [
        Document(f"o{n}", " ".join(random.Random(n).sample(code(n), 60) + code(90 + n))) for n in range(3)
    ]
    store.add([*documents, *others])
    return store


@pytest.fixture(scope="module", name="store")
def store_fixture(tmp_path_factory: pytest.TempPathFactory) -> Datastore:
    return stored(tmp_path_factory.mktemp("twins") / "s", TWIN)


def compared(store: Datastore, names: Any = ("base", "random", "in-context"), **more: Any) -> Results:
    given = {"k": 2, "protocol": SMALL} | more
    return api.compare(toys.lm(window=128), DOCUMENTS, names, store=store, **given)


def test_the_filter_lets_the_twin_pass_and_its_letters_are_known(store: Datastore) -> None:
    text = DOCUMENTS[0].text
    found = store.source(text[:300], document_id="d0", whole_text=text).search(3)
    passages = [passage for passage in found.passages if passage.document == TWIN.id]
    assert passages, "no passage of the twin is withheld: the case that is tested"
    overlap = Overlap(text)
    assert list(found.letters) == [overlap.letters(passage.text) for passage in found.passages]
    for passage, overlapping, letters in zip(found.passages, found.overlaps, found.letters, strict=True):
        assert overlapping < 0.5
        assert (letters >= NEAR_TWIN) == (passage.document == TWIN.id)
    drawn = store.source("a", document_id="d0", whole_text=text).sample(9, np.random.default_rng(0))
    assert list(drawn.letters) == [overlap.letters(passage.text) for passage in drawn.passages]


def test_without_the_filter_letters_are_measured_too(store: Datastore) -> None:
    text = DOCUMENTS[0].text
    found = store.source(text, document_id="async/d0", whole_text=TWIN.text, leak=LeakFilter.off()).search(2)
    assert found.passages[0].document == TWIN.id and found.letters[0] == 1.0


def test_letters_go_with_their_passages() -> None:
    some = tuple(Passage(number, str(number)) for number in range(3))
    one = Found(some, (3.0, 2.0, 1.0), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert one.part(1, 3).letters == (0.5, 0.6)
    assert one.behind([Passage(9, "9")]).letters == (0.0, 0.4, 0.5, 0.6)
    both = Found.of_each([one.part(0, 2), one.part(1, 3), Found()])
    assert both.passages == some and both.letters == (0.4, 0.5, 0.6)
    assert both.part(0, 1).letters == (0.4, 0.5)
    assert both.behind([Passage(9, "9")]).parts[1].letters == (0.0, 0.5, 0.6)


def test_rows_file_table_and_page_tell_of_the_query(store: Datastore, tmp_path: Path) -> None:
    results = compared(store)
    rows = {(row.method, row.document): row for row in results.of(Scored)}
    assert rows["in-context", "d0"].near_twin and rows["in-context", "d0"].overlap < 0.5
    assert not rows["in-context", "d1"].near_twin and not rows["base", "d0"].near_twin
    figures = summary(results)
    assert figures["near_twins"] == {"letters": 0.5, "queries": 1, "of": 3, "documents": 1}
    for name, method in figures["methods"].items():
        mine = [row for row in results.of(Scored) if row.method == name]
        for part, some in (("with", mine[:1]), ("without", mine[1:])):
            bits, base = [row.bits for row in some], [row.base_bits for row in some]
            told = method["near_twins"][part]
            assert told["queries"] == len(some)
            assert told["gain"] == pytest.approx(metrics.gain(bits, base))
            assert told["bits_per_byte"] == pytest.approx(sum(bits) / sum(row.bytes for row in some))
            interval = metrics.gain_interval(bits, base, [row.document for row in some])
            assert told["gain_ci"] == (interval and pytest.approx(interval))
            assert (told["against_random"] is None) == (name in ("base", "random"))
    line = "1 of 3 queries read from a near twin of its document; gain without it: random "
    assert line in str(table(results).caption)
    assert ", in-context " in str(table(results).caption).split(line)[1]
    uptake.write_page(results, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    legend = page.split('<p class="soft">')[1].split("</p>")[0]
    assert line in legend and ", of letters 0." in page
    write_json(results, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["near_twins"]["queries"] == 1
    assert read_json(tmp_path / "r.json", SCORED).rows == results.rows


def test_nothing_is_said_where_there_is_none(tmp_path: Path) -> None:
    results = compared(stored(tmp_path / "s"))
    figures = summary(results)
    assert figures["near_twins"]["queries"] == 0
    assert all(method["near_twins"] is None for method in figures["methods"].values())
    assert "near twin" not in str(table(results).caption)
    uptake.write_page(results, tmp_path / "r.html")
    assert "near twin" not in (tmp_path / "r.html").read_text().replace("near_twins", "")
    assert all(row.letters < NEAR_TWIN for row in results.of(Scored))


def scored(method: str, query: str, bits: float, letters: float = 0.0, k: int = 2) -> Scored:
    return Scored(method, k, query, query, 50, bits, 100.0, neighbours=k, letters=letters)


def test_a_query_is_left_out_under_every_method_whichever_read_the_twin_at_whatever_k() -> None:
    rows = [
        scored("random", "a", 99.0, 0.5, k=1), scored("random", "a", 98.0), scored("random", "b", 101.0),
        scored("ttt-nn", "a", 50.0), scored("ttt-nn", "b", 90.0, 0.49),
    ]  # fmt: skip
    figures = summary(Results(SCORED, EMPTY, tuple(rows)))
    assert (figures["near_twins"]["queries"], figures["near_twins"]["of"]) == (1, 2)
    split = figures["methods"]["ttt-nn"]["near_twins"]
    assert split["with"]["gain"] == pytest.approx(0.5) and split["without"]["gain"] == pytest.approx(0.1)
    assert split["without"]["against_random"]["difference"] == pytest.approx(0.11)
    every = [dataclasses.replace(row, letters=1.0) for row in rows]
    results = Results(SCORED, EMPTY, tuple(every))
    assert "2 of 2 queries read from a near twin of their documents: no query is left" in str(
        table(results).caption
    )
    assert summary(results)["methods"]["ttt-nn"]["near_twins"]["without"]["gain"] is None


def test_what_a_method_finds_by_itself_is_noted(store: Datastore) -> None:
    text = DOCUMENTS[0].text
    source = NotingSource(store.source("zzz", document_id="d0", whole_text=text))
    source.search(2)
    assert source.letters < NEAR_TWIN
    again = source.again(text[:300])
    found = again.search(2)
    assert source.letters == max(found.letters) >= NEAR_TWIN and not source.searched


def test_in_context_that_searches_again_is_known_to_read_the_twin(tmp_path: Path) -> None:
    # What the prefix finds is no twin; what the scored text finds is.
    shared, own = code(7, 60), code(8, 60)
    document = Document("d", " ".join([*own, *shared]))
    store = stored(
        tmp_path / "s", Document("twin", renamed_async(shared)), Document("x", " ".join(own[::-1]))
    )
    protocol = PerQuery(len(" ".join(own)), 200)
    letters = {}
    for refresh in ("none", "40"):
        specs = api.method_specs(["in-context"], [f"refresh={refresh}"])
        lm = toys.lm(window=900)
        results = api.compare(lm, [document], specs, store=store, k=1, protocol=protocol)
        (row,) = results.of(Scored)
        assert row.overlap < 0.5
        letters[refresh] = row.letters
    assert letters["none"] < NEAR_TWIN <= letters["40"]


def test_of_a_method_that_searches_tokens_the_nearest_passages_are_told(tmp_path: Path) -> None:
    store, lm = stored(tmp_path / "s", TWIN), toys.lm(window=128)
    store.read_tokens(TokenKeyer(lm))
    results = api.compare(lm, DOCUMENTS, ["knn-lm"], store=store, k=2, protocol=SMALL)
    assert [row.near_twin for row in results.of(Scored)] == [True, False, False]
    assert [row.neighbours for row in results.of(Scored)] == [0, 0, 0]
    assert "1 of 3 queries" in str(table(results).caption)


def test_a_noting_source_passes_on_what_it_is_asked() -> None:
    lm = toys.lm()
    shelf = Shelf.of(lm, "one fish", "two fish")
    source = NotingSource(shelf)
    assert source.search(1) == shelf.search(1)
    assert (source.vectors([1, 2]) == shelf.vectors([1, 2])).all()
    assert (source.query_vector() == shelf.query_vector()).all()
    assert source.again("x").chunks(lm.tokenizer.fingerprint).length == 3
    assert source.searched, "what is found again is noted where the query is"
