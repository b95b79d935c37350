"""What a command says when it is interrupted or goes on: what is there, and nothing that is not."""

from pathlib import Path

import pytest

from cli_world import Run, World, made_fixture, run_fixture, world_fixture, write_lines  # noqa: F401
from uptake.evaluation.journal import Journal

ASKED = {"id": "q", "question": "a?", "answers": ["b"], "document": "test/pump"}


def pressed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("verb", ["eval", "stream"])
def test_nothing_is_said_to_be_saved_before_anything_is(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    questions = write_lines(tmp_path / "q.jsonl", ASKED)
    given = {
        "eval": ["--data", world.data, "--method", "dynamic-evaluation"],
        "stream": ["--documents", world.data, "--questions", questions],
    }[verb]
    out = tmp_path / "o.json"
    with monkeypatch.context() as patched:
        patched.setattr("uptake.evaluation.runner.Runner.run", pressed)
        ran = run(verb, "-m", world.model, *given, "--json", out)
    assert (ran.code, ran.err) == (
        130,
        "uptake: interrupted; nothing was finished yet: the same command begins again\n",
    )
    keep = Journal.keep

    def one(*arguments: object) -> None:
        keep(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "keep", one)
        ran = run(verb, "-m", world.model, *given, "--json", out)
    assert ran.code == 130 and str(out) in ran.err and "the same command resumes" in ran.err


def test_a_run_whose_queries_depend_on_each_other_is_not_said_to_resume(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Journal.keep

    def one(*arguments: object) -> None:
        keep(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "keep", one)
    ran = run("eval", "-m", world.model, "-s", world.lexical, "--data", world.data, "-k", "1",
              "--set", "reference=true", "--json", tmp_path / "o.json")  # fmt: skip
    assert ran.code == 130 and "nothing can be resumed with reference=true" in ran.err


def test_tokens_that_are_all_there_are_no_interrupted_run(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = ("index", "tokens", world.lexical, "-m", world.model)
    with monkeypatch.context() as patched:
        patched.setattr("uptake.store.views.view_writer.ViewWriter.append", pressed)
        ran = run(*read)
    assert (ran.code, ran.err) == (
        130,
        "uptake: interrupted; nothing new was stored yet: the same command begins again\n",
    )
    assert run(*read).err == ""
    ran = run(*read)
    assert "resuming" not in ran.err and "were read before: nothing is left to read" in ran.err
    more = write_lines(tmp_path / "n.jsonl", {"id": "n", "text": "something new"})
    assert run("index", "add", world.lexical, more).code == 0
    assert "were read before: reading the other 1" in run(*read).err


def test_intervals_are_explained_where_there_are_some(run: Run, world: World, tmp_path: Path) -> None:
    questions = write_lines(tmp_path / "q.jsonl", ASKED)
    streamed = ("stream", "-m", world.model, "--documents", world.data)
    assert "interval" not in words(run(*streamed, "--questions", questions).out)
    other = write_lines(
        tmp_path / "r.jsonl",
        *(
            ASKED | {"id": topic, "document": f"test/{topic}"}
            for topic in ("pump", "valve", "rotor", "gauge")
        ),
    )
    assert "95 % interval" in words(run(*streamed, "--questions", other).out)
    scored = ("eval", "-m", world.model, "--data", world.data, "--method", "dynamic-evaluation")
    assert "interval" not in words(run(*scored, "--limit", "1").out)
    assert "95 % interval" in words(run(*scored).out)


def words(text: str) -> str:
    return " ".join(text.split())
