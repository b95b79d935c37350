"""People's files on the command line: what is read, what is left out, and the options that say how."""

import json
from pathlib import Path

import pytest

import good_files
from cli_world import Run, World, made_fixture, run_fixture, world_fixture  # noqa: F401


def test_what_is_left_out_of_a_folder_is_counted_and_named(run: Run, tmp_path: Path) -> None:
    corpus = tmp_path / "in"
    corpus.mkdir()
    for name, content in (
        ("a.txt", b"plain text"),
        ("b.pdf", good_files.pdf(["the pump is on this page"])),
        ("c.xlsx", b"PK"),
        ("d.pdf", b"%PDF broken"),
        ("e.csv", b"body,n\nthe valve,1\n"),
    ):
        (corpus / name).write_bytes(content)
    ran = run("index", "build", tmp_path / "s", corpus, "--retriever", "lexical")
    assert ran.code == 0 and "added 2 passages of 2 documents" in ran.out
    first, *others = ran.err.splitlines()
    assert first.startswith(
        "left out: skipped 3: 1 of no format that is read (.xlsx), 1 broken PDF, 1 no text"
    )
    assert any(line.endswith("no text among its keys body, n: name one with --text-key") for line in others)
    [found] = run("index", "search", tmp_path / "s", "pump", "--json").json
    assert (found["document"], found["place"]) == ("in/b.pdf", "page 1")
    assert "in/b.pdf, page 1 @ 0" in run("index", "search", tmp_path / "s", "pump").out
    added = run("index", "add", tmp_path / "s", corpus / "e.csv", "--text-key", "body", "--json")
    assert added.json["passages_added"] == 1 and added.json["skipped"] == {}


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--max-document-bytes", "10", "longer than 10 bytes; --max-document-bytes allows more"),
        ("--encoding", "klingon", "encoding 'klingon': name one that extends ASCII"),
        ("--max-parse-bytes", "1", "--max-parse-bytes 1: use 1073741824 or more"),
        ("--text-key", "", "text_key is empty"),
    ],
)
def test_limits_are_options(run: Run, tmp_path: Path, option: str, value: str, reason: str) -> None:
    (tmp_path / "a.txt").write_text("more than ten bytes")
    ran = run("index", "build", tmp_path / "s", tmp_path / "a.txt", "--retriever", "lexical", option, value)
    assert ran.code == 2 and reason in ran.err and ran.err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_every_command_that_reads_text_reads_it_by_another_key(
    run: Run,
    world: World,
    tmp_path: Path,
) -> None:
    records = [json.loads(line) for line in world.data.read_text().splitlines()]
    rows = [{"id": one["id"], "body": one["text"]} for one in records]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    asked = ("eval", "-m", world.model, "--data", tmp_path / "a.json", "--method", "base", "--limit", "1")
    refused = run(*asked)
    assert refused.code == 2 and "among its keys id, body: name one with --text-key" in refused.err
    assert run(*asked, "--text-key", "body").code == 0
