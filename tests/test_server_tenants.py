"""What one tenant sees of another: nothing. Every endpoint is asked with another's ids, and with nobody's."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

import server_world
from server_world import LORA, Running
from uptake.server.keys import Keys

CANARY = "canary-of-the-other-tenant"


@pytest.fixture(scope="module", name="server")
def server_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("tenants")
    keys = Keys(root / "keys.db", make=True)
    with server_world.running(server_world.config(root, data=str(root / "data")), keys) as found:
        yield found


@pytest.fixture(scope="module", name="theirs")
def theirs_fixture(server: Running) -> dict[str, str]:
    """Return the ids of all that another tenant has, each with a canary in its name or text."""
    assert server.door.keys is not None
    secret = server.door.keys.add("other")[1]
    client, headers = server.openai(secret), {"authorization": f"Bearer {secret}"}
    file = client.files.create(file=(f"{CANARY}.txt", io.BytesIO(CANARY.encode())), purpose="assistants").id
    store = client.vector_stores.create(name=CANARY).id
    client.vector_stores.files.create_and_poll(file, vector_store_id=store, poll_interval_ms=20)

    def post(path: str, body: Any) -> Any:
        found = server.post(path, body, headers=headers)
        assert found.status_code == 200, found.text
        return found.json()

    memory = post("/uptake/memories", {"user": "ann", "text": CANARY})["id"]
    way = {"method": "online", "settings": [*LORA]}
    session = post("/uptake/sessions", {"uptake": way})["id"]
    (passage,) = post(f"/uptake/sessions/{session}/take", {"texts": [CANARY]})["passages"]
    post("/v1/completions", {"model": "toy", "prompt": "a", "max_tokens": 1, "uptake": {"session": session}})
    return {"FILE": file, "STORE": store, "MEMORY": memory, "SESSION": session, "PASSAGE": passage}


SEARCHING = {"method": "in-context", "store": "STORE"}
ASKED: list[tuple[str, str, Any]] = [
    ("GET", "/v1/files/FILE", None),
    ("GET", "/v1/files/FILE/content", None),
    ("DELETE", "/v1/files/FILE", None),
    ("GET", "/v1/files?after=FILE", None),
    ("GET", "/v1/vector_stores/STORE", None),
    ("GET", "/v1/vector_stores?after=STORE", None),
    ("POST", "/v1/vector_stores/STORE/search", {"query": CANARY}),
    ("GET", "/v1/vector_stores/STORE/files", None),
    ("GET", "/v1/vector_stores/STORE/files/FILE", None),
    ("POST", "/v1/vector_stores/STORE/files", {"file_id": "FILE"}),
    ("DELETE", "/v1/vector_stores/STORE/files/FILE", None),
    ("DELETE", "/v1/vector_stores/STORE", None),
    ("POST", "/v1/vector_stores", {"name": "mine", "file_ids": ["FILE"]}),
    ("GET", "/uptake/memories/MEMORY", None),
    ("DELETE", "/uptake/memories/MEMORY", None),
    ("GET", "/uptake/memories?user=ann&after=MEMORY", None),
    ("GET", "/uptake/sessions/SESSION", None),
    ("POST", "/uptake/sessions/SESSION/take", {"texts": ["a"]}),
    ("DELETE", "/uptake/sessions/SESSION/passages/PASSAGE", None),
    ("DELETE", "/uptake/sessions/SESSION", None),
    ("POST", "/v1/completions", {"model": "toy", "prompt": "a", "uptake": SEARCHING}),
    ("POST", "/v1/completions", {"model": "toy", "prompt": "a", "uptake": {"session": "SESSION"}}),
    (
        "POST",
        "/v1/completions",
        {"model": "toy", "prompt": "a", "uptake": {"method": "in-context", "memory": "ann"}},
    ),
    ("POST", "/uptake/score", {"text": "a", "context": "b", "compare": ["toy"], "uptake": SEARCHING}),
]


def with_ids(text: str, ids: dict[str, str]) -> str:
    for name, own in ids.items():
        text = text.replace(name, own)
    return text


@pytest.mark.parametrize(("method", "path", "body"), ASKED, ids=map(str, range(len(ASKED))))
def test_what_is_somebody_elses_answers_as_what_never_was(
    server: Running, theirs: dict[str, str], method: str, path: str, body: Any, request: pytest.FixtureRequest
) -> None:
    assert server.door.keys is not None
    headers = {"authorization": f"Bearer {server.door.keys.add(request.node.name)[1]}"}
    nobodys = {name: own.replace(own[-24:], "0" * 24) for name, own in theirs.items()}
    told = []
    for ids in (theirs, nobodys):
        sent = None if body is None else json.loads(with_ids(json.dumps(body), ids))
        found = server.http.request(method, with_ids(path, ids), json=sent, headers=headers)
        assert found.status_code < 500 and CANARY not in found.text
        text = found.text
        for name, own in ids.items():
            text = text.replace(own, name)
        told.append((found.status_code, text))
    assert told[0] == told[1]


def test_lists_and_counts_know_nothing_of_others(server: Running, theirs: dict[str, str]) -> None:
    assert server.door.keys is not None
    headers = {"authorization": f"Bearer {server.door.keys.add('nobody yet')[1]}"}
    for path in ("/v1/files", "/v1/vector_stores", "/uptake/memories?user=ann"):
        found = server.http.get(path, headers=headers).json()
        assert found["data"] == [] and found["has_more"] is False
    scored = {"text": "a", "context": "b", "compare": ["toy"]}
    own = {"model": "toy", "prompt": CANARY, "max_tokens": 1}
    own["uptake"] = {"method": "online", "settings": [*LORA], "texts": [CANARY]}
    for path, body in (("/uptake/score", scored), ("/v1/completions", own)):
        told = server.post(path, body, headers=headers)
        assert told.status_code == 200 and not any(each in told.text for each in theirs.values())
        if "uptake" in told.json():
            assert told.json()["uptake"]["cache"] == "made"
    # Whoever looks after the server sees counts, and whose they are in none.
    ops = {"authorization": f"Bearer {server.door.keys.add('ops', ['metrics'])[1]}"}
    page = server.http.get("/metrics", headers=ops).text
    assert CANARY not in page and "ten_" not in page and not any(each in page for each in theirs.values())


def test_their_things_are_all_there_afterwards(server: Running, theirs: dict[str, str]) -> None:
    assert server.door.keys is not None
    secret = server.door.keys.add("other")[1]  # another key of the same tenant
    headers = {"authorization": f"Bearer {secret}"}
    for path in (
        "/v1/files/FILE",
        "/v1/vector_stores/STORE",
        "/uptake/memories/MEMORY",
        "/uptake/sessions/SESSION",
    ):
        assert server.http.get(with_ids(path, theirs), headers=headers).status_code == 200
    found = server.openai(secret).vector_stores.search(theirs["STORE"], query=CANARY).data
    assert [each.content[0].text for each in found] == [CANARY]
