"""Where nothing is there to be found, nothing was found, or nothing was read, it is said."""

import json
from pathlib import Path
from typing import Any

import pytest

import toys
import uptake
from cli_world import Run, World, made_fixture, refused, run_fixture, world_fixture, write_lines  # noqa: F401
from stubs import StubEncoder
from uptake import api
from uptake.errors import BadInput, Mismatch
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.tune import Space, tune
from uptake.methods.finetune import Finetune
from uptake.methods.knn_lm.keys import TokenKeyer
from uptake.report.summary import table, write_json
from uptake.store import Datastore
from uptake.store.passages.writing import StoreWriter
from uptake.tasks.questions import Question
from uptake.text.overlap import LeakFilter
from uptake.text.types import Document

DOCUMENTS = [
    Document("t0", "the pump is reset by hand and then again"),
    Document("t1", "xyzzy plugh, what is said here?"),
]
SHORT = PerQuery(12, 12)
ASKED = {"id": "q", "question": "a?", "answers": ["b"], "document": "test/pump"}


def lexical(path: Path, *texts: str) -> Datastore:
    made = Datastore.create(path, retriever="lexical")
    made.add([Document(f"s{number}", text) for number, text in enumerate(texts)])
    return made


RATE = ("learning_rate=1e-4",)  # a chosen one has a note of its own


def notes(store: Datastore | None, names: Any = ("ttt-nn",), **more: Any) -> tuple[str, ...]:
    given = {"leak": LeakFilter.off(), "protocol": SHORT, "k": 2, "settings": RATE} | more
    return api.compare(toys.lm(), DOCUMENTS, names, store=store, **given).header.notes


@pytest.mark.parametrize("verb", ["eval", "compare", "tune", "stream"])
def test_an_empty_store_is_refused_with_the_cure(run: Run, world: World, tmp_path: Path, verb: str) -> None:
    Datastore.create(tmp_path / "empty.store", retriever="lexical")
    questions = write_lines(tmp_path / "q.jsonl", ASKED)
    more: list[object] = {
        "eval": ["--data", world.data],
        "compare": ["--data", world.data, "--methods", "base,in-context"],
        "tune": ["--data", world.data, "--out", tmp_path / "r"],
        "stream": ["--documents", world.data, "--questions", questions, "--methods", "ttt-nn"],
    }[verb]
    refused(run(verb, "-m", world.model, "-s", tmp_path / "empty.store", *more), "empty", "uptake index add")


def test_how_many_found_fewer_is_said_with_the_reason(tmp_path: Path) -> None:
    store = lexical(tmp_path / "s", "the pump is red", "pump and xyzzy", "xyzzy was said", "a valve")
    assert notes(store) == ()
    (line,) = notes(store, k=3, names=("ttt-nn", "in-context", "random", "base"))
    assert line.startswith("ttt-nn, in-context: 2 of 2 queries found fewer than 3 neighbours: because")
    assert "no other passage has a word of the query" in line
    (line,) = notes(store, k=9)
    assert "2 of 2 queries found fewer than 9 neighbours" in line and "holds only 4" in line
    (line,) = notes(
        lexical(tmp_path / "c", DOCUMENTS[0].text, "who was xyzzy then", "a xyzzy by any name"),
        leak=LeakFilter(),
    )
    assert "1 of 2 queries" in line and "the leak filter withheld the rest" in line
    both = notes(lexical(tmp_path / "one", DOCUMENTS[0].text), k=2, leak=LeakFilter())
    assert "the leak filter withheld the rest of the 1 that the store holds" in both[0]


def test_none_found_is_told_in_table_json_and_page(tmp_path: Path) -> None:
    store = lexical(tmp_path / "s", "qwerty asdf", "zxcv uiop")
    results = api.compare(toys.lm(), DOCUMENTS, ["ttt-nn"], store=store, protocol=SHORT, k=2, settings=RATE)
    found, changed = results.header.notes
    assert "2 of 2 queries found fewer than 2 neighbours, 2 of them none" in found
    assert changed.startswith("ttt-nn changed nothing")
    assert "it read nothing under --protocol per-query" in changed
    assert found in str(table(results).caption)
    write_json(results, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["notes"] == [found, changed]
    uptake.write_page(results, tmp_path / "r.html")
    assert "2 of them none" in (tmp_path / "r.html").read_text()


def test_a_method_that_reads_nothing_under_a_protocol_is_named() -> None:
    (line,) = notes(None, names=api.method_specs(["camels"], ["weights=untrained"]), settings=())
    assert line.startswith("camels changed nothing, every answer is the base's: it read nothing under")


def test_no_neighbour_asked_for_is_no_fault_of_the_protocol() -> None:
    (line,) = notes(None, k=0)
    assert line.endswith("every answer is the base's: it read nothing, -k is 0")


def test_a_stream_tells_of_documents_that_found_fewer(tmp_path: Path) -> None:
    store = lexical(tmp_path / "s", "the pump is red")
    asked = [Question("q", "what?", ("pump",), "t0")]
    results = uptake.stream(toys.lm(), DOCUMENTS, asked, ("ttt-nn",), store=store, k=2, settings=RATE)
    assert any("2 of 2 documents found fewer than 2 neighbours" in line for line in results.header.notes)


def test_a_half_built_store_says_so_wherever_it_is_used(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_lines(tmp_path / "c.jsonl", *({"id": f"{n}", "text": f"pump {n} is"} for n in range(9)))
    store = tmp_path / "half.store"
    build = ("index", "build", store, corpus, "--retriever", "lexical")
    real = StoreWriter.commit

    def killed(writer: StoreWriter, made: Any) -> None:
        real(writer, made)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("uptake.store.passages.writing.BATCH", 4)
        patched.setattr(StoreWriter, "commit", killed)
        ran = run(*build)
    assert ran.code == 130 and "4 passages" in ran.err and "the same command resumes" in ran.err
    said = f"unfinished: the adding of {corpus} was interrupted; run it again"
    assert said in run("index", "info", store).out
    ran = run("index", "verify", store)
    assert ran.code == 2 and said in ran.out
    ran = run("index", "search", store, "pump")
    assert ran.code == 0 and said in ran.err
    asked = ("eval", "-m", world.model, "-s", store, "--data", world.data)
    ran = run(*asked, "--method", "in-context", "-k", "1")
    assert ran.code == 0 and "the store is unfinished" in " ".join(ran.out.split())
    # Another corpus would leave the first half there for good.
    other = write_lines(tmp_path / "o.jsonl", {"id": "o", "text": "a valve"})
    refused(run("index", "build", store, other, "--retriever", "lexical"), said)
    assert run("index", "add", store, other).code == 0
    assert said in run("index", "info", store).out, "other text does not finish it"
    assert run(*build).code == 0
    assert "unfinished" not in run("index", "info", store).out and run("index", "verify", store).code == 0


def test_an_interrupted_build_of_which_nothing_is_stored_says_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = write_lines(tmp_path / "c.jsonl", {"id": "1", "text": "a pump"})

    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("uptake.text.readers.read", "uptake.store.passages.table.Table.append"):
        with monkeypatch.context() as patched:
            patched.setattr(place, pressed)
            ran = run("index", "build", tmp_path / "s", corpus, "--retriever", "lexical")
        assert (ran.code, ran.err) == (
            130,
            "uptake: interrupted; nothing of it was stored yet: the same command begins again\n",
        )


def test_a_finished_store_takes_no_other_corpus_unasked(run: Run, tmp_path: Path) -> None:
    corpus = write_lines(tmp_path / "c.jsonl", *({"id": f"{n}", "text": f"pump {n}"} for n in range(3)))
    store = tmp_path / "s.store"
    build = ("index", "build", store, "--retriever", "lexical")
    assert run(*build, corpus).code == 0
    same = run(*build, corpus, "--json")
    assert same.code == 0 and same.json["passages_added"] == 0 and same.json["passages_already_there"] == 3
    # The same text under another name is the same corpus.
    assert run(*build, corpus.rename(tmp_path / "d.jsonl")).code == 0
    other = write_lines(tmp_path / "o.jsonl", {"id": "1", "text": "pump 1"}, {"id": "new", "text": "a valve"})
    before = run("index", "info", store, "--json").json["contents"]
    refused(run(*build, other), "does not hold 'new'", "uptake index add")
    assert run("index", "info", store, "--json").json["contents"] == before
    assert run("index", "add", store, other).code == 0
    assert run(*build, other).code == 0
    # What was removed is not put back unasked.
    assert run("index", "remove", store, "new").code == 0
    refused(run(*build, other), "does not hold 'new'")


@pytest.mark.parametrize("verb", ["compare", "stream"])
@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("sift", "needs vectors"),
        ("knn-lm", "holds no tokens"),
        ("retro", "holds no chunks"),
        ("camels", "no trained network"),
        ("fwl", "no trained network"),
        ("mac", "no trained network"),
    ],
)
def test_no_method_is_refused_after_others_have_run(
    run: Run,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    words: str,
    verb: str,
) -> None:
    def adapted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt("a method has run")

    monkeypatch.setattr(Finetune, "adapt", adapted)
    questions = write_lines(tmp_path / "q.jsonl", ASKED)
    streamed = ["--documents", world.data, "--questions", questions]
    more = ["--data", world.data] if verb == "compare" else streamed
    ran = run(verb, "-m", world.model, "-s", world.lexical, *more, "--methods", f"ttt-nn,{method}")
    refused(ran, words)


@pytest.mark.parametrize(
    "space",
    [
        Space(trainable=("all", "top(layers=99)")),
        Space(others=("nonsense=1",)),
        Space(choices=(("order=nearest-first",), ("order=x",))),
    ],
)
def test_a_search_for_settings_tries_none_before_all_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: Space
) -> None:
    store = Datastore.create(tmp_path / "s", retriever="dense", encoder=StubEncoder())
    store.add([Document("s", "the pump is red")])

    def measured(*_: object, **__: object) -> None:
        raise AssertionError("a setting was tried")

    monkeypatch.setattr("uptake.evaluation.tune.run", measured)
    with pytest.raises(BadInput):
        tune(toys.lm(), DOCUMENTS, store=store, space=space, protocol=SHORT)


def test_tokens_of_another_model_are_refused_first(tmp_path: Path) -> None:
    store = lexical(tmp_path / "s", "the pump is red")
    store.read_tokens(TokenKeyer(toys.lm(seed=1)))
    seen: list[int] = []
    with pytest.raises(Mismatch, match="tokens were read by"):
        api.compare(
            toys.lm(), DOCUMENTS, ["ttt-nn", "knn-lm"], store=store, k=1, protocol=SHORT,
            progress=lambda done, total, name: seen.append(done),
        )  # fmt: skip
    assert seen == []
