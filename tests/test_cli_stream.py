"""`uptake stream`: what it prints and writes, and what it refuses, in one line each."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli_world import (  # noqa: F401
    Ran,
    Run,
    World,
    made_fixture,
    refused,
    run_fixture,
    world_fixture,
    write_lines,
)
from uptake import read_json
from uptake.methods.finetune import Finetune
from uptake.report.streamed.rows import Answered

DOCUMENTS = [{"id": f"d{n}", "text": f"Pump {n} has {n * 3} valves.", "group": f"g{n % 3}"} for n in range(6)]
QUESTIONS: list[dict[str, Any]] = [
    {"id": f"q{n}", "question": f"How many has pump {n}?", "answers": [f"{n * 3}"], "document": f"d{n}"}
    for n in range(6)
]


@pytest.fixture(name="files")
def files_fixture(tmp_path: Path) -> tuple[Path, Path]:
    return write_lines(tmp_path / "d.jsonl", *DOCUMENTS), write_lines(tmp_path / "q.jsonl", *QUESTIONS)


def streamed(run: Run, world: World, files: tuple[Path, Path], *more: object) -> Ran:
    return run("stream", "-m", world.model, "--documents", files[0], "--questions", files[1],
               "--answer-tokens", "2", "--template", r"{question}\n", *more)  # fmt: skip


def test_the_table_the_report_and_the_page(
    run: Run, world: World, files: tuple[Path, Path], tmp_path: Path
) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    write_lines(files[1], *QUESTIONS, {"id": "odd", "question": "?", "answers": [], "document": "d1"})
    (tmp_path / "other.txt").write_text("Nothing to do with it.")
    ran = streamed(
        run, world, files, "--methods", "online,in-context", "--set", "online.learning_rate=1e-3",
        "--checkpoints", "2,4", "--locality", tmp_path / "other.txt", "--json", out, "--html", page,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    for word in ("base", "online", "in-context", "NLL", "on the first 2", "6 questions after 6 documents"):
        assert word in ran.out
    assert ran.err.count("left out while reading: skipped 1: 1 no answer") == 1
    results = read_json(out)
    assert {row.taken for row in results.of(Answered) if row.method == "online"} == {2, 4, 6}
    assert results.header.settings["online"]["optimizer"]["learning_rate"] == 1e-3  # type: ignore[index]
    assert results.header.protocol["template"] == "{question}\n"
    html = page.read_text()
    assert "How many has pump 0?" in html and "Forgetting: questions on the first documents" in html
    assert not list(tmp_path.glob("*.journal*"))


def test_help_flows(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert "With --store, methods that use neighbours read" in run("stream", "--help").out


def test_json_on_standard_output(run: Run, world: World, files: tuple[Path, Path]) -> None:
    told = streamed(run, world, files, "--json", "-", "--limit", "3", "--method", "online",
                    "--rehearse", files[1]).json  # fmt: skip
    assert told["documents"] == 3 and told["methods"].keys() == {"online"}
    assert told["protocol"]["rehearsal"] == 6
    assert "not in the stream: 3 questions, q3 (document d3)" in told["notes"][0]


def test_a_file_of_questions_may_bring_the_documents(run: Run, world: World, tmp_path: Path) -> None:
    qas = [{"id": "1", "question": "What?", "answers": [{"text": "Pump"}]}]
    squad = {"data": [{"title": "T", "paragraphs": [{"context": "A pump.", "qas": qas}]}]}
    (tmp_path / "dev.json").write_text(json.dumps(squad))
    ran = run("stream", "-m", world.model, "--questions", tmp_path / "dev.json", "--chunk", "16")
    assert ran.code == 0 and "1 question after 1 document;" in ran.out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--methods", ","], ["name at least one"]),
        (["--methods", "onlin"], ["did you mean 'online'"]),
        (["--checkpoints", "two"], ["--checkpoints", "whole numbers"]),
        (["--checkpoints", "7"], ["checkpoint 7", "6 documents"]),
        (["--template", "Q:"], ["{question}"]),
        (["--likelihood", "frist"], ["did you mean first"]),
        (["--chunk", "3"], ["16 or more"]),
        (["--set", "learning_rat=1"], ["learning_rat"]),
        (["--locality", "nowhere.txt"], ["nowhere.txt"]),
        (["--json", "no/where.json"], ["there is no folder"]),
    ],
)
def test_what_cannot_be_is_refused(
    run: Run, world: World, files: tuple[Path, Path], more: list[str], words: list[str]
) -> None:
    refused(streamed(run, world, files, *more), *words)


def test_questions_without_documents_are_refused(run: Run, world: World, files: tuple[Path, Path]) -> None:
    ran = run("stream", "-m", world.model, "--questions", files[1])
    assert ran.code == 2 and "name them with --documents" in ran.err


def test_questions_on_other_documents_are_refused(
    run: Run, world: World, files: tuple[Path, Path], tmp_path: Path
) -> None:
    other = write_lines(tmp_path / "x.jsonl", {"id": "x", "text": "Nothing."})
    ran = run("stream", "-m", world.model, "--questions", files[1], "--documents", other)
    refused(ran, "6 questions", "q0 (document d0)", "with --documents")


def test_documents_passed_over_are_named_with_their_reason(
    run: Run, world: World, files: tuple[Path, Path]
) -> None:
    ran = streamed(run, world, files, "--set", "optimizer=sgd", "--set", "optimizer.learning_rate=1e30")
    assert ran.code == 0 and "note: online: " in ran.err, ran.err
    assert "documents passed over, first d" in ran.err and "learning rate" in ran.err
    assert "KL" not in ran.out, "no unrelated text was given"


def test_an_interrupted_stream_goes_on_from_what_was_kept(
    run: Run, world: World, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.json"
    more = ("--json", out, "--save-every", "2")
    take, taken = Finetune.adapt, []

    def stop(self: Finetune, *given: Any) -> Any:
        taken.append(1)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return take(self, *given)

    monkeypatch.setattr(Finetune, "adapt", stop)
    ran = streamed(run, world, files, *more)
    assert ran.code == 130 and "every 2 documents" in ran.err and not out.exists()
    ran = streamed(run, world, files, *more)
    assert ran.code == 0 and "2 of 6 are done" in ran.err and len(taken) == 4 + 4, ran.err


def test_compare_runs_the_same_protocol_with_its_defaults(
    run: Run, world: World, files: tuple[Path, Path]
) -> None:
    common = ("-m", world.model, "--methods", "online", "--json", "-")
    given = ("--protocol", "stream", "--data", files[0])
    compared = run("compare", *common, *given, "--questions", files[1]).json
    streamed = run("stream", *common, "--documents", files[0], "--questions", files[1]).json
    for told in (compared, streamed):
        for at in (told["methods"]["online"], *told["methods"]["online"]["at"]):
            for name in ("adapt_seconds", "ask_seconds", "retrieve_seconds", "peak_rss_bytes"):
                at.pop(name, None)
        told["protocol"].pop("batch")
    assert compared == streamed and compared["protocol"]["name"] == "stream"
    refused(run("compare", *common, *given), "no question to ask")
    refused(run("cost", "-m", world.model, "--methods", "online", *given), "--protocol stream")


@pytest.mark.long
def test_workers_and_a_store_serve_a_stream(run: Run, world: World, files: tuple[Path, Path]) -> None:
    more = ("--methods", "online,ttt-nn", "-s", world.lexical, "-k", "1", "--json", "-")
    alone, shared = (streamed(run, world, files, *more, "--workers", count).json for count in ("1", "2"))
    for name in ("online", "ttt-nn"):
        mine, theirs = (told["methods"][name] for told in (alone, shared))
        assert mine["nll"] == theirs["nll"] and mine["tokens_trained"] == theirs["tokens_trained"]
    assert alone["methods"]["ttt-nn"]["tokens_trained"] > alone["methods"]["online"]["tokens_trained"]
    assert alone["protocol"]["k"] == "1" and alone["store"]["passages"] > 0
