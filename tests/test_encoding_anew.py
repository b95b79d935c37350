"""A store's passages under another encoder: as a store built anew, there whole or not at all."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from tests.stubs import StubEncoder
from uptake.errors import BadInput, Mismatch
from uptake.store import Datastore
from uptake.store.encoding_anew import encode_anew
from uptake.text.types import Chunking, Document

TEXTS = [Document(f"d{n}", f"the pump {n} has seal {n} " + "valve " * (n % 5) + "日本語") for n in range(50)]
QUERIES = ["pump seal 3", "valve valve", "本"]


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("UPTAKE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "s.store"


def built(path, encoder, **more):
    made = Datastore.create(path, encoder=encoder, chunking=Chunking(64), **more)
    made.add(TEXTS)
    return made


def answers(store):
    return [(r.ids.tolist(), r.scores.tolist()) for r in store.search(QUERIES, 10)]


def files(path):
    return {each.name: each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


@pytest.mark.parametrize("retriever", ["hybrid", "dense"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_it_is_a_store_built_anew_and_the_old_one_stays(path, tmp_path, retriever, precision):
    old = built(path, StubEncoder(), retriever=retriever, vectors=precision)
    before = files(path)
    told = []
    made = encode_anew(
        old, tmp_path / "new.store", StubEncoder(24, "b"), progress=lambda *each: told.append(each)
    )
    anew = built(tmp_path / "anew.store", StubEncoder(24, "b"), retriever=retriever, vectors=precision)
    assert made.ids == anew.ids == old.ids and told[-1] == (old.count, old.count)
    assert np.array_equal(made.vectors(made.ids), anew.vectors(anew.ids))
    assert made.passages(made.ids) == old.passages(old.ids)
    assert answers(made) == answers(anew) and made.info()["vectors"] == precision
    if retriever == "hybrid":
        assert answers(made.searched("lexical")) == answers(anew.searched("lexical"))
    assert files(path) == before and made.verify() == []
    assert made.view.encoder_fingerprint == "stub-24-b" and made.layout.uid != old.layout.uid
    made.add([Document("more", "a new pump")])
    assert made.searched("dense").search(["a new pump"], 1)[0].ids.tolist()[0] not in old.ids


def test_the_old_encoder_is_refused_for_the_new_store(path, tmp_path):
    encode_anew(built(path, StubEncoder()), tmp_path / "new.store", StubEncoder(16, "b"))
    with pytest.raises(Mismatch, match="made with encoder stub-16-b, opened with stub-16-") as caught:
        Datastore.open(tmp_path / "new.store", encoder=StubEncoder())
    assert "\n" not in str(caught.value)


def test_what_was_removed_does_not_come_back(path, tmp_path):
    old = built(path, StubEncoder())
    old.remove(["d3"])
    made = encode_anew(old, tmp_path / "new.store", StubEncoder(16, "b"))
    assert made.count == old.count and made.passages_of(["d3"])["d3"] == []


def test_what_cannot_be_encoded_is_refused_in_a_line(path, tmp_path):
    lexical = Datastore.create(tmp_path / "l.store", retriever="lexical")
    with pytest.raises(BadInput, match="lexical"):
        encode_anew(lexical, tmp_path / "new.store", StubEncoder())
    old = built(path, StubEncoder())
    with pytest.raises(BadInput, match="already there"):
        encode_anew(old, path, StubEncoder(16, "b"))
    with pytest.raises(BadInput, match="to a folder"):
        encode_anew(old, "s3://bucket/new.store", StubEncoder(16, "b"))

    def broken():
        yield TEXTS[0]
        yield Document("x", "a text that is new")
        raise KeyboardInterrupt

    import uptake.store.passages.writing as writing

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writing, "BATCH", 1)
        old.add(broken(), label="notes")
    with pytest.raises(BadInput, match="unfinished"):
        encode_anew(Datastore.open(path, encoder=StubEncoder()), tmp_path / "new.store", StubEncoder(16, "b"))
    assert not (tmp_path / "new.store").exists()


KILLED = """
import os, signal, sys
from tests.stubs import StubEncoder
from uptake.store import Datastore, encoding_anew

class Dying(StubEncoder):
    def embed(self, texts):
        if self.embedded >= 16:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed(texts)

encoding_anew.BATCH = 8
old = Datastore.open(sys.argv[1], encoder=StubEncoder())
encoding_anew.encode_anew(old, sys.argv[2], Dying(16, "b"))
"""


def test_a_killed_encoding_is_seen_by_nobody_and_done_by_the_same_call(path, tmp_path):
    old, new = built(path, StubEncoder()), tmp_path / "new.store"
    before = answers(old)
    code = subprocess.run(
        [sys.executable, "-c", KILLED, path, new], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    ).returncode
    assert code == -signal.SIGKILL
    assert not new.exists() and any(each.name.startswith(".new.store-") for each in tmp_path.iterdir())
    with pytest.raises(BadInput, match="not a datastore"):
        Datastore.open(new)
    opened = Datastore.open(path, encoder=StubEncoder())
    assert answers(opened) == before and opened.verify() == []
    made = encode_anew(opened, new, StubEncoder(16, "b"))
    assert made.count == old.count and made.verify() == []
    assert not any(each.name.startswith(".new.store-") for each in tmp_path.iterdir()), "what it left is gone"
