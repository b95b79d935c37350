"""Chunks of documents in memory against the plain way: cutting, searching, reading, the leak filter."""

from collections import Counter
from math import log1p

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
from stubs import StubEncoder
from uptake.errors import BadInput
from uptake.text.chunks.bm25 import Bm25
from uptake.text.chunks.cutting import cut
from uptake.text.chunks.view import BoundChunks, listed
from uptake.text.overlap import LeakFilter, Overlap, Shingles
from uptake.text.tokenizer import Tokenizer
from uptake.text.types import Document, passage_id

LENGTH = 8
WORDS = "amber birch cedar delta ember fjord grove heath islet jetty knoll larch marsh north oasis".split()  # noqa: SIM905
TEXT = st.text(st.sampled_from("ab é漢😀\n\t."), max_size=60)


def tokenizer():
    return Tokenizer(toys.tokenizer())


def document(name, words=20, group="", seed=0):
    chosen = np.random.default_rng([seed, *map(ord, name)]).choice(WORDS, words)
    return Document(name, " ".join(chosen), group)


def bound(documents, document_id="query", group="", text="", leak=None, **settings):
    view = listed(documents, tokenizer(), LENGTH, **settings)
    return view.bound(document_id, group, Overlap(text), leak or LeakFilter())


def every(chunks):
    return torch.from_numpy(chunks._view.columns.records["id"].copy())


@settings(max_examples=60)
@given(st.lists(TEXT, max_size=5), st.integers(2, 9))
def test_every_token_is_cut_once_and_texts_join_to_the_document(texts, length):
    encode = tokenizer()
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    columns = listed(documents, encode, length).columns
    assert columns.values.tolist() == [token for text in texts for token in encode.encode(text)[0]]
    place = 0
    for text in texts:
        count = -(-len(encode.encode(text)[0]) // length)
        own = range(place, place + count)
        assert "".join(columns.text(each) for each in own) == text
        for each in own:
            start = columns.records["start"][each]
            assert text[start : start + len(columns.text(each))] == columns.text(each)
            assert columns.records["first"][each] == (each == place)
        assert (columns.records["tokens"][list(own)[:-1]] == length).all()
        place += count
    assert place == len(columns.records) == len(set(columns.records["id"].tolist()))


@settings(max_examples=40)
@given(st.lists(TEXT, min_size=1, max_size=5), st.integers(2, 9))
def test_a_chunk_is_read_with_what_continues_it_in_its_own_document(texts, length):
    encode = tokenizer()
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    chunks = listed(documents, encode, length).bound("query", "", Overlap(""), LeakFilter.off())
    found, mask = chunks.tokens(every(chunks))
    row = 0
    for text in texts:
        ids = encode.encode(text)[0]
        for start in range(0, len(ids), length):
            halves = ids[start : start + length], ids[start + length : start + 2 * length]
            for half, want in enumerate(halves):
                own = slice(half * length, (half + 1) * length)
                assert found[row, own][mask[row, own]].tolist() == want
                assert mask[row, own].tolist() == [place < len(want) for place in range(length)]
            row += 1
    assert row == len(found)


def test_pieces_with_white_space_left_out_between_them_keep_their_places():
    whole = "ab cd" + " " * 7 + "efgh ij"
    columns, _ = cut(tokenizer(), "d", "", [(0, whole[:5]), (12, whole[12:])], 4)
    assert columns.values.tolist() == tokenizer().encode("ab cdefgh ij")[0]
    assert [columns.text(each) for each in range(3)] == ["ab c", "defg", "h ij"]
    assert columns.records["start"].tolist() == [0, 4, 15]


def test_bm25_is_the_formula():
    texts = ["amber birch amber", "birch cedar", "delta", "birch birch birch ember amber"]
    words = [Shingles(text).words for text in texts]
    bm25 = Bm25(np.concatenate(words), np.array([len(each) for each in words]))
    query = "amber birch birch unknown"
    counts = [Counter(text.split()) for text in texts]
    mean = np.mean([len(text.split()) for text in texts])
    for text, count, score in zip(texts, counts, bm25.scores(Shingles(query).words), strict=True):
        want = 0.0
        for word in set(query.split()):
            spread = sum(word in other for other in counts)
            room = 1.2 * (0.25 + 0.75 * len(text.split()) / mean)
            rarity = log1p((4 - spread + 0.5) / (spread + 0.5))
            want += rarity * count[word] * 2.2 / (count[word] + room)
        assert score == pytest.approx(want, rel=1e-6)
    assert Bm25(words[0][:0], np.zeros(0, int)).scores(words[0]).tolist() == []


def slow_order(chunks, query, embedder):
    """Return all places that are not withheld, best first, the plain way."""
    columns = chunks._view.columns
    texts = [columns.text(place) for place in range(len(columns.records))]
    if embedder is None:
        words = [Shingles(text).words for text in texts]
        scores = Bm25(np.concatenate(words), np.array(list(map(len, words)))).scores(Shingles(query).words)
    else:
        scores = -((embedder.embed(texts) - embedder.embed([query])) ** 2).sum(1)
    order = sorted(range(len(texts)), key=lambda place: (-scores[place], columns.records["id"][place]))
    return [place for place in order if embedder or scores[place] > 0]


@pytest.mark.parametrize("embedder", [None, StubEncoder()])
def test_search_is_brute_force_over_what_may_be_read(embedder):
    documents = [document(str(number), 20, f"g{number % 3}") for number in range(12)]
    copy = Document("copy", "well " + documents[5].text + " indeed")
    leak = LeakFilter()
    text = documents[5].text
    chunks = bound([*documents, copy], "5", "g2", text, leak, embedder=embedder)
    columns, k = chunks._view.columns, 5
    overlap = Overlap(text)

    def withheld(place):
        names = [d.id for d in [*documents, copy] for _ in range(-(-len(d.text) // LENGTH))]
        if names[place] in ("2", "5", "8", "11"):
            return True
        parts = [place] + ([place + 1] if columns.continued[place] else [])
        return any(
            overlap.containment(columns.text(part)) >= leak.containment
            or overlap.jaccard(columns.text(part)) >= leak.jaccard
            for part in parts
        )

    queries = [text[start : start + 30] for start in range(0, 90, 10)]
    found = chunks.search(queries, k)
    assert found.shape == (9, k) and found.dtype == torch.int64
    for query, row in zip(queries, found.tolist(), strict=True):
        want = [place for place in slow_order(chunks, query, embedder) if not withheld(place)][:k]
        assert row == [*columns.records["id"][want].tolist(), *[-1] * (k - len(want))]
    free = bound([*documents, copy], "5", "g2", text, LeakFilter.off(), embedder=embedder)
    assert not torch.equal(free.search(queries, k), found), "there was something to withhold"


def test_a_query_is_embedded_once_however_much_is_withheld():
    documents = [document(str(number)) for number in range(6)]
    embedder = StubEncoder()
    chunks = bound(documents, text=documents[5].text, embedder=embedder)
    before = embedder.embedded
    found = chunks.search([documents[5].text[:30]], 4)
    assert embedder.embedded == before + 1 and len(chunks._leaks) > 4 and (found >= 0).all()


def test_minus_one_and_strangers_are_masked_wherever_they_come_from():
    documents = [document("a"), document("b")]
    chunks = bound(documents, "a", text=documents[0].text)
    own = every(chunks)[
        chunks._view.columns.records["document"] == chunks._view.columns.records["document"][0]
    ]
    ids = torch.stack([torch.full_like(own, -1), own, own + 1])
    found, mask = chunks.tokens(ids)
    assert found.shape == (3, len(own), 2 * LENGTH) and not mask.any() and not found.any()
    assert chunks.search(["", "zzzz"], 3).tolist() == [[-1] * 3] * 2
    assert chunks.search([], 3).shape == (0, 3) and chunks.search(["amber"], 0).shape == (1, 0)
    with pytest.raises(BadInput, match="k = -1"):
        chunks.search(["amber"], -1)
    with pytest.raises(BadInput, match="chunk length 1"):
        listed(documents, tokenizer(), 1)


@pytest.mark.parametrize("documents", [[], [Document("a", "")], [Document("a", "amber")]])
def test_a_corpus_shorter_than_one_chunk_is_masked(documents):
    chunks = bound(documents)
    found, mask = chunks.tokens(chunks.search(["amber"], 2))
    told = documents[0].text if documents else ""
    assert found.shape == (1, 2, 2 * LENGTH)
    assert mask.sum() == len(told) and mask[0, 0, : len(told)].all()
    assert tokenizer().decode(found[mask].tolist()) == told


def test_a_sample_is_drawn_from_what_may_be_read_and_what_was_dropped_is_not():
    documents = [document(str(number)) for number in range(6)]
    chunks = bound(documents, "2")
    drawn = chunks.sample(50, 4, np.random.default_rng(0))
    assert drawn.shape == (50, 4) and all(len(set(row)) == 4 for row in drawn.tolist())
    assert chunks.tokens(drawn)[1].any(-1).all()
    few = chunks.without([passage_id(d.id, 0, d.text) for d in documents[1:]])
    assert isinstance(few, BoundChunks)
    left = every(chunks)[: -(-len(documents[0].text) // LENGTH)]
    everything = few.sample(1, 100, np.random.default_rng(0))[0]
    assert sorted(everything[everything >= 0].tolist()) == sorted(left.tolist())
    assert torch.equal(few.tokens(left)[0], chunks.tokens(left)[0])
    assert not few.tokens(every(chunks)[len(left) :])[1].any()
