"""`uptake train`, on a toy method that stands in for any learned one."""

import shutil
from pathlib import Path

import pytest
import torch

from cli_world import Run, World, made_fixture, refused, run_fixture, world_fixture, write_lines
from test_train import LearnedMemory
from uptake import methods
from uptake.adaptation.tensors import read_tensors
from uptake.methods.contract.learned import learner_of
from uptake.methods.contract.method import MethodSpec
from uptake.methods.contract.naming import method_specs
from uptake.methods.fwl import FWL
from uptake.methods.retro import Retro
from uptake.text.chunks.view import BoundChunks

__all__ = ["made_fixture", "run_fixture", "world_fixture"]


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `memory` be a method like any other."""
    found, names = methods.find, methods.names
    monkeypatch.setattr(methods, "names", lambda: [*names(), "memory"])
    monkeypatch.setattr(
        methods, "find", lambda name: MethodSpec(LearnedMemory()) if name == "memory" else found(name)
    )


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "d.jsonl", *({"id": str(i), "text": f"word{i} " * 9} for i in range(8)))


def test_it_trains_and_says_how_it_went(run: Run, world: World, lines: Path, tmp_path: Path) -> None:
    out = tmp_path / "n.safetensors"
    command = ["train", "memory", "-m", world.model, "--documents", lines, "--out", out, "--save-every", 4]
    ran = run(*command, "--valid-documents", lines, "--passes", 2, "--json")
    assert ran.code == 0 and "resuming" not in ran.err, ran.err
    assert [point["step"] for point in ran.json["checkpoints"]] == [0, 4, 8, 12, 16]
    assert ran.json["best"]["valid"] == min(point["valid"] for point in ran.json["checkpoints"])
    assert out.is_file() and not out.with_name(out.name + ".training").exists()
    table = run(*command, "--limit", 3)
    assert "resuming" not in table.err, "there was nothing to resume"
    assert table.code == 0 and "> " in table.out and str(out) in table.err


def test_an_interrupted_training_goes_on(
    run: Run, world: World, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "memory", "-m", world.model, "--documents", lines, "--save-every", 2]
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    assert run(*command, "--out", whole).code == 0
    calls, gradients = [], LearnedMemory.gradients

    def stop(self: LearnedMemory, *arguments: object) -> object:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return gradients(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LearnedMemory, "gradients", stop)
    ran = run(*command, "--out", halted)
    assert ran.code == 130 and "same command" in ran.err and not halted.exists()
    lines.write_text(lines.read_text().replace("word3", "other"))
    refused(run(*command, "--out", halted), "other settings or episodes", "--fresh")
    lines.write_text(lines.read_text().replace("other", "word3"))
    ran = run(*command, "--out", halted)
    assert ran.code == 0 and "4 of 8 are done" in ran.err
    one, other = (read_tensors(path, "network") for path in (whole, halted))
    assert one[0] == other[0] and torch.equal(one[1]["logit"], other[1]["logit"])


def test_a_training_interrupted_before_its_first_checkpoint_says_so(
    run: Run, world: World, lines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LearnedMemory, "gradients", stop)
    ran = run("train", "memory", "-m", world.model, "--documents", lines, "--out", tmp_path / "n")
    assert ran.code == 130 and "nothing was saved in the first 100 steps" in ran.err


def test_bad_input_is_one_line(run: Run, world: World, lines: Path, tmp_path: Path) -> None:
    command = ["train", "memory", "-m", world.model, "--documents", lines, "--out", tmp_path / "n"]
    for wrong, said in {
        ("train", "ttt-nn", *command[2:]): "no network to train; these have: ",
        ("train", "memry", *command[2:]): "did you mean 'memory'",
        (*command, "--set", "scal=1"): "did you mean 'scale'",
        (*command, "--documents", tmp_path / "none.jsonl"): "none.jsonl",
        (*command[:4], "--out", tmp_path / "n"): "no episodes",
        ("train", "camels", *command[2:], "--valid-documents", lines): "no questions to learn from",
    }.items():
        ran = run(*wrong)
        assert ran.code == 2 and said in ran.err and len(ran.err.strip().splitlines()) == 1, (wrong, ran.err)


def test_retro_is_trained_beside_a_store_and_read_with_it(run: Run, world: World, tmp_path: Path) -> None:
    out = tmp_path / "retro.safetensors"
    store, model = ("-s", world.dense), ("-m", world.model)
    command = ["train", "retro", *model, *store, "--documents", world.corpus, "--out", out]
    small = ("--set", "chunk=16", "--set", "episode_tokens=64")
    refused(run(*command, *small), "uptake index chunks")
    assert run("index", "chunks", world.dense, *model, "--length", 16).code == 0
    refused(run(*command[:4], *command[6:], *small), "name one with --store")
    ran = run(*command, *small, "--limit", 4, "--valid-documents", world.data, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["best"]["valid"] < ran.json["checkpoints"][0]["valid"]
    ways = {"retro": "weights", "retro-random": "weights", "ttt-nn+retro": "retro.weights"}
    given = [word for way, name in ways.items() for word in ("--set", f"{way}.{name}={out}")]
    compared = run("compare", *model, *store, "--data", world.data, "--methods", ",".join(ways), "-k", 2,
                   *given, "--limit", 2, "--no-leak-filter", "--json", "-")  # fmt: skip
    assert compared.code == 0, compared.err
    assert (
        run("generate", *model, *store, "--method", "retro", "--set", f"weights={out}", "the pump").code == 0
    )


def test_retro_finds_neighbours_once_however_often_it_is_interrupted(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("-m", world.model)
    assert run("index", "chunks", world.dense, *model, "--length", 16).code == 0
    command = ["train", "retro", *model, "-s", world.dense, "--documents", world.corpus, "--limit", 4,
               "--set", "chunk=16", "--set", "episode_tokens=64", "--save-every", 2]  # fmt: skip
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    assert run(*command, "--out", whole).code == 0
    assert not list(tmp_path.glob("whole.*"))
    searches, steps, search, gradients = [], [], BoundChunks.search, Retro.gradients

    def searching(self: BoundChunks, *arguments: object) -> object:
        searches.append(1)
        return search(self, *arguments)  # type: ignore[arg-type]

    def stop(self: Retro, *arguments: object) -> object:
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return gradients(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(BoundChunks, "search", searching)
    monkeypatch.setattr(Retro, "gradients", stop)
    assert run(*command, "--out", halted).code == 130 and searches
    searches.clear()
    assert run(*command, "--out", halted).code == 0 and not searches
    one, other = (read_tensors(path, "network")[1] for path in (whole, halted))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list(tmp_path.glob("halted.*"))
    # Begun anew it looks again.
    steps.clear()
    assert run(*command, "--out", halted).code == 130
    steps.extend([1] * 9)
    searches.clear()
    assert run(*command, "--out", halted, "--fresh").code == 0 and searches


def test_a_training_does_not_go_on_with_another_store_or_model(
    run: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(world.model, tmp_path / "model")
    model = ("-m", folder)
    command = ["train", "fwl", *model, "-s", world.dense, "--documents", world.corpus, "--limit", 4,
               "--save-every", 1, "--out", tmp_path / "out"]  # fmt: skip
    steps, gradients = [], FWL.gradients

    def stop(self: FWL, *arguments: object) -> object:
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return gradients(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(FWL, "gradients", stop)
    assert run(*command).code == 130
    before = (tmp_path / "out.training").read_bytes()
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-03'))
    refused(run(*command), "out.training", "--fresh")
    (folder / "config.json").write_text(config)
    copy = shutil.copytree(world.dense, tmp_path / "copy.store")
    more = write_lines(tmp_path / "more.jsonl", {"id": "new", "text": "something new"})
    assert run("index", "add", world.dense, more).code == 0
    refused(run(*command), "out.training", "--fresh")
    assert (tmp_path / "out.training").read_bytes() == before
    shutil.rmtree(world.dense)
    copy.rename(world.dense)
    assert run(*command).code == 0 and len(steps) > 3


def test_retro_goes_on_from_a_network_to_answer_questions(run: Run, world: World, tmp_path: Path) -> None:
    model, first, second = ("-m", world.model), tmp_path / "first", tmp_path / "second"
    assert run("index", "chunks", world.dense, *model, "--length", 16).code == 0
    shape = ("-s", world.dense, "--set", "chunk=16", "--set", "episode_tokens=100", "--save-every", 1)
    ran = run("train", "retro", *model, *shape, "--documents", world.corpus, "--limit", 2, "--out", first)
    assert ran.code == 0, ran.err
    asked = write_lines(
        tmp_path / "q.jsonl",
        *(
            {"question": f"What is {topic} number 1?", "answers": ["a part"], "document": "d"}
            for topic in "ab"
        ),
    )
    command = ("train", "retro", *model, "--questions", asked, "--out", second, "--json")
    started = run(*command, *shape, "--start", first, "--valid-questions", asked)
    assert started.code == 0, started.err
    fresh = run(*command, *shape, "--valid-questions", asked)
    assert started.json["checkpoints"][0]["valid"] != fresh.json["checkpoints"][0]["valid"], (
        "one began elsewhere"
    )
    for wrong, said in (
        ((*shape, "--set", "heads=1", "--start", first), "another shape"),
        ((*shape, "--start", tmp_path / "none"), "none"),
        ((*shape[2:],), "name one with --store"),
    ):
        refused(run(*command, *wrong), said)
    stream = write_lines(tmp_path / "d.jsonl", {"id": "d", "text": "The pump number 1 is a part."})
    answered = run("stream", *model, "--documents", stream, "--questions", asked, "--method", "retro",
                   "--set", f"weights={second}", "--align", 16, "--json", "-")  # fmt: skip
    assert answered.code == 0, answered.err
    assert answered.json["protocol"]["align"] == 16
    refused(run("stream", *model, "--documents", stream, "--questions", asked, "--align", 0), "--align")


def test_what_is_trained_says_the_setting_that_uses_it(run: Run, world: World, tmp_path: Path) -> None:
    documents = write_lines(
        tmp_path / "d.jsonl", *({"id": str(n), "text": f"word{n} " * 9} for n in range(2))
    )
    out = tmp_path / "s.st"
    ran = run("train", "dynamic-evaluation", "-m", world.model, "--documents", documents, "--out", out)
    assert f"use it with --set 'optimizer=rms(statistics={out})'" in ran.err
    for name in methods.names():
        if name != "memory" and (learner := learner_of(methods.find(name))):
            assert method_specs([name], [learner.used_as.format("a.file")]), name


@pytest.mark.parametrize("method", ["fwl", "dynamic-evaluation", "source-code"])
def test_documents_that_are_not_given_are_asked_for(
    run: Run, world: World, tmp_path: Path, method: str
) -> None:
    asked = ("train", method, "-m", world.model, "--out", tmp_path / "n")
    refused(run(*asked), "no documents to learn from: give some, with --documents")
