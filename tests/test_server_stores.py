"""What clients store: by OpenAI's own endpoints, kept per tenant, and gone for good once it is deleted."""

import errno
import io
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import server_world
from server_world import LORA, TEXTS, Running
from uptake.errors import BadInput
from uptake.server import storing
from uptake.server.engine import folders
from uptake.server.keys import Keys, Limits
from uptake.server.records import Records
from uptake.store.datastore import Datastore

CANARY = "zyxwvut-canary-98765"


@pytest.fixture(scope="module", name="root")
def root_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module", name="server")
def server_fixture(root: Path) -> Iterator[Running]:
    keys = Keys(root / "keys.db", make=True)
    with server_world.running(server_world.config(root, data=str(root / "data")), keys) as found:
        yield found


def key_of(server: Running, tenant: str, **limits: int) -> str:
    assert server.door.keys is not None
    return server.door.keys.add(tenant, limits=Limits(**{"requests": 10_000, **limits}))[1]


@pytest.fixture(name="key")
def key_fixture(server: Running, request: pytest.FixtureRequest) -> str:
    return key_of(server, request.node.name)


@pytest.fixture(name="client")
def client_fixture(server: Running, key: str) -> openai.OpenAI:
    return server.openai(key)


def upload(client: openai.OpenAI, text: str = TEXTS[0], name: str = "a.txt") -> str:
    return client.files.create(file=(name, io.BytesIO(text.encode())), purpose="assistants").id


def filled(client: openai.OpenAI, *texts: str) -> tuple[str, list[str]]:
    store = client.vector_stores.create(name="notes")
    files = [upload(client, text) for text in texts]
    for file in files:
        held = client.vector_stores.files.create_and_poll(file, vector_store_id=store.id, poll_interval_ms=20)
        assert held.status == "completed"
    return store.id, files


def test_a_second_server_is_refused_the_folder_of_one_that_runs(
    server: Running, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "PATIENCE", 0.1)
    with pytest.raises(BadInput, match="another server"):
        folders.Held(root / "data")
    assert server.door.engine.ready


def test_a_folder_is_free_once_its_server_has_gone(tmp_path: Path) -> None:
    first = folders.Held(tmp_path)
    first.close()
    folders.Held(tmp_path).close()


def bytes_under(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())


def test_a_folder_stays_taken_while_an_engine_that_ends_still_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, may, add = threading.Event(), threading.Event(), Datastore.add

    def slow(self: Datastore, *args: Any, **kwargs: Any) -> Any:
        writing.set()
        assert may.wait(60)
        return add(self, *args, **kwargs)

    with server_world.running(server_world.config(tmp_path, data=str(tmp_path / "data"))) as server:
        client = server.openai()
        store = client.vector_stores.create(name="notes").id
        monkeypatch.setattr(Datastore, "add", slow)
        client.vector_stores.files.create(store, file_id=upload(client))
        assert writing.wait(60)
    monkeypatch.setattr(folders, "PATIENCE", 0.5)
    with pytest.raises(BadInput, match="another server"):
        folders.Held(tmp_path / "data")
    monkeypatch.setattr(folders, "PATIENCE", 60)
    may.set()
    folders.Held(tmp_path / "data").close()


def test_a_file_is_kept_listed_read_and_deleted(client: openai.OpenAI) -> None:
    names = [upload(client, f"text {number}", f"{number}.md") for number in range(5)]
    found = client.files.retrieve(names[0])
    assert (found.filename, found.bytes, found.purpose) == ("0.md", 6, "assistants")
    assert client.files.content(names[3]).read() == b"text 3"
    assert [each.id for each in client.files.list(limit=2)] == names[::-1]  # the client turns the pages
    assert [each.id for each in client.files.list(limit=2, order="asc")] == names
    assert client.files.delete(names[0]).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(names[0])
    assert len(list(client.files.list())) == 4


def test_a_vector_store_holds_files_and_finds_their_text(client: openai.OpenAI) -> None:
    store, files = filled(client, *TEXTS)
    found = client.vector_stores.retrieve(store)
    assert found.file_counts.completed == found.file_counts.total == 3 and found.status == "completed"
    assert {each.id for each in client.vector_stores.files.list(store)} == set(files)
    (best, *_) = client.vector_stores.search(store, query="which dog ran over a hill?").data
    assert best.file_id == files[1] and best.content[0].text == TEXTS[1] and best.filename == "a.txt"
    client.vector_stores.files.delete(files[1], vector_store_id=store)
    assert [each.file_id for each in client.vector_stores.search(store, query="a dog ran").data] == []
    assert client.files.retrieve(files[1]).id == files[1]  # the file itself stays
    assert client.vector_stores.delete(store).deleted
    assert [each.id for each in client.vector_stores.list()] == []


def test_a_file_that_cannot_be_read_is_told_and_holds_nothing_up(client: openai.OpenAI) -> None:
    store = client.vector_stores.create(name="notes")
    broken = upload(client, "%PDF-1.4 no more", "broken.pdf")
    held = client.vector_stores.files.create_and_poll(broken, vector_store_id=store.id, poll_interval_ms=20)
    assert held.status == "failed" and held.last_error is not None
    assert "broken PDF" in held.last_error.message and "/" not in held.last_error.message
    lines = '{"id": "x", "text": "a cat"}\n{"id": "y", "text": "a dog"}\n'
    good = upload(client, lines, "many.jsonl")
    held = client.vector_stores.files.create_and_poll(good, vector_store_id=store.id, poll_interval_ms=20)
    assert held.status == "completed"
    assert client.vector_stores.search(store.id, query="dog").data[0].content[0].text == "a dog"


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_file_without_a_text_column_is_refused_in_the_clients_terms(
    client: openai.OpenAI, name: str
) -> None:
    store = client.vector_stores.create(name="notes")
    file = upload(
        client, '{"title": "x"}\n' if name.endswith("l") else "title,body\nx,a cat\ny,a dog\n", name
    )
    held = client.vector_stores.files.create_and_poll(file, vector_store_id=store.id, poll_interval_ms=20)
    assert held.status == "failed" and held.last_error is not None
    assert "call one 'text'" in held.last_error.message and "--" not in held.last_error.message


def test_a_full_disk_fails_an_upload_and_what_came_of_it_goes(
    server: Running, key: str, client: openai.OpenAI, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = client.vector_stores.create(name="notes")
    file = upload(client)
    add, came, fsync = Datastore.add, Records._change, os.fsync
    full = OSError(errno.ENOSPC, "No space left on device")

    def filling(self: Datastore, documents: Any, *args: Any, **kwargs: Any) -> Any:
        add(self, documents, *args, **kwargs)
        if documents[0].id.startswith("file_"):
            monkeypatch.setattr(Records, "_change", refusing)
        raise full

    def refusing(self: Records) -> Any:
        monkeypatch.setattr(Records, "_change", came)
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Datastore, "add", filling)
    held = client.vector_stores.files.create_and_poll(file, vector_store_id=store.id, poll_interval_ms=20)
    assert held.status == "failed" and held.last_error is not None
    assert "disk of the server is full" in held.last_error.message
    # A memory that could not be kept is not there, neither now nor later.
    headers = {"authorization": f"Bearer {key}"}
    body = {"user": "ann", "text": f"{CANARY}full"}
    told = server.post("/uptake/memories", body, headers=headers)
    assert told.status_code == 507 and told.json()["error"]["code"] == "disk_full"
    monkeypatch.setattr(Datastore, "add", add)
    listed = server.http.get("/uptake/memories", params={"user": "ann"}, headers=headers).json()
    assert listed["data"] == [] and f"{CANARY}full".encode() not in bytes_under(root / "data")
    assert client.vector_stores.search(store.id, query="cat").data == []

    def refuse(handle: int) -> None:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(storing.os, "fsync", refuse)
        with pytest.raises(openai.APIStatusError) as caught:
            upload(client)
    assert caught.value.code == "disk_full" and os.fsync is fsync
    assert not list((root / "data" / "uploads").iterdir())
    # Once there is room again, the same file is read.
    assert client.vector_stores.files.delete(file, vector_store_id=store.id).deleted
    held = client.vector_stores.files.create_and_poll(file, vector_store_id=store.id, poll_interval_ms=20)
    assert held.status == "completed" and client.vector_stores.search(store.id, query="cat").data


def complete(server: Running, key: str, prompt: str = "the cat sat on", **uptake: Any) -> dict[str, Any]:
    body = {
        "model": "toy",
        "prompt": prompt,
        "max_tokens": 8,
        "temperature": 0,
        "logprobs": 0,
        "uptake": uptake,
    }
    found = server.post("/v1/completions", body, headers={"authorization": f"Bearer {key}"})
    assert found.status_code == 200, found.text
    told: dict[str, Any] = found.json()
    return told


def adapting(store: str) -> dict[str, Any]:
    return {"method": "ttt-nn", "settings": [*LORA], "store": store, "k": 3}


def test_a_request_reads_ones_own_store_and_no_other(
    server: Running, client: openai.OpenAI, key: str
) -> None:
    store, files = filled(client, *TEXTS[:2])
    told = complete(server, key, **adapting(store))["uptake"]
    assert told["neighbours"] and all(near["document"].split("/")[0] in files for near in told["neighbours"])
    other = key_of(server, "somebody else")
    theirs = server.openai(other)
    for do in (
        lambda: theirs.vector_stores.retrieve(store),
        lambda: theirs.vector_stores.search(store, query="cat"),
        lambda: theirs.vector_stores.files.list(store),
        lambda: theirs.vector_stores.files.create(store, file_id=files[0]),
        lambda: theirs.vector_stores.delete(store),
        lambda: theirs.files.retrieve(files[0]),
        lambda: theirs.files.content(files[0]),
        lambda: theirs.files.delete(files[0]),
        lambda: theirs.files.list(after=files[0]),
        lambda: theirs.completions.create(model="toy", prompt="a", extra_body={"uptake": adapting(store)}),
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            do()
        assert caught.value.body["message"].replace(store, "ID").replace(files[0], "ID") in (  # type: ignore[index]
            "vector store 'ID' does not exist",
            "file 'ID' does not exist",
        )
    assert [each.id for each in theirs.files.list()] == []


def test_what_is_deleted_answers_as_if_it_had_never_been_there(
    server: Running, client: openai.OpenAI, key: str, root: Path
) -> None:
    text = f"the cat sat on {CANARY}. "
    never, _ = filled(client, *TEXTS)
    store, files = filled(client, *TEXTS, text)
    asked = complete(server, key, **adapting(store))
    assert any(near["document"].startswith(files[3]) for near in asked["uptake"]["neighbours"])
    assert CANARY.encode() in bytes_under(root / "data")
    receipt = server.http.delete(f"/v1/files/{files[3]}", headers={"authorization": f"Bearer {key}"}).json()
    assert receipt["deleted"] and receipt["uptake"]["forgotten"] == {"passages": 1, "states": 1, "files": 1}
    assert CANARY.encode() not in bytes_under(root / "data")
    left = complete(server, key, **adapting(store))
    assert left["uptake"]["cache"] == "made"
    assert left["choices"] == complete(server, key, **adapting(never))["choices"]


def test_memories_of_a_person_are_found_listed_and_deleted_by_name_alone(
    server: Running, key: str, root: Path
) -> None:
    http, headers = server.http, {"authorization": f"Bearer {key}"}

    def remember(user: str, text: str) -> str:
        found = server.post("/uptake/memories", {"user": user, "text": text}, headers=headers)
        assert found.status_code == 200, found.text
        return str(found.json()["id"])

    first, second = remember("ann", f"ann's cat is called {CANARY}m"), remember("ann", "ann sat on a hill")
    theirs = remember("ben", "ben has a cat")
    listed = http.get("/uptake/memories", params={"user": "ann"}, headers=headers).json()["data"]
    assert [each["id"] for each in listed] == [second, first] and listed[0]["text"] == "ann sat on a hill"
    told = complete(server, key, "ann's cat", method="in-context", memory="ann", k=5)["uptake"]
    assert {near["document"] for near in told["neighbours"]} <= {f"{first}/0", f"{second}/0"}
    # Nobody named means nobody, not everybody.
    for params in ({}, {"user": ""}):
        refused = http.delete("/uptake/memories", params=params, headers=headers)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "user"
    assert http.delete(f"/uptake/memories/{first}", headers=headers).json()["deleted"]
    assert f"{CANARY}m".encode() not in bytes_under(root / "data")
    gone = http.delete("/uptake/memories", params={"user": "ann"}, headers=headers).json()
    assert gone["uptake"]["forgotten"]["texts"] == 1
    assert http.get(f"/uptake/memories/{theirs}", headers=headers).json()["user"] == "ben"
    assert http.get(f"/uptake/memories/{second}", headers=headers).status_code == 404


def test_a_session_reads_on_and_drops_as_if_it_had_never_read(server: Running, key: str, root: Path) -> None:
    headers = {"authorization": f"Bearer {key}"}

    def call(path: str, body: Any) -> dict[str, Any]:
        found = server.post(path, body, headers=headers)
        assert found.status_code == 200, found.text
        told: dict[str, Any] = found.json()
        return told

    way = {"method": "online", "settings": [*LORA], "query": ""}
    session = call("/uptake/sessions", {"uptake": way})["id"]
    (first,) = call(f"/uptake/sessions/{session}/take", {"texts": [TEXTS[0]]})["passages"]
    one = complete(server, key, session=session)
    (canary,) = call(f"/uptake/sessions/{session}/take", {"texts": [f"the cat {CANARY}s"]})["passages"]
    two = complete(server, key, session=session)
    near = [each["document"] for each in two["uptake"]["neighbours"]]
    assert near == [first, canary] and one["choices"] != two["choices"]
    assert complete(server, key, "any other prompt", session=session)["uptake"]["cache"] == "hit"
    path = f"/uptake/sessions/{session}"
    receipt = server.http.delete(f"{path}/passages/{canary}", headers=headers).json()
    assert receipt["uptake"]["forgotten"]["states"] == 1
    assert f"{CANARY}s".encode() not in bytes_under(root / "data")
    again = complete(server, key, session=session)
    assert again["choices"] == one["choices"] and again["uptake"]["cache"] == "hit"
    assert server.http.get(path, headers=headers).json()["passages"] == [{"id": first, "text": TEXTS[0]}]
    assert server.http.delete(path, headers=headers).json()["deleted"]
    body = {"model": "toy", "prompt": "a", "uptake": {"session": session}}
    assert server.post("/v1/completions", body, headers=headers).status_code == 404


def test_a_key_stores_no_more_than_its_share(server: Running) -> None:
    small = server.openai(key_of(server, "small", store_bytes=20))
    upload(small, "a" * 15)
    with pytest.raises(openai.APIStatusError) as caught:
        upload(small, "a" * 15)
    assert caught.value.status_code == 413 and caught.value.code == "store_full"
    assert not list((Path(server.door.config.data) / "uploads").iterdir())


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/files?limit=0", None, 400),
        ("GET", "/v1/files?limit=x", None, 400),
        ("GET", "/v1/files?order=up", None, 400),
        ("GET", "/v1/files/..%2F..%2Fkeys.db", None, 404),
        ("GET", "/v1/files/file_x/content", None, 404),
        ("POST", "/v1/files", {"file": "x"}, 415),
        ("POST", "/v1/vector_stores", {"file_ids": ["file_x"]}, 404),
        ("POST", "/v1/vector_stores", {"expires_after": {"days": 1}}, 400),
        ("POST", "/v1/vector_stores/vs_x/search", {"query": "a", "max_num_results": 99}, 400),
        ("POST", "/uptake/memories", {"user": "", "text": "a"}, 400),
        ("POST", "/uptake/sessions", {"uptake": {"metod": "online"}}, 400),
        ("POST", "/uptake/sessions/se_x/take", {"texts": ["a"]}, 404),
        ("DELETE", "/uptake/sessions/se_x", None, 404),
        ("GET", "/v1/embeddings", None, 405),
        ("GET", "/v1/images", None, 404),
    ],
)
def test_what_is_wrong_is_told_in_one_shape(
    server: Running, key: str, method: str, path: str, body: Any, status: int
) -> None:
    found = server.http.request(method, path, json=body, headers={"authorization": f"Bearer {key}"})
    assert found.status_code == status and set(found.json()["error"]) == {"message", "type", "param", "code"}


def test_without_a_folder_there_is_nothing_to_store(tmp_path: Path) -> None:
    with server_world.running(server_world.config(tmp_path)) as server:
        for path in ("/v1/files", "/v1/vector_stores", "/uptake/memories?user=a"):
            assert server.http.get(path).json()["error"]["code"] == "not_found"
