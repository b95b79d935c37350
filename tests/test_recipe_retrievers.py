"""The recipe of retrievers, whole on a few questions, and a second run that goes on from the first."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import toys
from uptake.lm.loading import load
from uptake.retrievers.reader import Reader
from uptake.tasks.edits import Edit
from uptake.text.types import Passage

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(RECIPES))
    import retrievers

    yield retrievers
    for name in [each for each in sys.modules if each.startswith("retriever")]:
        sys.modules.pop(name)


def test_the_prior_of_a_mixture_is_as_sure_as_the_retriever_is_right(recipe: Any) -> None:
    import retriever_mixtures

    scores = np.array([[9.0, 1.0, 0.0, 0.0, 0.0, 0.0]] * 4)
    assert retriever_mixtures.prior_temperature(scores, [0, 0, 0, 0]) == min(retriever_mixtures.PRIORS)
    assert retriever_mixtures.prior_temperature(scores, [0, 1, 2, 3]) == max(retriever_mixtures.PRIORS)


def test_changes_are_searched_by_their_names_and_asked_after_either_corpus(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import retriever_versions

    asked = "In the Python package hub, what is the default value of `deep` in `Api.walk`?"
    assert retriever_versions.names_in(asked) == "hub deep Api.walk"
    edit = Edit("hub-2.0/src/api.py#3:Api.walk:default:deep", asked, "no", subject="Api.walk", old="yes")
    passage = Passage(1, "def walk(deep=no)", document="hub-1.0/old/api.py#90:Api.walk")
    assert retriever_versions.is_about(edit, passage)
    assert not retriever_versions.is_about(edit, replace(passage, document="hub-1.0/old/api.py#90:Api.run"))
    assert not retriever_versions.is_about(edit, replace(passage, document="bub-1.0/old/api.py#90:Api.walk"))

    model, fresh = str(tmp_path / "model"), tmp_path / "fresh"
    toys.module(window=512).save_pretrained(model)
    toys.tokenizer().save_pretrained(model)
    (fresh / "updates").mkdir(parents=True)
    words = ["alder", "birch", "cedar"]
    for name, value in (("before", "one"), ("after", "two")):
        lines = [json.dumps({"id": f"{name}/{word}", "text": f"The {word} has {value}."}) for word in words]
        (fresh / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    edits = [{"id": word, "prompt": f"The {word} has", "target": " two", "old": " one"} for word in words]
    (fresh / "updates" / "edits.jsonl").write_text("".join(json.dumps(one) + "\n" for one in edits))
    out = tmp_path / "out.json"
    given = ["versions", "--model", model, "--fresh", str(fresh), "--out", str(out)]
    given += ["--work", str(tmp_path / "work"), "--read", "2"]
    monkeypatch.setattr(sys, "argv", ["retrievers.py", *given])
    recipe.main()
    found = json.loads(out.read_text())
    assert found["edits"] == 3 and found["weights_unchanged"] is True
    assert {name: one["passage_read_holds"] for name, one in found["corpora"].items()} == {
        "before": {"new": 0.0, "old": 1.0},
        "after": {"new": 1.0, "old": 0.0},
    }
    assert set(found["no corpus"]["said"]) == set(found["said_after_less_before"]) == {"new", "old"}


def squad(path: Path) -> None:
    """Write 48 articles of two paragraphs, a question each."""

    def paragraph(title: str, word: str) -> dict[str, Any]:
        asked = {"id": title + word, "question": f"Where in {title} does the {word} grow?"}
        answers = [{"text": f"near house {len(word)}", "answer_start": 0}]
        text = f"In {title} the {word} grows near house {len(word)}."
        return {"context": text, "qas": [{**asked, "answers": answers}]}

    data = [
        {"title": f"town{n}", "paragraphs": [paragraph(f"town{n}", word) for word in ("alder", "birches")]}
        for n in range(48)
    ]
    path.write_text(json.dumps({"version": "1.1", "data": data}))


@pytest.mark.long
def test_the_recipe_answers_and_a_second_run_asks_nothing_again(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = str(tmp_path / "model"), tmp_path / "out.json"
    toys.module(window=1024).save_pretrained(model)
    toys.tokenizer().save_pretrained(model)
    squad(tmp_path / "squad.json")
    given = ["squad", "--model", model, "--encoder", f"lm:{model}", "--squad", str(tmp_path / "squad.json")]
    given += ["--work", str(tmp_path / "work"), "--out", str(out), "--losses", "contrastive", "pdist"]
    given += ["--pool", "8", "--train", "6", "--valid", "4", "--test", "6", "--mixed", "3", "--each", "3"]
    given += ["--passes", "2", "--seeds", "2"]
    monkeypatch.setattr(sys, "argv", ["retrievers.py", *given])
    recipe.main()
    first = json.loads(out.read_text())["answers"]
    assert set(first["systems"]) >= {"BM25", "BM25 + MiniLM", "pdist + BM25", "closed book", "random"}
    assert first["mixtures"]["questions"] == 3
    mixtures = first["mixtures"]["after"]
    assert set(mixtures) == {"BM25 + MiniLM", "contrastive + BM25"}
    for one in mixtures.values():
        parts = [one[part]["questions"] for part in ("best_passage_wrong", "best_passage_right")]
        assert sum(parts) == one["all"]["questions"] == 3
        assert one["prior_temperature"] and "nats" in one["all"]["systems"]["RAG-sequence"]
    assert all(text for one in first["examples"] for text in one.values())
    monkeypatch.setattr(Reader, "say", lambda *_, **__: pytest.fail("asked again"))
    recipe.main()
    again = json.loads(out.read_text())["answers"]
    assert again["systems"] == first["systems"]
    assert again["mixtures"]["after"] == first["mixtures"]["after"]


def test_a_reader_learns_on_training_articles_and_is_judged_on_validation_articles(
    recipe: Any, tmp_path: Path
) -> None:
    import retriever_reader

    model, out = str(tmp_path / "model"), tmp_path / "reader"
    toys.module(window=512).save_pretrained(model)
    toys.tokenizer().save_pretrained(model)
    squad(tmp_path / "squad.json")
    given = ["--model", model, "--squad", str(tmp_path / "squad.json"), "--out", str(out)]
    given += ["--beside", model, "--train", "4", "--valid", "3", "--batch", "2"]
    retriever_reader.main(given)
    found = json.loads((tmp_path / "reader.json").read_text())
    assert found["taught"]["questions"] == 4 and set(found["valid"]) == {"reader", "model"}
    assert load(str(out)).fingerprint != load(model).fingerprint
    retriever_reader.main(given)
    assert json.loads((tmp_path / "reader.json").read_text()) == found, "done once"


def facts(fresh: Path) -> None:
    """Write three passages, and a question about each, in each part."""
    for part in ("train", "valid", "test"):
        (fresh / "facts" / part).mkdir(parents=True)
        names = [f"{part} {word}" for word in ("alder", "birch", "cedar")]
        passages = [{"id": name, "text": f"The {name} is {len(name)} high."} for name in names]
        asked = [
            {"question": f"How high is the {n}?", "answers": [str(len(n))], "document": n, "kind": "height"}
            for n in names
        ]
        for name, some in (("passages", passages), ("questions", asked)):
            (fresh / "facts" / part / f"{name}.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in some))


def test_every_loss_is_asked_which_passage_it_would_prefer(recipe: Any, tmp_path: Path) -> None:
    import retriever_signals

    model, fresh, out = str(tmp_path / "model"), tmp_path / "fresh", tmp_path / "signals.json"
    toys.module(window=512).save_pretrained(model)
    toys.tokenizer().save_pretrained(model)
    facts(fresh)
    given = ["--model", model, "--encoder", f"lm:{model}", "--fresh", str(fresh), "--out", str(out)]
    retriever_signals.main([*given, "--work", str(tmp_path / "work"), "--row", "3"])
    found = json.loads(out.read_text())
    assert found["questions"] == 3 and set(found["right_passage_preferred"]) == {
        "BM25", "MiniLM", "pdist, emdr2, loop", "adist"
    }  # fmt: skip
    assert all(sum(places) == 3 for places in found["place_of_the_preferred"].values())


@pytest.mark.long
def test_what_trains_of_an_encoder_is_compared_and_done_once(recipe: Any, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    import retriever_layers

    from tests import toy_encoders

    model, fresh, out = str(tmp_path / "model"), tmp_path / "fresh", tmp_path / "layers.json"
    toys.module(window=512).save_pretrained(model)
    toys.tokenizer().save_pretrained(model)
    facts(fresh)
    given = ["--encoder", str(toy_encoders.folder_of(tmp_path)), "--fresh", str(fresh), "--out", str(out)]
    given += ["--work", str(tmp_path / "work"), "--seeds", "2", "--train", "3", "--passes", "1"]
    given += ["--query-passes", "1", "--batch", "2", "--every", "1", "--candidates", "2"]
    retriever_layers.main(given)
    found = json.loads(out.read_text())
    arms = [retriever_layers.MATRIX, *retriever_layers.ARMS]
    assert set(found["retrieval"]["systems"]) == {
        "BM25", *arms, *(f"{arm} + BM25" for arm in arms), "MiniLM", "MiniLM + BM25"
    }  # fmt: skip
    assert found["questions"] == {"train": 2, "valid": 3, "test": 3} and found["passages"] == 9
    trainings = len(list((tmp_path / "work").glob("layers-*.npz")))
    retriever_layers.main(given)
    assert json.loads(out.read_text())["retrieval"] == found["retrieval"]
    assert len(list((tmp_path / "work").glob("layers-*.npz"))) == trainings == 3 * (3 + 1) + 2 * 2
    taught = ["--loss", "emdr2", "--model", model, "--template", "{passage} Question: {question} Answer:"]
    retriever_layers.main([*given, *taught, "--arms", arms[0], arms[-1]])
    assert json.loads(out.read_text())["reader_pairs"] > 0
