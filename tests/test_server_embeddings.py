"""Embeddings over the wire equal the library's; stores of clients are searched by meaning as well."""

import asyncio
import io
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

import server_world
from server_world import TEXTS, Running
from uptake.errors import BadInput, Missing
from uptake.server.config import Config
from uptake.server.engine.child import Child
from uptake.server.engine.encoder import PIECE, Encoder, EncoderProcess
from uptake.store.datastore import Datastore
from uptake.text.encoders import StatesEncoder
from uptake.text.types import Document


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embeddings")


def config(folder: Path, embeds: bool = True) -> Config:
    more = {"embedder": f"lm:{folder / 'toy'}", "embedder_name": "toy-states"} if embeds else {}
    return server_world.config(folder, data=str(folder / "data"), **more)


@pytest.fixture(scope="module", name="server")
def server_fixture(folder: Path) -> Iterator[Running]:
    with server_world.running(config(folder)) as found:
        yield found


@pytest.fixture(scope="module", name="encoder")
def encoder_fixture(server: Running, folder: Path) -> StatesEncoder:
    return StatesEncoder(str(folder / "toy"))


def embed(server: Running, given: Any, **more: Any) -> Any:
    return server.openai().embeddings.create(model="toy-states", input=given, **more)


def test_vectors_are_the_librarys_in_either_format(server: Running, encoder: StatesEncoder) -> None:
    texts = [*TEXTS, "é\u00a0日本 \U0001f600"]
    wanted = encoder.embed(texts)
    packed = embed(server, texts)  # base64, the client's default, which it unpacks
    plain = embed(server, texts, encoding_format="float")
    for found in (packed, plain):
        assert np.array_equal(np.array([each.embedding for each in found.data], np.float32), wanted)
        assert [each.index for each in found.data] == [0, 1, 2, 3] and found.model == "toy-states"
    size = sum(len(encoder.tokenizer(text)["input_ids"]) for text in texts)
    assert packed.usage.prompt_tokens == packed.usage.total_tokens == size


def test_tokens_are_embedded_as_the_text_they_spell(server: Running, encoder: StatesEncoder) -> None:
    ids = [encoder.tokenizer(text)["input_ids"] for text in TEXTS]
    wanted = encoder.embed(TEXTS)
    assert np.allclose([each.embedding for each in embed(server, ids).data], wanted, atol=1e-6)
    assert np.allclose(embed(server, ids[0]).data[0].embedding, wanted[0], atol=1e-2)
    assert np.allclose(embed(server, TEXTS[0]).data[0].embedding, wanted[0], atol=1e-2)


def test_more_texts_than_a_piece_keep_their_order(server: Running, encoder: StatesEncoder) -> None:
    texts = [f"{'a' * (place % 7)} text {place}" for place in range(2 * PIECE + 3)]
    found = np.array([each.embedding for each in embed(server, texts).data])
    assert np.allclose(found, encoder.embed(texts), atol=2e-2) and len(found) == len(texts)


def test_the_encoder_is_listed_and_writes_nothing(server: Running) -> None:
    client = server.openai()
    assert "toy-states" in [each.id for each in client.models.list()]
    assert client.models.retrieve("toy-states").id == "toy-states"
    assert embed(server, "a", dimensions=32).data[0].embedding
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="toy-states", prompt="a")


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        ({"model": "toy"}, 404, "model", "use 'toy-states'"),
        ({"input": ""}, 400, "input", "empty"),
        ({"input": ["a", ""]}, 400, "input.1", "empty"),
        ({"input": []}, 400, "input", ""),
        ({"input": [[1], []]}, 400, "input.1", ""),
        ({"input": ["a"] * 2049}, 400, "input", "at most 2,048 at once"),
        ({"input": ["a", "b" * 257]}, 400, "input.1", "256 tokens that the encoder reads: cut"),
        ({"input": ["a"] * PIECE + ["b" * 40_000]}, 400, f"input.{PIECE}", "40,000 characters"),
        ({"input": "b" * 257}, 400, "input", "256 tokens that the encoder reads: cut"),
        ({"input": [65] * 33_000}, 400, "input", "33,000 tokens are more than the 256 tokens"),
        ({"input": [1, 257]}, 400, "input.1", "257 is none of the encoder's"),
        ({"input": [[1], [2, 1 << 70]]}, 400, "input.1.1", "is none of the encoder's"),
        ({"input": {"a": 1}}, 400, "input", ""),
        ({"dimensions": 8}, 400, "dimensions", "32"),
        ({"encoding_format": "int8"}, 400, "encoding_format", ""),
    ],
)
def test_what_cannot_be_embedded_is_told(
    server: Running, body: dict[str, Any], status: int, param: str, says: str
) -> None:
    found = server.post("/v1/embeddings", {"model": "toy-states", "input": "a", **body})
    error = found.json()["error"]
    assert (found.status_code, error["param"]) == (status, param) and says in error["message"]
    assert len(error["message"]) < 300


def test_without_an_encoder_the_cure_is_told(tmp_path: Path) -> None:
    with (
        server_world.running(server_world.config(tmp_path)) as server,
        pytest.raises(openai.NotFoundError, match="--embedder"),
    ):
        embed(server, "a")


def test_an_encoder_that_is_not_there_is_refused_at_the_start(tmp_path: Path) -> None:
    asked = config(tmp_path)
    process = server_world.EngineThread(replace(asked, embedder=str(tmp_path / "none")))
    with pytest.raises(BadInput, match="no such folder"), server_world.patched():
        asyncio.run(process.start())
    with pytest.raises(Missing, match="no such folder"), server_world.patched():
        EncoderProcess(str(tmp_path / "none"), "cpu", 1).wait()


def filled(client: openai.OpenAI) -> str:
    store = client.vector_stores.create(name="notes").id
    for text in TEXTS:
        file = client.files.create(file=("a.txt", io.BytesIO(text.encode())), purpose="assistants").id
        held = client.vector_stores.files.create_and_poll(file, vector_store_id=store, poll_interval_ms=20)
        assert held.status == "completed", held.last_error
    return store


def test_stores_are_searched_by_words_and_meaning_and_say_so(
    server: Running, encoder: StatesEncoder, tmp_path: Path
) -> None:
    client = server.openai()
    store = filled(client)
    wanted = Datastore.create(tmp_path / "by hand.store", encoder=encoder)
    wanted.add([Document(str(place), text) for place, text in enumerate(TEXTS)])
    for query in ("which dog ran", "zzz"):  # the second shares no word with any of them
        (ranked,) = wanted.searched("sum").search([query], 3)
        texts = [passage.text for passage in wanted.passages([int(one) for one in ranked.ids])]
        found = client.vector_stores.search(store, query=query).data
        assert [each.content[0].text for each in found] == texts and len(found) == 3
        assert [each.score for each in found] == pytest.approx(ranked.scores.tolist(), abs=0.2)
    assert client.vector_stores.retrieve(store).uptake == {"searched_by": "words and meaning"}  # type: ignore[attr-defined]
    uptake = {"method": "in-context", "store": store, "k": 3}
    told = server.post("/v1/completions", {"model": "toy", "prompt": "zzz", "uptake": uptake}).json()
    assert len(told["uptake"]["neighbours"]) == 3


def test_a_store_whose_encoder_is_gone_is_searched_by_words(tmp_path: Path) -> None:
    with server_world.running(config(tmp_path)) as server:
        store = filled(server.openai())
    with server_world.running(config(tmp_path, embeds=False)) as server:
        client = server.openai()
        (found,) = client.vector_stores.search(store, query="dog").data
        assert found.content[0].text == TEXTS[1]
        assert client.vector_stores.search(store, query="zzz").data == []
        assert client.vector_stores.retrieve(store).uptake == {"searched_by": "words"}  # type: ignore[attr-defined]
        file = client.files.create(file=("a.txt", io.BytesIO(b"a cat")), purpose="assistants").id
        held = client.vector_stores.files.create_and_poll(file, vector_store_id=store, poll_interval_ms=20)
        assert held.last_error is not None and "make another store" in held.last_error.message
        assert client.vector_stores.delete(store).deleted


def test_a_client_that_leaves_holds_nobody_up(server: Running) -> None:
    with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=server.url, timeout=0.02) as leaving:
        leaving.post("/v1/embeddings", json={"model": "toy-states", "input": ["a text " * 30] * 2000})
    assert embed(server, "a").data
    for _ in range(500):
        facts = server.http.get("/metrics").text
        if "uptake_running 0.0" in facts:
            return
    raise AssertionError(facts)


@pytest.mark.long
def test_an_encoder_that_is_killed_is_started_again(
    folder: Path, encoder: StatesEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server of these tests has a thread in its place.
    monkeypatch.setattr("uptake.server.engine.encoder.Child", Child)
    process = EncoderProcess(f"lm:{folder / 'toy'}", "cpu", 1)
    process.wait()
    asking = Encoder(process.link)
    before = asking.embed(TEXTS)
    os.kill(process.pid, signal.SIGKILL)
    assert np.array_equal(asking.embed(TEXTS), before) and np.allclose(
        before, encoder.embed(TEXTS), atol=1e-2
    )
    process.close()
