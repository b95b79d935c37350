"""`uptake train retriever --layers`, and the ways in which what it writes is used."""

from pathlib import Path

import pytest

from cli_world import Run, World, made_fixture, refused, run_fixture, world_fixture, write_lines
from tests import toy_encoders
from uptake.retrievers import encoder_training
from uptake.retrievers.encoder_folder import NAME
from uptake.store.datastore import Datastore

__all__ = ["made_fixture", "run_fixture", "world_fixture"]
pytest.importorskip("sentence_transformers")


@pytest.fixture
def store(tmp_path: Path, world: World) -> Path:
    folder = toy_encoders.folder_of(tmp_path)
    path = tmp_path / "toy.store"
    Datastore.create(path, encoder=str(folder)).add(toy_encoders.documents())
    return path


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    records = [
        {"question": q.text, "answers": list(q.answers), "document": q.document}
        for q in toy_encoders.questions(8)
    ]
    return write_lines(tmp_path / "asked.jsonl", *records)


def files(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


def test_queries_get_an_encoder_of_their_own(run: Run, store: Path, asked: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "out", files(store)
    (tmp_path / ".out.draft").mkdir()  # what a killed run left half written
    (tmp_path / ".out.draft" / "model.safetensors").write_bytes(b"half")
    command = ["train", "retriever", "--store", store, "--questions", asked, "--out", out, "--layers", 1]
    command += ["--loss", "contrastive", "--set", "sides=query", "--set", "candidates=3"]
    ran = run(*command, "--learning-rate", 0.01, "--json")
    assert ran.code == 0, ran.err
    assert {each.stat().st_mode for each in out.rglob("*.*") if each.is_file()} == {asked.stat().st_mode}
    assert len(ran.json["training"]) == 3 and ran.json["encoder"] == str(out)
    assert files(store) == before
    assert not [*tmp_path.glob("out.*"), *tmp_path.glob(".out*")]
    search = ["index", "search", store, "w1 w2", "--search-by", "dense", "--json"]
    plain, own = run(*search), run(*search, "--query-encoder", out)
    assert plain.code == own.code == 0, own.err
    assert plain.json[0]["score"] != own.json[0]["score"]
    refused(run(*command), "already there")
    made = tmp_path / "other.store"
    assert run("index", "encode", store, made, "--encoder", out).code == 0
    refused(
        run("index", "search", made, "w1", "--query-encoder", out),
        "was trained for",
        "train one on this store",
    )


def test_passages_are_encoded_anew_by_what_both_sides_trained(
    run: Run, store: Path, asked: Path, tmp_path: Path
) -> None:
    out, new = tmp_path / "out", tmp_path / "new.store"
    command = ["train", "retriever", "--store", store, "--questions", asked, "--out", out, "--layers", 2]
    ran = run(*command, "--loss", "contrastive", "--valid-questions", asked, "--set", "refresh=1")
    assert ran.code == 0, ran.err
    assert "2 layers of both" in ran.out
    assert "uptake index encode" in ran.err
    refused(run("index", "search", store, "w1", "--query-encoder", out), "encode the store with it")
    ran = run("index", "encode", store, new, "--encoder", out, "--dtype", "float32", "--json")
    assert ran.code == 0 and ran.json["passages"] == 30, ran.err
    assert Datastore.open(new).view.encoder_fingerprint != Datastore.open(store).view.encoder_fingerprint
    assert run("index", "search", new, "w1 w2").code == run("index", "verify", new).code == 0
    refused(run("index", "search", store, "w1", "--encoder", out), "made with encoder", "give the same one")
    refused(run("index", "encode", store, new, "--encoder", out), "already there")


def test_a_reader_teaches_it_and_an_interruption_is_gone_on_from(
    run: Run, world: World, store: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ["train", "retriever", "-m", world.model, "--store", store, "--questions", asked, "--out", out]
    command += ["--layers", 1, "--loss", "emdr2", "--set", "batch=4", "--save-every", 2]
    descend = encoder_training.Steps.step
    left = iter(range(3))

    def stop(*given: object) -> object:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return descend(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(encoder_training.Steps, "step", stop)
        ran = run(*command)
    assert ran.code == 130 and "give the same command to resume" in ran.err
    assert not out.exists() and (tmp_path / "out.training").exists()
    ran = run(*command)
    assert ran.code == 0, ran.err
    assert "emdr2 on 8 questions" in ran.out
    assert (out / NAME).is_file() and not list(tmp_path.glob("out.*"))


def test_a_folder_that_has_changed_is_refused(run: Run, store: Path, asked: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["train", "retriever", "--store", store, "--questions", asked, "--out", out, "--layers", 1]
    assert run(*command, "--loss", "contrastive", "--set", "sides=query", "--passes", 1).code == 0
    search = ["index", "search", store, "w1", "--query-encoder", out]
    whole = (out / NAME).read_bytes()
    (out / NAME).write_bytes(whole.replace(b"contrastive", b"contrastivf"))
    refused(run(*search), "not the encoder's description that was written")
    (out / NAME).write_bytes(whole)
    weights = bytearray((out / "model.safetensors").read_bytes())
    weights[-3] ^= 1
    (out / "model.safetensors").write_bytes(bytes(weights))
    refused(run(*search), "its weights are not those")
    (out / NAME).unlink()
    refused(run(*search), "no query encoder")


def test_what_does_not_fit_is_said_in_a_line(
    run: Run, world: World, store: Path, asked: Path, tmp_path: Path
) -> None:
    train = ["train", "retriever", "--questions", asked, "--layers", 1, "--out", tmp_path / "out"]
    refused(run(*train), "--store")
    refused(run(*train, "--store", store), "--model")
    refused(run(*train, "--store", store, "--loss", "adist", "-m", world.model), "use pdist")
    refused(run(*train, "--store", store, "--loss", "contrastive", "--set", "sides=one"), "query or both")
    refused(run(*train, "--store", store, "--loss", "contrastive", "--set", "layers=3"), "use 1 to 2")
    states = tmp_path / "states.store"
    Datastore.create(states, encoder=f"lm:{world.model}").add(toy_encoders.documents(3))
    refused(run(*train, "--store", states, "--loss", "contrastive"), "a sentence encoder alone trains")
    refused(run(*train, "--store", world.lexical, "--loss", "contrastive"), "lexical")
    refused(run("train", "retro", "--layers", 1, "--out", tmp_path / "out"), "--layers")
