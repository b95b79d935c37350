"""The recipe of every method on fresh text: what it keeps can be mixed afterwards as `A/B` mixes it."""

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import fresh_layer
import fresh_methods as recipe
import numpy as np
import pytest

import toys
import uptake
from stubs import StubEncoder
from uptake.lm.base import LM, Segment
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.contract.naming import method_specs
from uptake.methods.fwl import FWL
from uptake.text.select import Sift
from uptake.text.types import Found

SETTINGS = ("trainable=top(layers=1)", "optimizer=sgd(learning_rate=0.05)")
VARIANTS = {
    "base": recipe.Variant("base", 0),
    "in-context": recipe.Variant("in-context", 2),
    "ttt-nn": recipe.Variant("ttt-nn", 2, SETTINGS),
    "random": recipe.Variant("ttt-nn", 2, SETTINGS, drawn=True),
    "in-context+n-gram": recipe.Variant("n-gram", 2, onto="in-context"),
}


def write(path: Path, texts: Sequence[str], **more: str) -> None:
    rows = [{"id": f"{path.stem}{n}", "text": text, **more} for n, text in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def gain_of(name: str, lm: LM, folder: Path) -> float:
    """Return the gain of a method over the validation texts, run as it stands."""
    settings = SETTINGS if "ttt-nn" in name else ()
    spec = method_specs([name], settings)[name]
    store = uptake.Datastore.open(folder / "lexical.store")
    bits = base = 0.0
    for document in uptake.read(folder / "valid.jsonl"):
        (query,) = recipe.PROTOCOL.queries(document)
        source = store.source(query.search, document_id=document.id, whole_text=document.text)
        found = spec.select.choose(source, 2, np.random.default_rng(0))
        evidence = Evidence(found, query.context, source)
        (state,) = spec.method.adapt([spec.method.init(lm)], lm, [evidence], Context())
        segments = [Segment(query.target, query.context)]
        bits += spec.method.adapted([state], lm).score(segments)[0].bits
        base += lm.score(segments)[0].bits
    return 1 - bits / base


def test_kept_predictions_mix_as_the_method_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    animals = ("cat", "dog", "fish", "hen", "cow", "pig")
    write(
        tmp_path / "store.jsonl",
        [f"the {each} sat on the {each}'s mat number {n}. " * 3 for n, each in enumerate(animals)],
    )
    write(
        tmp_path / "valid.jsonl",
        [f"a {each} and another {each} went up the hill to sit" for each in animals[:3]],
        twin="",
    )
    lm = toys.lm(window=512)
    monkeypatch.setattr(recipe, "VARIANTS", VARIANTS)
    monkeypatch.setattr(uptake, "load", lambda *_: lm)
    lines = list(recipe.score("toy", tmp_path, "valid", 3, list(VARIANTS)))
    assert len(lines) == 3 * len(VARIANTS)
    assert list(recipe.score("toy", tmp_path, "valid", 3, list(VARIANTS))) == [], "nothing is scored twice"
    found = recipe.table(tmp_path, "valid", [["in-context", "ttt-nn"]])
    assert found["documents"] == 3
    figures = found["all"]["variants"]  # type: ignore[index, call-overload]
    for name, called in (
        ("in-context/ttt-nn", "in-context / ttt-nn"),
        ("in-context+n-gram", "in-context+n-gram"),
    ):
        assert figures[called]["gain"] == pytest.approx(gain_of(name, lm, tmp_path), abs=1e-6), name
    assert figures["base"]["gain"] == 0 and figures["random"]["gain"] != figures["ttt-nn"]["gain"]
    assert "| in-context / ttt-nn |" in recipe._shown(found)


def test_sift_reads_what_was_chosen_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path / "store.jsonl",
        [f"the {each} sat on mat {each} number {n}. " * 3 for n, each in enumerate("abcdef")],
    )
    write(tmp_path / "valid.jsonl", [f"a {each} and {each} went up to sit" for each in "abc"], twin="")
    lm, variants = (
        toys.lm(window=512),
        {
            "base": VARIANTS["base"],
            "ttt-nn": VARIANTS["ttt-nn"],
            "sift": recipe.Variant("ttt-nn", 2, SETTINGS, sift=True),
        },
    )
    monkeypatch.setattr(recipe, "VARIANTS", variants)
    monkeypatch.setattr(uptake, "load", lambda *_: lm)
    with pytest.raises(uptake.UptakeError, match="run `choose` for it"):
        list(recipe.score("toy", tmp_path, "valid", 3, ["base", "sift"]))
    store = uptake.Datastore.create(tmp_path / "hybrid.store", encoder=StubEncoder())
    store.add(uptake.read(tmp_path / "store.jsonl"))
    assert len(list(recipe.choose(tmp_path, "valid", 2, StubEncoder()))) == 2
    assert len(list(recipe.choose(tmp_path, "valid", 3, StubEncoder()))) == 1, "none is chosen twice"
    list(recipe.score("toy", tmp_path, "valid", 3, list(variants)))
    rows = recipe._journal(tmp_path, "valid", "methods").start(lambda row: recipe.load(recipe.Scored, row))
    (method,) = (spec.method for spec in method_specs(["ttt-nn"], SETTINGS).values())
    for document in uptake.read(tmp_path / "valid.jsonl"):
        (query,) = recipe.PROTOCOL.queries(document)
        found = Sift().choose(recipe.source_of(store, document, query), 20, np.random.default_rng(0))
        (state,) = method.adapt([method.init(lm)], lm, [Evidence(found, query.context)], Context())
        wanted = method.adapted([state], lm).score([Segment(query.target, query.context)])[0].bits
        (own,) = (row for row in rows if (row.document, row.variant) == (document.id, "sift"))
        assert own.bits == pytest.approx(wanted, rel=1e-6)


def test_a_layer_is_trained_on_other_packages_and_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, animals = toys.lm(window=512), ("cat", "dog", "fish")
    for part in ("store", "after", "valid"):
        texts = [f"{part} the {each} sat on the {each}'s mat to sleep. " * 5 for each in animals]
        write(tmp_path / f"{part}.jsonl", texts, twin="")
    small = fresh_layer.PROTOCOL.__class__(prefix=100, suffix=60, search=60)
    for module in (fresh_layer, recipe):
        monkeypatch.setattr(module, "PROTOCOL", small)
    monkeypatch.setattr(uptake, "load", lambda *_: lm)
    path = tmp_path / "layer.safetensors"
    given = Namespace(
        model="toy", data=tmp_path, documents=3, valid=1, minutes=9.0, characters=160, save_every=10,
        start=None, out=path,
    )  # fmt: skip
    told = fresh_layer.learn(given)
    assert [point["step"] for point in told["points"]] == [0, 3] and told["characters"] == 160
    again = fresh_layer.learn(given)
    assert again["points"][-1]["valid"] == told["points"][-1]["valid"], (
        "a finished training is not begun anew"
    )
    further = Namespace(**{**vars(given), "start": path, "out": tmp_path / "further.safetensors", "valid": 0})
    assert fresh_layer.learn(further)["goes_on"], "a layer may be trained on"
    assert path.read_bytes() != further.out.read_bytes()
    names = ["base", "fwl", "fwl that learns nothing"]
    with pytest.raises(uptake.UptakeError, match="give --weights"):
        list(recipe.score("toy", tmp_path, "valid", 2, names))
    list(recipe.score("toy", tmp_path, "valid", 2, names, weights=path))
    rows = recipe._journal(tmp_path, "valid", "methods").start(lambda row: recipe.load(recipe.Scored, row))
    for variant, pace in (("fwl", 1.0), ("fwl that learns nothing", 0.0)):
        method = FWL(weights=str(path), stretch=32, rate_scale=pace, base_weight=0.5, own_prefix=True)
        for row in (row for row in rows if row.variant == variant):
            (document,) = (each for each in uptake.read(tmp_path / "valid.jsonl") if each.id == row.document)
            prefix, target = document.text[:100], document.text[100:160]
            evidence = [Evidence(Found((), (), ()), prefix)]
            (state,) = method.adapt([method.init(lm)], lm, evidence, Context())
            (wanted,) = method.adapted([state], lm).score([Segment(target, prefix)])
            assert row.bits == pytest.approx(wanted.bits, abs=1e-6)


def test_a_step_of_retrofit_trains_the_new_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = toys.lm(window=64)
    monkeypatch.setattr(uptake, "load", lambda *_: lm)
    monkeypatch.setattr(fresh_layer, "TOKENS", 64)
    one, both = (fresh_layer.retrofit_step("toy", layers) for layers in ("1", "1,2"))
    assert 0 < one["weights"] < both["weights"] and one["tokens"] == 64 and one["cpu_seconds"] > 0
    assert not any(each.grad is not None for each in lm.module.parameters())
