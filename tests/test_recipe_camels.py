"""The recipe of CaMeLS at its smallest: it runs, goes on, and its worlds keep what they promise."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import recipe_modules
import toys
from uptake.text.types import Passage


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    yield from recipe_modules.imported("camels", monkeypatch)


def test_names_of_one_split_never_occur_in_another_and_documents_tell_what_is_asked(recipe: Any) -> None:
    names = recipe.Names.syllables()
    worlds = {split: recipe.common.world(names, 60, 2, split) for split in ("train", "valid", "test")}
    called = {split: set(names.pairs(60, split, 0)) for split in worlds}
    assert not (called["train"] & called["test"] or called["train"] & called["valid"])
    assert not called["valid"] & called["test"]
    made = worlds["test"]
    oracle = recipe.common.StatedAnswers({question.document: question.answers for question in made.questions})
    for document, question, name in zip(
        made.documents, made.questions, names.pairs(60, "test", 0), strict=True
    ):
        assert name in document.text and name in question.text and question.document == document.id
        spans = [(at, at + 1) for at in range(len(document.text))]
        found = oracle.of(Passage(0, document.text, document=document.id), spans).tolist()
        told = "".join(letter for letter, weight in zip(document.text, found, strict=True) if weight)
        assert told == question.answers[0]


@pytest.mark.long
def test_the_recipe_runs_and_goes_on(recipe: Any, tmp_path: Path, capsys: Any) -> None:
    small = "--tiny --larger --episodes 1 --valid 3 --test 4 --long 5 --seeds 2 --factors 0.5 1 --most-kl 100"
    places = {"work": tmp_path / "work", "out": tmp_path / "out.json", "plots": tmp_path}
    asked = [*small.split(), *(f"--{name}={path}" for name, path in places.items())]
    recipe.main(asked)
    told = json.loads((tmp_path / "out.json").read_text())
    methods = {row["way"] for row in told["rows"]}
    assert {"uniform", "uniform + re-tune", "salient spans", "TF-IDF", "CaMeLS", "oracle"} <= methods
    assert {row["stream"] for row in told["rows"]} == {
        f"{size} {part}" for size in ("small", "large") for part in ("valid 3", "test 4")
    }
    runs = [(row["stream"], row["way"], row["rate"], row["seed"]) for row in told["rows"]]
    assert len(set(runs)) == len(runs)
    # Every way at both rates on validation; on each of two test worlds one rate of most, both of two methods.
    assert len(runs) == sum(2 * len(some) + 2 * (len(some) + 2) for some in (methods, recipe.LARGER))
    assert {(row["way"], row["taken"]) for row in told["kept"]} == {("uniform", 5), ("CaMeLS", 5)}
    assert "test, 4 documents" in capsys.readouterr().out
    assert (tmp_path / "camels-kept.svg").exists() and (tmp_path / "camels-small-test.svg").exists()
    written = (tmp_path / "work" / "rows.jsonl").read_bytes()
    recipe.main(asked)
    assert json.loads((tmp_path / "out.json").read_text()) == told
    assert (tmp_path / "work" / "rows.jsonl").read_bytes() == written, "what was done is not done again"


def test_a_grown_model_computes_what_the_small_one_does_and_all_of_it_can_learn(recipe: Any) -> None:
    grown, small_model = recipe.grown, recipe.common.small_model
    tokenizer = recipe.common.toy_tokenizer(recipe.Names.syllables())
    small = small_model(tokenizer, 32, 2, heads=2).double()
    with torch.no_grad():
        for value in small.parameters():
            value += 0.1 * torch.randn_like(value)  # norms that are not 1, matrices far from nought
    large = grown(small, small_model(tokenizer, 48, 4, heads=3).double())
    ids = torch.randint(0, len(tokenizer), (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        told, expected = large(ids).logits, small(ids).logits
    torch.testing.assert_close(told, expected, rtol=1e-4, atol=1e-4)  # the norms' epsilon is what differs
    optimizer = torch.optim.AdamW(large.parameters(), 1e-3)
    for _ in range(3):  # what writes nothing must write before what it reads can learn
        optimizer.zero_grad()
        large(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    assert all(value.grad.abs().max() > 0 for value in large.parameters())
    with pytest.raises(ValueError, match="heads of 16"):
        grown(small, small_model(tokenizer, 48, 4, heads=2))


def test_answers_at_equal_kl_lie_between_two_rates(recipe: Any) -> None:
    def row(way: str, rate: float, kl: float, right: list[int]) -> dict[str, Any]:
        shares = {"exact": sum(right) / 4, "base": {"exact": 0.0}}
        pairs = [(0.0, float(each)) for each in right]
        return {"way": way, "rate": rate, "kl": kl, "seed": 0, "right": pairs, **shares}

    rows = [
        row("uniform", 2.0, 0.4, [1, 1, 0, 0]),
        row("uniform", 1.0, 0.2, [1, 0, 0, 0]),
        row("CaMeLS", 1.0, 0.3, [1, 1, 1, 1]),
    ]
    found = recipe.figures.equal_kl(rows, [0.1, 0.3])
    told = {(each["kl"], each["way"]): each for each in found}
    assert told[0.1, "uniform"]["exact"] == 0.125 and told[0.3, "uniform"]["exact"] == 0.375
    assert told[0.1, "CaMeLS"]["exact"] == pytest.approx(1 / 3, abs=1e-4)
    assert told[0.3, "CaMeLS"]["times uniform"] == pytest.approx(1 / 0.375, abs=1e-3)
    assert told[0.3, "uniform"]["times uniform"] == 1.0
    assert (0.4, "uniform") in told and (0.4, "CaMeLS") not in told, "nobody is compared where it never was"


def squad(articles: int) -> dict[str, Any]:
    paragraphs = [
        [f"In {1900 + 7 * a + p} the town of number {a} had {p} inns.", f"{p} inns"]
        for a in range(articles)
        for p in range(2)
    ]
    return {
        "data": [
            {
                "title": f"town {a}",
                "paragraphs": [
                    {
                        "context": context,
                        "qas": [{"id": context, "question": "what had it?", "answers": [{"text": answer}]}],
                    }
                    for context, answer in paragraphs[2 * a : 2 * a + 2]
                ],
            }
            for a in range(articles)
        ]
    }


@pytest.mark.long
def test_the_recipe_on_squad_runs_and_keeps_articles_apart(recipe: Any, tmp_path: Path, capsys: Any) -> None:
    lm = toys.lm(window=256)
    recipe.common.save(lm.module, lm.tokenizer, tmp_path / "model")
    (tmp_path / "squad.json").write_text(json.dumps(squad(18)))
    texts = [json.dumps({"id": str(n), "text": f"the inn number {n} was full"}) for n in range(24)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts))
    on_squad = importlib.import_module("camels_squad")
    found = on_squad.read_questions(tmp_path / "squad.json")
    titles = on_squad.Split.of(found)
    parts = (titles.teaching, titles.valid, titles.meta, titles.test)
    assert [len(part) for part in parts] == [3, 3, 6, 6] and len(set().union(*parts)) == 18
    made, other = (on_squad.part(found, titles.test, (), 6, 1, seed) for seed in (0, 1))
    orders = [[document.id for document in each.documents] for each in (made, other)]
    assert len({*orders[0], *orders[1]}) == 12, "each seed has paragraphs of its own"
    assert {document.group for document in made.documents} == set(titles.test)
    oracle, first = on_squad.AnswersByParagraph.by(made), made.documents[0]
    spans = [(at, at + 1) for at in range(len(first.text))]
    told = oracle.of(Passage(0, first.text, document=first.id), spans).tolist()
    assert "".join(letter for letter, weight in zip(first.text, told, strict=True) if weight) in (
        made.questions[0].answers
    )
    small = "--tokens 1e3 --width 16 --batches 1 --passes 1 --places-passes 1 --published-passes 1"
    small += " --most-rates 1 --documents 6 --seeds 2"
    places = {
        "model": "model",
        "squad": "squad.json",
        "text": "texts.jsonl",
        "work": "work",
        "out": "out.json",
    }
    asked = [part for name, place in places.items() for part in (f"--{name}", str(tmp_path / place))]
    on_squad.main([*asked, *small.split()])
    told = json.loads((tmp_path / "out.json").read_text())
    rows = told["rows"]
    assert len(rows) == 3 * len(on_squad.METHODS), (
        "each method on the validation stream, and on the test stream in two orders"
    )
    assert {(row["stream"], row["seed"]) for row in rows} == {
        ("large valid", 0),
        ("large test", 0),
        ("large test", 1),
    }
    assert "CaMeLS from places less uniform (rate 0.0003, KL" in capsys.readouterr().out
    for part in ("valid", "test"):
        title = f"large {part}: each method at its best rate"
        methods = {gap["less"] for gap in told["differences"] if gap["compared"] == title}
        assert methods == {*on_squad.METHODS}


def test_answers_at_one_kl_lie_between_those_of_the_rates_beside_it(recipe: Any) -> None:
    figures = importlib.import_module("squad_figures")
    curve = [
        {"way": "uniform", "rate": rate, "kl": kl, "answers": [["a", nats, 2]]}
        for rate, kl, nats in ((0.2, 0.8, 6.0), (0.1, 0.4, 10.0))
    ]
    found = figures.at_kl([curve], "uniform", 0.5)
    assert found["kl"] == 0.5 and found["rate"] == pytest.approx(0.125)
    assert [(group, round(nats, 9), tokens) for group, nats, tokens in found["answers"]] == [("a", 9.0, 2)]
    assert figures.at_kl([curve], "uniform", 0.9) is None and figures.at_kl([curve], "TF-IDF", 0.5) is None
