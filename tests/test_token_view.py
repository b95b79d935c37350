"""A store's tokens against brute force over the same passages, against damage, and against crashes."""

import shutil
import warnings

import numpy as np
import pytest
import torch

import toys
from uptake.errors import BadInput, Damaged, Mismatch
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.store import Datastore
from uptake.store.passages.index_cache import cache_folder
from uptake.store.views import key_index, token_reading, view_writer
from uptake.text.overlap import LeakFilter, Overlap
from uptake.text.types import Chunking, Document, Keyed, stable_hash

WORDS = "amber birch cedar delta ember fjord grove heath islet jetty knoll larch marsh north oasis".split()  # noqa: SIM905
WIDTH = 8


class StubKeyer:
    """One token a character; the key before it is random numbers that its document so far decides."""

    name, dimensions = "stub", WIDTH

    def __init__(self, salt=""):
        self.fingerprint = f"stub-{salt}"
        self.read_characters = 0
        self.fails_after = None

    def read(self, texts):
        self.read_characters += sum(map(len, texts))
        if self.fails_after is not None and self.read_characters > self.fails_after:
            raise KeyboardInterrupt
        return [self._read(text) for text in texts]

    def _read(self, text):
        keys = np.stack([self.key(text[:place]) for place in range(len(text))])
        return Keyed(np.array([ord(c) for c in text], np.int32), np.arange(len(text)), keys)

    def key(self, before):
        seed = stable_hash(self.fingerprint, before[-12:])
        return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float16)


def document(name, words=40, group="", seed=0):
    chosen = np.random.default_rng([seed, *map(ord, name)]).choice(WORDS, words)
    return Document(name, " ".join(chosen), group)


def make(path, documents, **settings):
    store = Datastore.create(path, retriever="lexical", chunking=Chunking(64), **settings)
    store.add(documents)
    return store


def made(path, documents, **settings):
    store = make(path, documents, **settings)
    keyer = StubKeyer()
    store.read_tokens(keyer)
    return store, keyer


def entries(store, keyer):
    """Return (key, value, document, passage id) for every token, the slow way."""
    found = []
    passages = store.passages(store._table.ids)
    for name in sorted({passage.document for passage in passages}):
        own = sorted((p for p in passages if p.document == name), key=lambda p: p.start)
        whole = "".join(p.text for p in own)
        for passage in own:
            for place in range(passage.start, passage.start + len(passage.text)):
                found.append((keyer.key(whole[:place]), ord(whole[place]), name, passage.id))
    return found


def nearest(found, key, k):
    losses = sorted(((np.float64(each[0]) - key) ** 2).sum() for each in found)
    return np.array(losses[:k])


QUERIES = np.random.default_rng(1).standard_normal((6, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_search_is_brute_force_over_what_may_be_read(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(key_index, "LARGE", 100)
    documents = [document(str(i), group=f"g{i % 3}") for i in range(12)]
    store, keyer = made(tmp_path / "s", documents, index=kind)
    source = store.source("amber", document_id="3", group="g1", whole_text=documents[3].text)
    tokens = source.tokens(keyer.fingerprint)
    allowed = [e for e in entries(store, keyer) if e[2] not in ("1", "3", "4", "7", "10")]
    assert tokens.count == len(allowed) > 1000
    near = tokens.search(QUERIES, 20)
    for row, key in enumerate(QUERIES):
        # Lists are looked into in part; what they do find has its exact distance, in order.
        want = nearest(allowed, key, 20)
        if kind == "flat":
            np.testing.assert_allclose(near.distances[row], want, rtol=1e-5)
        else:
            assert np.isclose(near.distances[row][:, None], want, rtol=1e-5).any(1).mean() > 0.8
        assert (np.diff(near.distances[row]) >= 0).all()
    stored = tokens.view.stored
    exact = ((np.float32(stored.vectors)[near.places] - QUERIES[:, None]) ** 2).sum(-1)
    np.testing.assert_allclose(near.distances, exact, rtol=1e-5)
    assert (near.values == stored.values[near.places]).all() and tokens.allowed[near.places].all()


def test_lists_of_a_copy_that_has_grown_otherwise_are_not_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(key_index, "LARGE", 100)
    documents = [document(str(i)) for i in range(6)]
    _, keyer = made(tmp_path / "a", documents, index="ivf")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    names = []
    words = document("new").text.split()
    for name, new in (("a", words), ("b", words[::-1])):  # as long, and other tokens
        grown = Datastore.open(tmp_path / name)
        grown.add([Document("new", " ".join(new))])
        grown.read_tokens(keyer)
        index = grown.source("amber").tokens(keyer.fingerprint).view.index
        assert index._cached() is None, "the lists of other keys"
        index._lists()
        names.append(index._name(len(index.keys)))
        again = Datastore.open(tmp_path / name)
        assert again.source("amber").tokens(keyer.fingerprint).view.index._cached() is not None
    assert names[0] != names[1]


# Chinese clauses, and the same with a character before each.
CLAUSES = ["".join(chr(0x4E00 + (37 * i + 101 * j * j) % 20_000) for j in range(24)) for i in range(30)]
CHINESE = Document("original", "，".join(CLAUSES))
EDITED = Document("copy", "，".join(chr(0x5000 + i) + clause for i, clause in enumerate(CLAUSES)))


@pytest.mark.parametrize(
    ("original", "copy"),
    [
        (
            document("original", 80),
            Document("copy", document("original", 80).text + " and a little more that nobody else ever said"),
        ),
        (CHINESE, EDITED),
    ],
)
def test_what_the_filter_withholds_for_overlap_is_withheld_token_by_token(tmp_path, original, copy):
    store, keyer = made(tmp_path / "s", [original, copy, document("other")])
    source = store.source("amber", document_id="query", whole_text=original.text)
    tokens = source.tokens(keyer.fingerprint)
    leak = LeakFilter()
    passages = store.passages(store._table.ids)
    kept = {p.id for p in passages if not leak.judge(Overlap(original.text), "query", "", p).leaks}
    assert 0 < len(kept) < len(passages)
    assert tokens.count == sum(len(p.text) for p in passages if p.id in kept)
    assert store.source("amber", leak=LeakFilter.off()).tokens(keyer.fingerprint).count == len(
        entries(store, keyer)
    )


def test_nothing_retrieves_itself(tmp_path):
    documents = [document(str(i)) for i in range(4)]
    store, keyer = made(tmp_path / "s", documents)
    keys = np.stack([keyer.key(documents[0].text[:place]) for place in range(30)]).astype(np.float32)
    free = store.source("x", leak=LeakFilter.off()).tokens(keyer.fingerprint).search(keys, 1)
    assert (free.distances[:, 0] == 0).all(), "without the filter each key finds itself"
    bound = store.source(documents[0].text, document_id="0").tokens(keyer.fingerprint)
    near = bound.search(keys, 5)
    assert (bound.view.stored.passages["document"][bound.passages] != stable_hash("0")).all()
    assert bound.allowed[near.places].all() and bound.count < len(bound.allowed)


def test_pointers_lead_to_the_next_token_and_never_out_of_a_document(tmp_path):
    store, keyer = made(tmp_path / "s", [document("a", 30), document("b", 30)])
    tokens = store.source("x").tokens(keyer.fingerprint)
    places = np.arange(-1, tokens.count + 1)[None]
    follows = tokens.after(places)[0]
    ends = {len(document("a", 30).text) - 1, tokens.count - 1}
    for place, after in zip(places[0], follows, strict=True):
        known = 0 <= place < tokens.count and place not in ends
        assert after == (place + 1 if known else -1)
    bound = store.source(document("b", 30).text, document_id="b").tokens(keyer.fingerprint)
    assert (bound.after(places)[0] <= len(document("a", 30).text) - 1).all()


def test_minus_one_is_masked_wherever_it_comes_from(tmp_path):
    store, keyer = made(tmp_path / "s", [document("a")])
    tokens = store.source("x").tokens(keyer.fingerprint)
    near = tokens.measure(QUERIES[:2], np.array([[-1, 3, 10**9], [-1, -1, -1]]))
    assert near.places.tolist() == [[3, -1, -1], [-1, -1, -1]]
    assert np.isinf(near.distances[near.places < 0]).all() and (near.values[near.places < 0] == 0).all()
    assert tokens.search(QUERIES, 10**6).places.shape[1] == tokens.count, "no more than there are"
    nothing = store.source(document("a").text, document_id="a").tokens(keyer.fingerprint)
    assert nothing.search(QUERIES, 5).places.shape == (6, 0)
    assert nothing.measure(QUERIES[:1], np.array([[0, 1]])).places.tolist() == [[-1, -1]]
    assert nothing.sample(3, np.random.default_rng(0)).search(QUERIES, 5).places.shape == (6, 0)


def test_a_sample_and_what_was_dropped_are_all_there_is(tmp_path):
    store, keyer = made(tmp_path / "s", [document(str(i)) for i in range(5)])
    tokens = store.source("x", document_id="2").tokens(keyer.fingerprint)
    few = tokens.sample(7, np.random.default_rng(0))
    near = few.search(QUERIES, 50)
    assert near.places.shape == (6, 7) and len(np.unique(near.places)) == 7
    assert set(near.places[0]) <= set(np.flatnonzero(tokens.allowed))
    gone = int(tokens.view.stored.passages["id"][0])
    assert tokens.count - tokens.without([gone]).count == tokens.view.stored.passages["tokens"][0]


def test_removed_documents_are_gone_and_new_ones_wanted(tmp_path):
    documents = [document(str(i)) for i in range(6)]
    store, keyer = made(tmp_path / "s", documents)
    before = keyer.read_characters
    store.remove(["2"])
    tokens = store.source("x").tokens(keyer.fingerprint)
    assert tokens.count == len(entries(store, keyer))
    store.add([document("new")])
    with pytest.raises(BadInput, match="1 of its documents have no tokens yet; read them with"):
        store.source("x").tokens(keyer.fingerprint)
    told = store.read_tokens(keyer)
    assert told.documents == 1 and keyer.read_characters - before == len(document("new").text)
    tokens = store.source("x").tokens(keyer.fingerprint)
    whole = entries(store, keyer)
    assert tokens.count == len(whole)
    np.testing.assert_allclose(
        tokens.search(QUERIES, 5).distances[0], nearest(whole, QUERIES[0], 5), rtol=1e-5
    )
    # A passage that goes takes its document's tokens along: their keys had seen it.
    first = store._table.ids[0]
    store.remove(passages=[first])
    with pytest.raises(BadInput, match="1 of its documents"):
        store.source("x").tokens(keyer.fingerprint)
    store.read_tokens(keyer)
    left = sum(len(passage.text) for passage in store.passages(store._table.ids))
    assert store.source("x").tokens(keyer.fingerprint).count == left < len(whole)


def test_a_changed_document_has_its_new_tokens_and_an_older_version_is_refused(tmp_path):
    store, keyer = made(tmp_path / "s", [document("a"), document("b")])
    version = store.version
    store.add([document("a", seed=1)])
    store.read_tokens(keyer)
    tokens = store.source("x").tokens(keyer.fingerprint)
    assert sorted(tokens.view.stored.values[tokens.allowed]) == sorted(e[1] for e in entries(store, keyer))
    # Half the passages were gone, so the files were written anew: an older version finds its own no more.
    with pytest.raises(BadInput, match="have no tokens yet"):
        Datastore.open(tmp_path / "s", version=version).source("x").tokens(keyer.fingerprint)


def test_a_crash_loses_only_what_was_not_committed(tmp_path, monkeypatch):
    monkeypatch.setattr(view_writer, "COMMIT", 200)
    monkeypatch.setattr(view_writer, "CHARACTERS", 100)
    monkeypatch.setattr(token_reading, "CHARACTERS", 100)
    documents = [document(str(i)) for i in range(8)]
    store, reader = make(tmp_path / "s", documents), StubKeyer()
    reader.fails_after = 1200
    with pytest.raises(KeyboardInterrupt):
        store.read_tokens(reader)
    with pytest.raises(BadInput, match="have no tokens yet"):
        store.source("x").tokens(reader.fingerprint)
    for name in ("keys", "values", "passages", "words"):  # what a harder crash leaves
        (file,) = (tmp_path / "s" / "tokens").glob(f"*/{name}")
        with file.open("ab") as tail:
            tail.write(b"torn")
    again = StubKeyer()
    told = store.read_tokens(again)
    assert again.read_characters <= sum(len(d.text) for d in documents) - 900
    assert told.total == len(entries(store, again))
    whole, _ = made(tmp_path / "whole", documents)
    one, other = (s.source("x").tokens(again.fingerprint).search(QUERIES, 9) for s in (store, whole))
    assert (one.distances == other.distances).all() and (one.values == other.values).all()
    assert store.verify() == []


def test_another_model_is_refused_and_may_begin_anew(tmp_path):
    store, _ = made(tmp_path / "s", [document("a")])
    with pytest.raises(Mismatch, match=r"read by stub \(stub-\), not by this one \(stub-b\)"):
        store.source("x").tokens("stub-b")
    with pytest.raises(Mismatch, match="--fresh"):
        store.read_tokens(StubKeyer("b"))
    store.read_tokens(StubKeyer("b"), fresh=True)
    assert (
        store.source("x").tokens("stub-b").count
        and store.info()["tokens"] == store.source("x").tokens("stub-b").count
    )
    bare = make(tmp_path / "bare", [document("a")])
    with pytest.raises(BadInput, match="holds no tokens; read them with `uptake index tokens"):
        bare.source("x").tokens("stub-b")


@pytest.mark.parametrize("name", ["values", "passages", "words"])
def test_damage_is_refused_told_and_mended(tmp_path, name):
    store, keyer = made(tmp_path / "s", [document("a"), document("b")])
    held = store.source("x").tokens(keyer.fingerprint)
    (file,) = (tmp_path / "s" / "tokens").glob(f"*/{name}")
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    with file.open("r+b") as opened:
        opened.write(raw)
    store = Datastore.open(tmp_path / "s")
    with pytest.raises(Damaged, match=f"{name}: not what was written; `uptake index tokens` reads it again"):
        store.source("x").tokens(keyer.fingerprint)
    assert any(f"tokens/{name}: not what was written" in line for line in store.verify())
    store.read_tokens(keyer)
    assert store.source("x").tokens(keyer.fingerprint).count == len(entries(store, keyer))
    assert store.verify() == []
    assert held.search(QUERIES, 5).places.shape == (6, 5), "files that somebody has mapped are not cut"


def test_keys_that_are_cut_or_changed_are_refused_at_once(tmp_path):
    store, keyer = made(tmp_path / "s", [document("a")])
    (file,) = (tmp_path / "s" / "tokens").glob("*/keys")
    raw = bytearray(file.read_bytes())
    file.write_bytes(raw[:-2])
    with pytest.raises(Damaged, match="keys: not what was written"):
        Datastore.open(tmp_path / "s").source("x").tokens(keyer.fingerprint)
    raw[0:2] = np.float16("nan").tobytes()
    file.write_bytes(raw)
    assert any("tokens/keys" in line for line in store.verify())
    with pytest.raises(Damaged, match="keys: not what was written"):
        Datastore.open(tmp_path / "s").source("x").tokens(keyer.fingerprint)
    (tmp_path / "s" / "tokens" / "about.json").write_text('{"format": 1, "id": "../..", "commits": []}')
    with pytest.raises(Damaged, match="--fresh` makes it anew"):
        Datastore.open(tmp_path / "s").source("x").tokens(keyer.fingerprint)


def test_purging_leaves_no_token_of_what_was_removed(tmp_path):
    secret = Document("secret", "zzzz the quarry zzzz holds gold zzzz")
    store, keyer = made(tmp_path / "s", [document(str(i)) for i in range(6)] + [secret])
    mark = np.array([ord(c) for c in "zzzz"], "<i4").tobytes()
    files = lambda: [f for f in (tmp_path / "s" / "tokens").rglob("*") if f.is_file()]  # noqa: E731
    assert any(mark in file.read_bytes() for file in files())
    store.remove(["secret"], purge=True)
    assert not any(mark in file.read_bytes() for file in files())
    assert store.source("x").tokens(keyer.fingerprint).count == len(entries(store, keyer))
    assert store.verify() == []


def listed(folder, monkeypatch):
    """Return a store whose lists are kept, its keyer, a search, what it found first, and the lists."""
    monkeypatch.setattr(key_index, "LARGE", 100)
    store, keyer = made(folder, [document(str(i)) for i in range(8)], index="ivf")

    def search():
        return Datastore.open(folder).source("x").tokens(keyer.fingerprint).search(QUERIES, 5)

    before = search()
    (kept,) = cache_folder(store.layout.uid).glob("tokens-*")
    return store, keyer, search, before, kept


def test_lists_are_kept_checked_and_grown(tmp_path, monkeypatch):
    store, keyer, search, before, kept = listed(tmp_path / "s", monkeypatch)
    folder = kept.parent
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (search().places == before.places).all()
    (kept / "ivf").write_bytes(b"no index at all")
    with pytest.warns(RuntimeWarning, match="damaged index"):
        assert (search().places == before.places).all()
    store.add([document("new")])
    store.read_tokens(keyer)
    search()
    (grown,) = folder.glob("tokens-*")
    assert grown.name != kept.name and int(grown.name.rpartition("-")[2]) == store.info()["tokens"]
    assert store.verify() == []


def test_lists_that_two_processes_make_at_once_are_no_fault(tmp_path, monkeypatch):
    *_, search, before, kept = listed(tmp_path / "s", monkeypatch)
    folder = kept.parent
    shutil.copytree(kept, tmp_path / "theirs")
    shutil.rmtree(kept)
    discard = key_index.discard

    def theirs_comes_first(home):
        discard(home)
        if home == kept:
            shutil.copytree(tmp_path / "theirs", home)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(key_index, "discard", theirs_comes_first)
        assert (search().places == before.places).all()
        assert not list(folder.glob(".draft-*"))

        def is_cleared(path):
            shutil.rmtree(path)
            return ["ivf: no such file"]

        monkeypatch.setattr(key_index, "damaged", is_cleared)
        assert (search().places == before.places).all()


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_keys_are_what_enters_the_last_feed_forward(shape):
    lm = toys.lm(shape, dtype=torch.float64)
    text = "the cat sat on the mat, and the dog ran over the hill to see what there was to be seen there."
    ids = [lm.tokenizer.opening, *lm.tokenizer.encode(text)[0]]
    twin = toys.module(shape, dtype=torch.float64).eval()
    caught = []
    block = {"gpt2": lambda: twin.transformer.h[-1], "llama": lambda: twin.model.layers[-1]}.get(
        shape, lambda: twin.gpt_neox.layers[-1]
    )()
    block.mlp.register_forward_pre_hook(lambda part, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        twin(input_ids=torch.tensor([ids[:40]]))
        log_probs, keys, _ = lm.step_with_keys(torch.tensor([ids[:40]]))
        assert torch.equal(keys, caught[0]) and torch.equal(lm.keys(torch.tensor([ids[:40]])), keys)
        assert torch.equal(log_probs, lm.step(torch.tensor([ids[:40]]))[0])
        first, cache = lm.step_with_keys(torch.tensor([ids[:25]]), lm.start())[1:]
        second = lm.step_with_keys(torch.tensor([ids[25:40]]), cache)[1]
        assert torch.allclose(torch.cat([first, second], 1), keys, atol=1e-12)
    assert not any(part._forward_pre_hooks for part in lm.module.modules())
    # A text longer than the window of 64: each window but the first sees 16 tokens before its own.
    (read,) = TokenKeyer(lm).read([text])
    assert read.values.tolist() == ids[1:] and read.starts.tolist() == list(range(len(text)))
    for place in (0, 30, 63, 64, 80, len(text) - 1):
        start = 0 if place < 64 else 64 - 16
        with torch.no_grad():
            want = lm.keys(torch.tensor([ids[start : place + 1]]))[0, -1]
        np.testing.assert_allclose(read.keys[place], want.numpy(), rtol=2e-3, atol=2e-3)


def test_the_fingerprint_names_model_tokenizer_and_moved_weights():
    from uptake.adaptation.delta import Delta

    lm = toys.lm()
    name = next(iter(dict(lm.module.named_parameters())))
    moved = lm.overlay(
        Delta.dense(lm.fingerprint, {name: torch.ones_like(dict(lm.module.named_parameters())[name])})
    )
    assert moved.fingerprint == lm.fingerprint and TokenKeyer(moved).fingerprint != TokenKeyer(lm).fingerprint
    assert (
        TokenKeyer(toys.lm()).fingerprint
        == TokenKeyer(lm).fingerprint
        != TokenKeyer(toys.lm(seed=1)).fingerprint
    )
    assert TokenKeyer(toys.lm(window=32)).fingerprint != TokenKeyer(lm).fingerprint


def test_a_model_without_a_known_feed_forward_is_refused():
    module = toys.module("gpt2")
    module.transformer.h[-1].feed = module.transformer.h[-1].mlp
    del module.transformer.h[-1].mlp
    from uptake.lm.causal import Causal

    with pytest.raises(BadInput, match="its last block has no mlp or fc1"):
        Causal(module, toys.lm().tokenizer).step_with_keys(torch.tensor([[1]]))
