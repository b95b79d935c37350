"""A journal answers for its own plan alone: what decides its rows is named by content, not by name."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toys
from stubs import StubEncoder
from uptake import api, methods
from uptake.adaptation.delta import Delta
from uptake.errors import BadInput
from uptake.evaluation.inputs import Inputs
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.report.results import Results
from uptake.report.scored.rows import Scored
from uptake.store import Datastore
from uptake.tasks.questions import Question
from uptake.text.overlap import LeakFilter
from uptake.text.types import Document

TEXTS = ["the pump is reset by hand and then again", "the valve is shut by hand and then again"]
DOCUMENTS = [Document(f"t{number}", text) for number, text in enumerate(TEXTS)]
SHORT = PerQuery(12, 12)


class StoppedError(Exception):
    pass


def store_in(path: Path, *texts: str) -> Datastore:
    made = Datastore.create(path, retriever="dense", encoder=StubEncoder())
    made.add([Document(text[:5], text) for text in texts])
    return made


def opened(path: Path) -> Datastore:
    return Datastore.open(path, encoder=StubEncoder())


def compare(journal: Path | None, **more: Any) -> Results:
    given = {"model": toys.lm(), "documents": DOCUMENTS, "names": ["ttt-nn"], "k": 1} | more
    given.setdefault("settings", ["learning_rate=1e-4"] if "ttt-nn" in given["names"] else [])
    return api.compare(
        given.pop("model"), given.pop("documents"), given.pop("names"), protocol=SHORT, batch=1,
        leak=LeakFilter.off(), journal=journal, **given,
    )  # fmt: skip


def interrupted(journal: Path, **more: Any) -> None:
    def stop(done: int, total: int, name: str) -> None:
        if done == 1:
            raise StoppedError

    with pytest.raises(StoppedError):
        compare(journal, progress=stop, **more)


def bits(results: Results) -> list[float]:
    return [row.bits for row in results.of(Scored)]


def resumed(journal: Path, **more: Any) -> list[int]:
    """Finish an interrupted run; return how many queries it began with."""
    seen: list[int] = []
    compare(journal, progress=lambda done, total, name: seen.append(done), **more)
    return seen[:1]


def test_copies_of_a_store_that_went_apart_are_two_stores(tmp_path: Path) -> None:
    store_in(tmp_path / "a", *TEXTS)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert opened(tmp_path / "a").contents == opened(tmp_path / "b").contents, "a copy holds the same"
    for name, text in (("a", "the pump is reset by nobody"), ("b", "what a valve is for")):
        opened(tmp_path / name).add([Document("new", text)])
    one, other = (opened(tmp_path / name) for name in "ab")
    assert (one.layout.uid, one.version) == (other.layout.uid, other.version)
    assert one.contents != other.contents
    interrupted(tmp_path / "j", store=one)
    with pytest.raises(BadInput, match=r"not the same: store\)"):
        compare(tmp_path / "j", store=other)
    assert resumed(tmp_path / "j", store=opened(tmp_path / "a")) == [1]


def test_every_write_gives_a_store_another_name(tmp_path: Path) -> None:
    store = store_in(tmp_path / "s", *TEXTS)
    seen = [store.contents]
    store.add([Document("new", "something new")])
    seen.append(store.contents)
    store.remove(["the v"])
    seen.append(store.contents)
    store.remove(purge=True)
    seen.append(store.contents)
    assert len(set(seen)) == 4 and opened(tmp_path / "s").contents == seen[-1]
    older = Datastore.open(tmp_path / "s", encoder=StubEncoder(), version=store.version)
    assert older.contents == seen[-1]
    # Nothing new: nothing is written, and the name stays.
    store.add([Document(TEXTS[0][:5], TEXTS[0])])
    assert store.contents == seen[-1]


def test_a_group_alone_tells_stores_apart(tmp_path: Path) -> None:
    store_in(tmp_path / "a", *TEXTS)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name, group in (("a", "g"), ("b", "h")):  # the leak filter goes by it; no passage's id does
        opened(tmp_path / name).add([Document("new", "the same text", group)])
    assert opened(tmp_path / "a").contents != opened(tmp_path / "b").contents


def _trained(seed: int) -> Any:
    spec = methods.find("fwl")
    lm = toys.lm()
    return replace(spec, method=spec.method.with_network(spec.method.fresh(lm, seed)))


CHANGES: dict[str, tuple[str, Callable[[], dict[str, Any]], Callable[[], dict[str, Any]]]] = {
    "weights": ("model", dict, lambda: {"model": toys.lm(seed=1)}),
    "seed": ("seed", dict, lambda: {"seed": 1}),
    "text under the same id": (
        "documents",
        dict,
        lambda: {"documents": [DOCUMENTS[0], replace(DOCUMENTS[1], text="another text, as long as that")]},
    ),
    "questions": (
        "questions",
        lambda: {"documents": Inputs(tuple(DOCUMENTS), (Question("q", "a?", ("b",)),))},
        lambda: {"documents": Inputs(tuple(DOCUMENTS), (Question("q", "a?", ("c",)),))},
    ),
    "a setting": ("methods", dict, lambda: {"settings": ["ttt-nn.learning_rate=1e-3"]}),
    "a network in memory": (
        "networks",
        lambda: {"names": {"fwl": _trained(0)}},
        lambda: {"names": {"fwl": _trained(1)}},
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_the_rows_changes_the_plan(tmp_path: Path, what: str) -> None:
    store = store_in(tmp_path / "s", *TEXTS)
    name, one, other = CHANGES[what]
    interrupted(tmp_path / "j", store=store, **one())
    with pytest.raises(BadInput, match=rf"1 records; not the same: {name}\)"):
        compare(tmp_path / "j", store=store, **other())
    assert resumed(tmp_path / "j", store=store, **one()) == [1]


def test_a_model_folder_changed_in_place_is_another_model(tmp_path: Path) -> None:
    from uptake.lm.loading import load

    toys.module(seed=0, window=64).save_pretrained(tmp_path / "m")
    toys.tokenizer().save_pretrained(tmp_path / "m")
    store = store_in(tmp_path / "s", *TEXTS)
    interrupted(tmp_path / "j", store=store, model=load(str(tmp_path / "m")))
    config = tmp_path / "m" / "config.json"
    before = config.read_text()
    config.write_text(before.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-03'))
    assert config.read_text() != before
    with pytest.raises(BadInput, match=r"not the same: model\)"):
        compare(tmp_path / "j", store=store, model=load(str(tmp_path / "m")))
    config.write_text(before)
    assert resumed(tmp_path / "j", store=store, model=load(str(tmp_path / "m"))) == [1]


def test_a_model_that_has_read_is_another_than_its_base(tmp_path: Path) -> None:
    base = toys.lm()
    name, weight = next(iter(base.module.named_parameters()))
    adapted = base.overlay(Delta.dense(base.fingerprint, {name: weight.detach() + 1}))
    assert adapted.fingerprint == base.fingerprint
    names = {"names": ["base"]}
    interrupted(tmp_path / "j", model=base, **names)
    with pytest.raises(BadInput, match=r"not the same: model\)"):
        compare(tmp_path / "j", model=adapted, **names)


def test_a_file_that_a_setting_names_is_named_by_what_it_holds(tmp_path: Path) -> None:
    from uptake.evaluation.identity import files_in

    (tmp_path / "w").write_bytes(b"one")
    settings = {"parts": ({"weights": str(tmp_path / "w")}, {"order": "nearest-first"})}
    ((_, before),) = files_in(settings)
    (tmp_path / "w").write_bytes(b"two")
    ((_, after),) = files_in(settings)
    assert before != after
    folder = tmp_path / "reader"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"one")
    ((_, before),) = files_in({"reader": str(folder)})
    (folder / "model.safetensors").write_bytes(b"two")
    ((_, after),) = files_in({"reader": str(folder)})
    assert before != after


def test_tokens_read_anew_by_other_weights_are_another_plan(tmp_path: Path) -> None:
    from uptake.methods.knn_lm.keys import TokenKeyer

    store = store_in(tmp_path / "s", *TEXTS)
    lm = toys.lm()
    store.read_tokens(TokenKeyer(lm))
    names = {"names": ["knn-lm"], "model": lm, "settings": ["knn-lm.neighbours=4"]}
    interrupted(tmp_path / "j", store=store, **names)
    store.read_tokens(TokenKeyer(lm), fresh=True)
    with pytest.raises(BadInput, match=r"not the same: store\)"):
        compare(tmp_path / "j", store=opened(tmp_path / "s"), **names)


def test_chunks_and_cached_lists_of_a_copy_are_not_taken_for_this_stores(tmp_path: Path) -> None:
    store_in(tmp_path / "a", *TEXTS)
    encode = toys.lm().tokenizer
    opened(tmp_path / "a").read_chunks(encode, length=4)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    fingerprints = []
    for name, text in (("a", "the pump is reset by nobody"), ("b", "what a valve is for, and then")):
        store = opened(tmp_path / name)
        store.add([Document("new", text)])
        store.read_chunks(encode, length=4)
        fingerprints.append(store.source("", document_id="x").chunks(encode.fingerprint).fingerprint)
    assert fingerprints[0] != fingerprints[1]
