"""Whatever is wrong with what is given: one clear line, exit code 2 or a counted skip, nothing is lost."""

import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cli_world import (  # noqa: F401
    Run,
    World,
    evaluated,
    made_fixture,
    refused,
    run_fixture,
    world_fixture,
    write_lines,
)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("-k", "-1"), "-k -1: use 0 to 1,000,000"),
        (("-k", "9" * 30), "use 0 to"),
        (("-k", "many"), "-k 'many': write whole numbers"),
        (("-k", "1,,2"), "write whole numbers"),
        (("--method", "ttt-n"), "no method 'ttt-n': did you mean 'ttt-nn'?"),
        (("--method", ""), "name one, such as ttt-nn"),
        (("--method", "base,ttt-nn"), "uptake compare --methods base,ttt-nn"),
        (("--set", "learning_rat=1"), "no setting 'learning_rat': did you mean 'learning_rate'?"),
        (("--set", "learning_rate=fast"), "learning_rate=fast: use a number"),
        (("--set", "learning_rate=nan"), "learning rate nan"),
        (("--set", "learning_rate"), "write name=value"),
        (("--set", "trainable=lorra"), "trainable=lorra: use one of all"),
        (("--set", "trainable=top(layers=9)"), "the model has 2"),
        (("--device", "toaster"), "device 'toaster' cannot be used here"),
        (("--device", "cuda:99"), "device 'cuda:99' cannot be used here"),
        (("--device", "meta"), "device 'meta'"),
        (("--dtype", "float31"), "dtype 'float31': use one of auto, float32"),
        (("--threads", "0"), "--threads 0: use 1 or more"),
        (("--limit", "0"), "--limit 0: use 1 or more"),
        (("--limit", "-3"), "--limit -3"),
        (("--batch", "0"), "--batch 0"),
        (("--seed", str(1 << 70)), "--seed 1.18059e+21: use 0 to"),
        (("--max-cpu-seconds", "nan"), "--max-cpu-seconds nan"),
        (("--protocol", "per-qery"), "--protocol 'per-qery': did you mean per-query?"),
        (("--leak-jaccard", "2", "--leak-containment", "1"), "jaccard 2.0"),
        (("--json", "missing/out.json"), "there is no folder missing"),
        (("--html", "missing/out.html"), "there is no folder missing"),
        (("--json", "."), "is a folder"),
        (("--by", ""), "--by '': name a field"),
        (("--encoder", "x"), "takes no encoder"),
        (("--data", "nothing.jsonl"), "no such file or folder: 'nothing.jsonl'"),
        (("--unknown",), "no such option: --unknown"),
        (("--limit", "few"), "--limit 'few': it should be a valid integer"),
    ],
)
def test_bad_options(run: Run, world: World, given, words) -> None:
    refused(evaluated(run, world, *given), words)


def test_what_is_read_is_never_written_over(run: Run, world: World, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = write_lines(
        tmp_path / "t.jsonl", {"id": "a", "text": "a pump", "question": "?", "answers": ["a"]}
    )
    (tmp_path / "link.jsonl").symlink_to(texts)
    before = texts.read_bytes()
    model = ("-m", world.model)
    scored = ("compare", *model, "--data", "t.jsonl", "--methods", "base", "--protocol", "running")
    read = "it is read by this command"
    refused(run(*scored, "--json", "./t.jsonl"), "--json t.jsonl", read)
    refused(run(*scored, "--html", texts), f"--html {texts}", read)
    refused(run(*scored, "--json", "link.jsonl"), read)
    refused(run(*scored, "--json", "o", "--html", "./o"), "--html o: --json is written there")
    refused(run("eval", *scored[1:5], "--json", "t.jsonl"), read)
    refused(run("stream", *model, "--questions", "t.jsonl", "--json", "t.jsonl"), read)
    refused(run("stream", *model, "--questions", "q", "--locality", "t.jsonl", "--html", "t.jsonl"), read)
    refused(run("tune", *model, "-s", world.lexical, "--data", "t.jsonl", "--out", "t.jsonl"), read)
    refused(run("train", "fwl", *model, "--documents", "t.jsonl", "--out", "t.jsonl"), read)
    refused(run("train", "retriever", "-s", "s", "--questions", "t.jsonl", "--out", "t.jsonl"), read)
    for words in (("add", "t.jsonl", "t.jsonl"), ("subtract", "t.jsonl", "o", "t.jsonl")):
        refused(run("delta", *words), read)
    refused(run("delta", "scale", "t.jsonl", "t.jsonl", "--by", "2"), read)
    assert texts.read_bytes() == before and not (tmp_path / "o").exists()
    assert run(*scored, "--json", "/dev/null", "--html", "/dev/null").code == 0


def test_a_misspelt_setting_is_looked_for_in_every_method(run: Run, world: World) -> None:
    asked = (
        "compare",
        "-m",
        world.model,
        "--data",
        world.data,
        "--methods",
        "base,finetune",
        "--protocol",
        "running",
    )
    refused(run(*asked, "--set", "learning_rat=1"), "did you mean 'learning_rate'?")


@pytest.mark.parametrize("verb", ["eval", "compare", "generate"])
def test_what_is_required(run: Run, world: World, verb) -> None:
    refused(run(verb), "missing", f"uptake {verb} --help")


def test_data_and_store_are_asked_for(run: Run, world: World) -> None:
    refused(run("eval", "-m", world.model), "missing option '--data'")
    refused(run("eval", "-m", world.model, "--data", world.data), "there is no store: name one with --store")
    refused(run("generate", "-m", world.model, "hello"), "there is no store: name one with --store")


def test_misspelt_verbs(run: Run) -> None:
    refused(run("evall"), "no such command 'evall'", "eval")
    refused(run("methods", "ttt"), "did you mean")


# Models


def without_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def with_pickled_weights(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def with_broken_weights(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"not at all" * 100)


def with_cut_weights(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def with_more_layers(model: Path) -> None:
    edit(model / "config.json", '"num_hidden_layers": 2', '"num_hidden_layers": 3')


def with_wider_layers(model: Path) -> None:
    edit(model / "config.json", '"intermediate_size": 48', '"intermediate_size": 64')


def with_rubbish_config(model: Path) -> None:
    (model / "config.json").write_bytes(b"\xff\xfe{")


def with_a_list_for_config(model: Path) -> None:
    (model / "config.json").write_text("[1]")


def without_config(model: Path) -> None:
    (model / "config.json").unlink()


def without_tokenizer(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()


def with_rubbish_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_weights, "no *.safetensors weights"),
        (with_pickled_weights, "convert pytorch_model.bin to safetensors"),
        (with_broken_weights, "cannot be loaded"),
        (with_cut_weights, "cannot be loaded"),
        (with_more_layers, "lack model.layers.2."),
        (with_wider_layers, "not of the sizes that config.json says"),
        (with_rubbish_config, "cannot be loaded"),
        (with_a_list_for_config, "cannot be loaded"),
        (without_config, "no config.json"),
        (without_tokenizer, "cannot be loaded"),
        (with_rubbish_tokenizer, "cannot be loaded"),
    ],
)
def test_damaged_models(
    run: Run, world: World, tmp_path: Path, damage: Callable[[Path], None], words
) -> None:
    model = shutil.copytree(world.model, tmp_path / "damaged")
    damage(model)
    refused(run("generate", "-m", model, "--method", "base", "hello"), words, model.name)


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing", "no-such-model-anywhere"])
def test_models_that_are_not_there(run: Run, name) -> None:
    refused(run("generate", "-m", name, "--method", "base", "hello"), name)


def test_a_pipe_is_no_model(run: Run, tmp_path: Path) -> None:
    for name in ("model", "model.gguf"):
        os.mkfifo(tmp_path / name)  # nobody writes to it: whoever opens it waits for ever
        asked = run("generate", "-m", tmp_path / name, "--method", "base", "hello")
        refused(asked, tmp_path / name, "is no folder" if name == "model" else "is no regular file")


# Text


def test_every_kind_of_bad_record_is_counted(run: Run, world: World, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "records.jsonl").write_bytes(
        b'{"id": "broken", "text": "x\n'
        b'{"id": "no text"}\n'
        b'{"id": "empty", "text": ""}\n'
        b'{"id": "nul", "text": "a\\u0000b"}\n'
        b'{"id": "lone", "text": "a\\ud800b"}\n'
        b'{"id": "not utf8", "text": "\xff"}\n'
        b'{"id": "good", "text": "a good pump"}\n'
    )
    (folder / "binary.txt").write_bytes(b"\0\1\2\3" * 100)
    built = run("index", "build", tmp_path / "s", folder, "--retriever", "lexical", "--json")
    assert built.code == 0 and built.json["documents"] == 1
    assert built.json["skipped"] == {
        "binary file": 1, "broken JSON": 1, "no text": 1, "empty text": 1, "NUL character": 1,
        "lone surrogate": 1, "not UTF-8": 1,
    }  # fmt: skip
    assert built.err.startswith("left out: skipped 7: ") and built.err.count("\n") == 7
    ran = run("eval", "-m", world.model, "--data", folder, "--method", "base", "--json", "-")
    assert ran.json["methods"]["base"]["queries"] == 1
    assert "skipped 7" in ran.json["notes"][0]


def test_a_corpus_with_nothing_in_it_makes_no_store(run: Run, tmp_path: Path) -> None:
    bad = write_lines(tmp_path / "bad.jsonl", {"id": 1}, {"text": ""})
    refused(
        run("index", "build", tmp_path / "s", bad, "--retriever", "lexical"), "nothing to read", "no text"
    )
    refused(
        run("index", "build", tmp_path / "s", tmp_path / "no.jsonl", "--retriever", "lexical"), "no such file"
    )
    assert not (tmp_path / "s").exists()


def test_an_unreadable_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()

    def denied(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)  # root may read everything
    asked = ("index", "build", tmp_path / "s", tmp_path / "locked", "--retriever", "lexical")
    refused(run(*asked), "locked", "check its permissions")


def test_a_prompt_that_is_no_text(run: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("generate", "-m", world.model, "--method", "base", "--tokens", "1")
    refused(run(*asked, "a\udcffb"), "not UTF-8 at character 1")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff"), encoding="utf8"))
    refused(run(*asked, "-"), "not UTF-8 at character 2")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\0b"), encoding="utf8"))
    assert run(*asked, "-").code == 0
    assert run(*asked, "").code == 0
