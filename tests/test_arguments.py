"""From Python a wrong argument is one line that names it and the cure, and nothing is lost by it."""

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import toys
import uptake
from cli_world import TOPICS, text, write_lines
from uptake import editing
from uptake.errors import BadInput
from uptake.tasks.edits import Edit

Made = SimpleNamespace


@pytest.fixture
def here(tmp_path: Path) -> Made:
    """A model, a store of six documents and their files."""
    texts = write_lines(tmp_path / "d.jsonl", *({"id": t, "text": text(t, 1)} for t in TOPICS))
    asked = write_lines(tmp_path / "q.jsonl", {"question": "?", "answers": ["a"], "document": "pump"})
    store = uptake.Datastore.create(tmp_path / "store", retriever="lexical")
    store.add(uptake.read(texts))
    edit = Edit("e", "the cat is", "red")
    return Made(folder=tmp_path, model=toys.lm(), store=store, texts=texts, asked=asked, edit=edit)


def documents(made: Made) -> list[uptake.Document]:
    return list(uptake.read(made.texts))


def session(made: Made, *given: Any, **more: Any) -> uptake.Session:
    return uptake.Session(made.model, *given, store=made.store, **more)


RATE = {"settings": ["learning_rate=1e-3"]}
MISTAKES: dict[str, tuple[Callable[[Made], object], str]] = {
    "a model not loaded": (lambda m: uptake.adapt("gpt2", "x", store=m.store), "load it first"),
    "a store not opened": (lambda m: uptake.adapt(m.model, "x", store="my"), "store 'my' is a name: open it"),
    "a model and a store changed round": (lambda m: uptake.adapt(m.store, "x", store=m.model), "a Datastore"),
    "a store that is a model": (lambda m: uptake.compare(m.model, [], store=m.model), "store: a "),
    "no prompt": (lambda m: uptake.adapt(m.model, None, store=m.store, **RATE), "prompt: None is no text"),
    "bytes for a prompt": (lambda m: session(m, **RATE).adapt(b"x"), "prompt: a bytes is no text"),
    "no method": (lambda m: session(m, None), "method None: give its name"),
    "k as text": (lambda m: session(m, "ttt-nn", k="5"), "k = '5': give a whole number"),
    "half a neighbour": (lambda m: session(m, "ttt-nn", k=2.5), "k = 2.5: give a whole number"),
    "one setting": (lambda m: session(m, "ttt-nn", settings="k=1"), "settings 'k=1': give a list, ['k=1']"),
    "a number to read": (lambda m: session(m, **RATE).read(3), "text to read: 3 is no text"),
    "an id that was never read": (lambda m: session(m, **RATE).forget([7]), "id 7: no passage of that id"),
    "a session pickled": (lambda m: pickle.dumps(session(m, **RATE)), "make one in each process"),
    "no file of edits": (lambda m: uptake.read_edits(None), "edits: None is no file; give its path"),
    "no file of questions": (lambda m: uptake.read_questions(None), "questions: None is no file"),
    "a number for files of edits": (lambda m: uptake.read_edits([3]), "edits: 3 is no file"),
    "seconds for a budget": (
        lambda m: uptake.compare(m.model, documents(m), ["base"], budget=5),
        "budget 5: give uptake.Budget(",
    ),
    "seconds for a session's budget": (lambda m: session(m, budget=5, **RATE), "budget 5: give"),
    "one id to forget": (lambda m: session(m, **RATE).forget("a"), "ids 'a': give a list"),
    "a file of documents": (lambda m: uptake.compare(m.model, m.texts, ["base"]), "uptake.read(FILE)"),
    "texts for documents": (lambda m: uptake.compare(m.model, ["x"], ["base"]), "documents: 'x' is none"),
    "no documents": (lambda m: uptake.compare(m.model, None, ["base"]), "documents: None holds none"),
    "one name": (lambda m: uptake.compare(m.model, documents(m), "base"), "methods 'base': give a list"),
    "k of a comparison": (lambda m: uptake.compare(m.model, documents(m), ["base"], k="1"), "k = '1'"),
    "a protocol's name": (
        lambda m: uptake.compare(m.model, documents(m), ["base"], protocol="whole"),
        "protocol 'whole'",
    ),
    "documents and model changed round": (
        lambda m: uptake.compare(documents(m), m.model, ["base"]),
        "model: a list is none",
    ),
    "a stream of a file": (lambda m: uptake.stream(m.model, "d", [], ["online"]), "documents: 'd' holds"),
    "questions not taken out": (
        lambda m: uptake.stream(m.model, documents(m), uptake.read_questions(m.asked), ["online"]),
        "uptake.read_questions(FILE).questions",
    ),
    "one checkpoint": (
        lambda m: uptake.stream(m.model, documents(m), [], ["online"], checkpoints=5),
        "checkpoints 5: give a list",
    ),
    "one query": (lambda m: m.store.search("a pump", k=3), "queries 'a pump': give a list, ['a pump']"),
    "no query": (lambda m: m.store.search([None], k=3), "query: None is no text"),
    "a count of text": (lambda m: m.store.search(["a"], k="3"), "k = '3': give a whole number"),
    "a text to store": (lambda m: m.store.add(["a text"]), "documents: 'a text' is none"),
    "one document to remove": (lambda m: m.store.remove("pump"), "documents 'pump': give a list"),
    "a model's name to edit": (lambda m: uptake.EditedModel(m.folder / "e", "gpt2"), "load it first"),
    "edits of a file": (
        lambda m: uptake.EditedModel(m.folder / "e", m.model, "finetune").make("edits.jsonl"),
        "uptake.read_edits(FILE)",
    ),
    "edits of dictionaries": (
        lambda m: uptake.EditedModel(m.folder / "e", m.model, "finetune").make([{"prompt": "a"}]),
        "edits: a dict is none",
    ),
    "one edit to take back": (
        lambda m: uptake.EditedModel(m.folder / "e", m.model, "finetune").remove("e"),
        "ids 'e': give a list",
    ),
    "a model loaded twice": (lambda m: uptake.load(m.model), "is no name; give a name, a folder"),
    "nothing to read": (lambda m: uptake.read(None), "corpus None: give a list"),
    "no results": (lambda m: uptake.write_json(None, m.folder / "x"), "results: None is none; give what"),
    "one stop word": (lambda m: m.model.generate("x", stop="ab"), "stop 'ab': give a list, ['ab']"),
    "one stop word of a session": (lambda m: session(m, "base").generate("x", stop="ab"), "stop 'ab'"),
    "tokens as text": (lambda m: session(m, "base").generate("x", tokens="3"), "tokens = '3': give a whole"),
    "no prompt to go on from": (lambda m: session(m, "base").generate(None), "prompt: None is no text"),
    "a number to go on from": (lambda m: m.model.generate(5), "prompt: 5 is no text"),
    "texts to score": (lambda m: m.model.score(["x"]), "segments: 'x' is none; give a list of Segment"),
    "a number to score": (lambda m: session(m, **RATE).score_and_read(3), "text: 3 is no text"),
    "no store to open": (lambda m: uptake.Datastore.open(None), "store None: give the name of a folder"),
    "a seed of text": (lambda m: uptake.compare(m.model, [], ["base"], seed="a"), "seed = 'a': give a whole"),
    "a budget below nothing": (lambda m: uptake.Budget(wall_seconds=-1), "budget wall_seconds -1: use 0"),
    "a budget of text": (lambda m: uptake.Budget(tokens="3"), "budget tokens '3': use 0 or more"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_with_its_cure(here: Made, mistake: str) -> None:
    call, words = MISTAKES[mistake]
    before = here.store.count
    with pytest.raises(BadInput) as told:
        call(here)
    assert words in str(told.value) and "\n" not in str(told.value)
    assert uptake.Datastore.open(here.store.path).count == before
    assert not (here.folder / "x").exists()


def test_a_folder_of_edits_can_be_used_after_a_first_call_that_failed(
    here: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("cut short")

    with monkeypatch.context() as patched:
        patched.setattr(editing, "fitting", failing)
        with pytest.raises(RuntimeError, match="cut short"):
            uptake.EditedModel(here.folder / "e", here.model, "finetune").make([here.edit])
    assert list((here.folder / "e").iterdir()), "its lock is left"
    edited = uptake.EditedModel(here.folder / "e", here.model, "finetune", settings=RATE["settings"])
    assert edited.make(iter([here.edit])).ids == ["e"]


def test_one_of_ones_own_passes(here: Made) -> None:
    class Wrapped:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    found = uptake.compare(here.model, documents(here), ["base"], store=Wrapped(here.store), k=0)
    assert found.rows
