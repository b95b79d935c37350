"""`uptake train retriever` and the options that search with what it writes."""

from pathlib import Path

import pytest

from cli_world import TOPICS, Run, World, made_fixture, refused, run_fixture, world_fixture, write_lines
from tests import toys
from uptake.store.datastore import Datastore
from uptake.text import readers

__all__ = ["made_fixture", "run_fixture", "world_fixture"]


@pytest.fixture
def hybrid(world: World, tmp_path: Path) -> Path:
    path = tmp_path / "hybrid.store"
    Datastore.create(path, encoder=f"lm:{world.model}").add(readers.read(world.corpus))
    return path


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return write_lines(
        tmp_path / "asked.jsonl",
        *(
            {
                "question": f"What holds the {topic} number {n}?",
                "answers": [f"seal {n}"],
                "document": f"{topic}/{n}",
            }
            for topic in TOPICS[:3]
            for n in range(2)
        ),
    )


def test_a_query_encoder_is_trained_and_searches(
    run: Run, world: World, hybrid: Path, asked: Path, tmp_path: Path
) -> None:
    out = tmp_path / "q.safetensors"
    command = ["train", "retriever", "--store", hybrid, "--questions", asked, "--out", out, "--passes", 2]
    ran = run(*command, "--loss", "contrastive", "--json")
    assert ran.code == 0, ran.err
    assert len(ran.json["training"]) == 2
    by_mark = out.read_bytes()
    ran = run(*command, "-m", world.model, "--valid-questions", asked)
    assert ran.code == 0, ran.err
    assert "pdist on 6 questions" in ran.out and not out.with_name(out.name + ".table").exists()
    assert out.read_bytes() != by_mark

    search = ["index", "search", hybrid, "the pump", "--json"]
    plain, turned = (
        run(*search, "--search-by", "sum"),
        run(*search, "--search-by", "sum", "--query-encoder", out),
    )
    assert plain.code == turned.code == 0, turned.err
    assert plain.json[0]["score"] != turned.json[0]["score"]
    scored = ["compare", "-m", world.model, "-s", hybrid, "--data", world.data, "--suffix", 40, "--limit", 1]
    scored += ["--methods", "in-context", "-k", 1, "--no-leak-filter", "--query-encoder", out]
    assert run(*scored).code == 0


def test_attention_to_passages_in_a_row_trains_where_the_window_holds_them(
    run: Run, world: World, hybrid: Path, asked: Path, tmp_path: Path
) -> None:
    out, wide = tmp_path / "q.safetensors", tmp_path / "wide"
    toys.module(window=4096).save_pretrained(wide)
    toys.tokenizer().save_pretrained(wide)
    command = ["train", "retriever", "--store", hybrid, "--questions", asked, "--out", out, "--loss", "adist"]
    ran = run(*command, "-m", wide)
    assert ran.code == 0, ran.err
    assert "adist on 6 questions" in ran.out and not out.with_name(out.name + ".table").exists()
    refused(run(*command, "-m", world.model), "passages in a row", "the window holds 128", "use pdist")


def test_what_does_not_fit_is_said_in_a_line(
    run: Run, world: World, hybrid: Path, asked: Path, tmp_path: Path
) -> None:
    out = tmp_path / "q.safetensors"
    train = ["train", "retriever", "--out", out]
    refused(run(*train, "--questions", asked), "--store")
    refused(run(*train, "--store", hybrid, "--questions", asked), "--model")
    refused(run(*train, "--store", hybrid, "--questions", asked, "--loss", "near"), "near", "contrastive")
    refused(
        run(*train, "--store", world.lexical, "--questions", asked, "--loss", "contrastive"), "needs vectors"
    )
    refused(run("train", "retro", "--loss", "pdist", "--out", out), "--loss")
    refused(run("train", "retro", "--out", out), "--model")
    refused(run("index", "search", hybrid, "pump", "--query-encoder", out), "no query-encoder at")
    refused(run("index", "search", hybrid, "pump", "--search-by", "near"), "near")


def test_nothing_to_learn_from_is_said_with_the_cure(
    run: Run, world: World, hybrid: Path, asked: Path, tmp_path: Path
) -> None:
    elsewhere = write_lines(
        tmp_path / "q.jsonl", {"question": "What holds the pump?", "answers": ["a seal"], "document": "none"}
    )
    train = ["train", "retriever", "--out", tmp_path / "q.safetensors"]
    marked = run(*train, "--store", hybrid, "--questions", elsewhere, "--loss", "contrastive")
    refused(marked, "none of 1 has two candidates", "name documents of the store in the questions")
    empty = tmp_path / "empty.store"
    Datastore.create(empty, encoder=f"lm:{world.model}")
    refused(
        run(*train, "--store", empty, "--questions", asked, "-m", world.model),
        "no passage is found for any of 6 questions",
        f"uptake index add {empty}",
    )
