"""Passages found anew as a text goes on: with seen text alone, the same from a cache as in one pass."""

import pytest
import torch

import toys
from uptake import api
from uptake.errors import BadInput
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.lm.base import Segment
from uptake.lm.wrappers import Prefixed
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.in_context import InContext
from uptake.store import Datastore
from uptake.text.overlap import LeakFilter
from uptake.text.types import Chunking, Document

TEXTS = ["red cats sat on mats", "wet dogs ran up hills", "old fish swam in seas", "fat hens hid in boxes"]
QUERY, TARGET = "see red cats ", "and wet dogs and old fish and fat hens"


class Recording:
    """A source that remembers what it was asked for again."""

    def __init__(self, inner):
        self.inner, self.asked = inner, []

    def again(self, text):
        self.asked.append(text)
        return self.inner.again(text)

    def search(self, k):
        return self.inner.search(k)


@pytest.fixture
def made(tmp_path):
    lm = toys.lm(window=256, dtype=torch.float64)
    store = Datastore.create(tmp_path / "s", retriever="lexical", chunking=Chunking(64))
    store.add([Document(str(i), text) for i, text in enumerate(TEXTS)])
    return lm, Recording(store.source(QUERY, document_id="query", whole_text="nothing alike"))


def taken(method, lm, source):
    (state,) = method.adapt([method.init(lm)], lm, [Evidence(source.search(1), QUERY, source)], Context())
    return state


def test_every_place_reads_what_the_text_before_it_finds(made):
    lm, source = made
    method = InContext(refresh=9, recent=12)
    state = taken(method, lm, source)
    scores = method.adapted([state], lm).score([Segment(TARGET, QUERY)])[0].log_probs
    ids = [lm.tokenizer.opening, *lm.tokenizer.encode(QUERY + TARGET)[0]]
    known = 1 + len(QUERY)
    for number in range(len(TARGET)):
        stretch = number // 9
        seen = QUERY + TARGET[: stretch * 9]
        if stretch:
            assert source.asked[stretch - 1] == seen[-12:], "only what was scored already is searched with"
            found = source.inner.again(seen[-12:]).search(1)
        else:
            found = source.search(1)
        prefix = (
            [lm.tokenizer.opening, *lm.tokenizer.encode(found.passages[0].text + "\n\n")[0]]
            if found.passages
            else []
        )
        with torch.no_grad():
            want = Prefixed(lm, [prefix]).step(torch.tensor([ids[: known + number]]))[0][0, -1]
        assert scores[number] == pytest.approx(float(want[ids[known + number]]), abs=1e-9)
    assert len(source.asked) == (len(TARGET) - 1) // 9
    assert len({source.inner.again(text).search(1).passages[0].id for text in source.asked}) > 1


def test_cached_steps_are_the_full_pass_and_no_token_sees_a_later_one(made):
    lm, source = made
    method = InContext(refresh=5)
    model = method.adapted([taken(method, lm, source)], lm)
    ids = torch.tensor([[lm.tokenizer.opening, *lm.tokenizer.encode(QUERY + TARGET)[0]]])
    with torch.no_grad():
        whole = model.step(ids)[0]
        cache, parts = model.start(), []
        for start, end in ((0, 20), (20, 21), (21, 33), (33, ids.shape[1])):
            part, cache = model.step(ids[:, start:end], cache)
            parts.append(part)
        changed = ids.clone()
        changed[0, 30:] = 70
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-10)
        assert torch.allclose(model.step(changed)[0][0, :30], whole[0, :30], atol=1e-10)
    assert model.generate(QUERY, tokens=12)


def test_a_long_interval_is_no_refresh_and_no_source_is_none(made):
    lm, source = made
    plain = (
        InContext().adapted([taken(InContext(), lm, source)], lm).score([Segment(TARGET, QUERY)])[0].log_probs
    )
    rare = InContext(refresh=1000)
    assert torch.allclose(
        rare.adapted([taken(rare, lm, source)], lm).score([Segment(TARGET, QUERY)])[0].log_probs, plain
    )
    assert source.asked == []
    often = InContext(refresh=1)
    (state,) = often.adapt([often.init(lm)], lm, [Evidence.of(TEXTS[0], query=QUERY)], Context())
    assert isinstance(often.adapted([state], lm), Prefixed)


def test_the_leak_filter_holds_for_every_search(tmp_path):
    lm = toys.lm(window=256)
    store = Datastore.create(tmp_path / "s", retriever="lexical", chunking=Chunking(64))
    document = Document("own", QUERY + TARGET)
    store.add([document, *(Document(str(i), text) for i, text in enumerate(TEXTS))])
    source = store.source(QUERY, document_id="own", whole_text=document.text)
    assert all(
        p.document != "own" for text in ("wet dogs", TARGET) for p in source.again(text).search(5).passages
    )
    settings = ["in-context.refresh=8"]
    results = api.compare(lm, [document], ["in-context"], store=store, k=2, settings=settings,
                          protocol=PerQuery(len(QUERY), 99), leak=LeakFilter())  # fmt: skip
    assert not results.rows[0].failed and results.rows[0].bits != results.rows[0].base_bits


@pytest.mark.parametrize("settings", [{"refresh": 0}, {"refresh": 3, "recent": 0}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(BadInput, match="refresh"):
        InContext(**settings)
