"""The recipe of cheap test-time training: its published loop is ours over all weights; its table adds up."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recipe_modules
import toys
import uptake
from uptake.adaptation.optimizers import AdamW
from uptake.lm.base import Segment
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.methods.n_gram import NGram
from uptake.settings import apply


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    yield from recipe_modules.imported("cheap", monkeypatch)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    toys.module(window=256).save_pretrained(tmp_path / "model")
    toys.tokenizer().save_pretrained(tmp_path / "model")
    animals = ("cat", "dog", "fish", "hen", "cow", "pig")
    texts = {
        "store": [
            f"the {each} sat on another {each}'s mat number {n}. " * 3 for n, each in enumerate(animals)
        ],
        "test": [f"a {each} and another {each} went up the hill to sit" for each in animals[:3]],
    }
    for name, own in texts.items():
        rows = [json.dumps({"id": f"{name}{n}", "text": text}) for n, text in enumerate(own)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows))
    return tmp_path


def test_what_it_scores_and_what_it_says_of_it(world: Path, recipe: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(recipe, "LAYERS", 1)
    monkeypatch.setattr(recipe, "K", 2)
    variants = {
        "base": recipe.VARIANTS["base"],
        recipe.PUBLISHED: recipe.Variant(rate=1e-3),
        f"{recipe.PUBLISHED}, random": recipe.Variant(rate=1e-3, drawn=True),
        recipe.CHEAP: recipe._top(1, 1e-3),
        f"{recipe.CHEAP}, random": recipe._top(1, 1e-3, drawn=True),
        "both": recipe._top(1, 1e-3, trained=1, n_gram=True),
    }
    monkeypatch.setattr(recipe, "VARIANTS", variants)
    asked = (str(world / "model"), world, "test", 3, list(variants), "cheap", "cpu")
    lines = list(recipe.score(*asked))
    assert lines[0].startswith("kept ") and len(lines) == 1 + 3 * len(variants)
    (again,) = recipe.score(*asked)
    assert again.startswith("kept 0 passages, 0 tokens")

    lm = uptake.load(str(world / "model"))
    rows = {
        (row.document, row.variant): row
        for row in recipe._journal(world, "test", "cheap").start(lambda row: recipe.load(recipe.Scored, row))
    }
    store = uptake.Datastore.open(world / "lexical.store")
    method = Finetune(optimizer=AdamW(1e-3))
    for document in uptake.read(world / "test.jsonl"):
        (query,) = recipe.PROTOCOL.queries(document)
        segments = [Segment(query.target, query.context)]
        assert rows[document.id, "base"].bits == lm.score(segments)[0].bits
        found, _ = recipe._found(store, document, query, False)
        (state,) = method.adapt([method.init(lm)], lm, [Evidence(found, query.context)], Context())
        bits = method.adapted([state], lm).score(segments)[0].bits
        published = rows[document.id, recipe.PUBLISHED]
        assert published.bits == pytest.approx(bits, rel=1e-4)
        assert published.bits != pytest.approx(rows[document.id, "base"].bits, rel=1e-3)
        assert published.found == 2 and published.tokens > 40
        top = apply(Finetune(), *variants["both"].settings)
        (state,) = top.adapt([top.init(lm)], lm, [Evidence(found.at([0]), query.context)], Context())
        memory, adapted = NGram(), top.adapted([state], lm)
        (looked_up,) = memory.adapt([memory.init(lm)], lm, [Evidence(found, query.context)], Context())
        both = memory.around([looked_up], adapted, lm).score(segments)[0].bits
        assert rows[document.id, "both"].bits == pytest.approx(both, rel=1e-6)
        assert published.seconds == published.train_seconds + 2 * published.score_seconds

    told = recipe.table(world, "test", list(variants), "cheap")
    by = {name: np.array([rows[key, name].bits for key in told["documents"]]) for name in variants}
    own = told["variants"][recipe.CHEAP]
    assert own["gain"] == pytest.approx(1 - by[recipe.CHEAP].sum() / by["base"].sum())
    beyond = (by[f"{recipe.CHEAP}, random"] - by[recipe.CHEAP]).sum()
    theirs = (by[f"{recipe.PUBLISHED}, random"] - by[recipe.PUBLISHED]).sum()
    assert own["beyond_random"].value == pytest.approx(beyond / by["base"].sum())
    assert own["share_of_gain"] == pytest.approx(beyond / theirs)
    more, (low, high) = own["beyond_share"]
    assert more == pytest.approx((beyond - 0.9 * theirs) / by["base"].sum()) and low <= more <= high
    assert len(told["scorings_made_over_those_counted"]) == recipe.RESCORED
    monkeypatch.setitem(variants, "unscored", variants["base"])
    with pytest.raises(uptake.UptakeError, match="score two or more"):
        recipe.table(world, "test", list(variants), "cheap")
