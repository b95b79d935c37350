"""The server as it really runs: two processes, which are killed, drained and asked by the harness."""

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import server_world
from server_world import Process
from uptake.lm.base import Segment
from uptake.lm.loading import load
from uptake.session import Session
from uptake.store.datastore import Datastore

pytestmark = pytest.mark.long
KILLS = int(os.environ.get("UPTAKE_KILLS", "3"))


@pytest.fixture(name="server")
def server_fixture(tmp_path: Path) -> Iterator[Process]:
    found = Process(tmp_path)
    yield found
    found.close()


def ask(server: Process, **more: Any) -> httpx.Response:
    return server.http.post("/v1/completions", json={"model": "toy+notes", "prompt": "the cat", **more})


def test_an_engine_that_is_killed_is_told_of_and_started_again(server: Process) -> None:
    before = ask(server, max_tokens=8, temperature=0).json()["choices"]
    for restarts in range(1, 4):
        (engine,) = server.children()
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        stream = client.completions.create(
            model="toy", prompt="a", max_tokens=250, temperature=0, stream=True
        )
        next(iter(stream))
        os.kill(engine, signal.SIGKILL)
        with pytest.raises(openai.APIError, match="restarted"):
            list(stream)
        assert ask(server).json()["error"]["code"] == "starting"
        server.again(restarts)
        assert ask(server, max_tokens=8, temperature=0).json()["choices"] == before


def asked(model: str) -> dict[str, Any]:
    return {"model": model, "prompt": "the cat", "max_tokens": 4, "temperature": 0}


def keeping(number: int) -> dict[str, Any]:
    text = f"the dog of {number} ran"
    return {"method": "online", "settings": [*server_world.LORA], "texts": [text], "keep": True}


@pytest.mark.parametrize("killed", ["engine", "door"])
def test_what_was_acknowledged_stands_however_often_a_process_is_killed(tmp_path: Path, killed: str) -> None:
    server = Process(tmp_path, "--data", tmp_path / "data")
    kept: dict[str, str] = {}
    states: dict[str, str] = {}
    gone: list[str] = []
    gone_states: list[str] = []
    answered = 0
    end = threading.Event()

    def write() -> None:
        nonlocal answered
        number = 0
        while not end.is_set():
            number += 1
            text = f"canary-{number}-canary the cat sat"
            with httpx.Client(base_url=server.url, timeout=60) as http:
                try:
                    made = http.post("/uptake/memories", json={"user": "ann", "text": text})
                    if made.status_code != 200:
                        time.sleep(0.1)  # the engine is starting
                        continue
                    kept[made.json()["id"]] = text
                    told = http.post("/v1/completions", json={**asked("toy"), "uptake": keeping(number)})
                    if told.status_code == 200:
                        states[told.json()["uptake"]["state"]] = told.json()["choices"][0]["text"]
                    answered += 1
                    if answered % 3 == 0:
                        name = next(iter(kept))
                        text = kept.pop(name)
                        # What is not answered may or may not have been done: it counts for neither.
                        if http.delete(f"/uptake/memories/{name}").status_code == 200:
                            gone.append(text)
                        state = next(iter(states), "")
                        states.pop(state, None)
                        if http.delete(f"/uptake/states/{state}").status_code == 200:
                            gone_states.append(state)
                except httpx.HTTPError:
                    time.sleep(0.1)

    writer = threading.Thread(target=write)
    writer.start()
    drawn = random.Random(0)
    try:
        for restarts in range(1, KILLS + 1):
            before = answered
            while answered < before + 4:
                time.sleep(0.05)
            time.sleep(drawn.random() / 2)
            (engine,) = server.children()
            if killed == "engine":
                os.kill(engine, signal.SIGKILL)
                server.again(restarts)
                continue
            server.process.kill()
            server.process.wait()
            server.http.close()
            # Its engine ends by itself: only then may another server have the folder.
            server = Process(tmp_path, "--data", tmp_path / "data")
    finally:
        end.set()
        writer.join()
    listed = server.http.get("/uptake/memories", params={"user": "ann", "limit": 10000}).json()["data"]
    texts = {each["id"]: each["text"] for each in listed}
    assert kept and gone and all(texts[name] == text for name, text in kept.items())
    assert not {*gone} & {*texts.values()}
    there = server.http.get("/uptake/states", params={"limit": 10000}).json()["data"]
    names = {each["id"] for each in there}
    assert states and gone_states and {*states} <= names and not {*gone_states} & names
    for name, text in [*states.items()][-5:]:
        told = server.http.post("/v1/completions", json=asked(f"toy@{name}")).json()
        assert told["choices"][0]["text"] == text
    server.close()
    stored = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert not [text for text in gone if text.split(" ")[0].encode() in stored]


def test_what_is_deleted_while_it_is_read_is_gone_at_once_and_holds_nothing_up(tmp_path: Path) -> None:
    server = Process(tmp_path, "--data", tmp_path / "data")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    store = client.vector_stores.create(name="notes").id
    drawn = random.Random(0)
    long = "\n\n".join(
        "canary-5813 " + " ".join(f"{drawn.getrandbits(24):x}" for _ in range(100)) for _ in range(20_000)
    )
    files = [
        client.files.create(file=(name, text.encode()), purpose="assistants").id
        for name, text in (("long.txt", long), ("short.txt", "the pump is reset by its red lever"))
    ]
    for file in files:
        client.vector_stores.files.create(store, file_id=file)
    # It is being read: its batches come in, and calls are answered all the same.
    stored = tmp_path / "data" / "ten_local" / "stores" / store
    for _ in range(3000):
        if len(list(stored.rglob("*.lance"))) > 1 or server.process.poll() is not None:
            break
        assert client.vector_stores.retrieve(store).file_counts.in_progress == 2
    else:
        raise AssertionError("it is not being read")
    gone = client.files.delete(files[0])
    assert gone.deleted and gone.uptake["forgotten"]["files"] == 1  # type: ignore[attr-defined]
    left = b"".join(path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert b"canary-5813" not in left
    held = client.vector_stores.files.poll(files[1], vector_store_id=store)
    assert held.status == "completed"
    (found,) = client.vector_stores.search(store, query="pump").data
    assert found.file_id == files[1]
    server.close()


def below(server: Process) -> dict[str, int]:
    """The processes that the engine has started, by the last part of their module's name."""
    (engine,) = server.children()
    found = {}
    for task in Path(f"/proc/{engine}/task").iterdir():
        for child in (task / "children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            found[words[2].decode().rpartition(".")[2]] = int(child)
    return found


LONG = 5_000  # passages, which come in batches of two thousand


@pytest.mark.parametrize("killed", ["engine", "intake_process", "encoder_process"])
def test_a_file_that_is_killed_on_its_way_in_is_there_whole_or_not_at_all(
    tmp_path: Path, killed: str
) -> None:
    words = ["--data", tmp_path / "data"]
    if killed == "encoder_process":
        words += ["--embedder", f"lm:{server_world.saved_model(tmp_path / 'toy')}"]
    server = Process(tmp_path, *words)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    store = client.vector_stores.create(name="notes").id
    lines = [json.dumps({"id": str(number), "text": f"the canary of {number}"}) for number in range(LONG)]
    texts = {"first.txt": "the pump", "long.jsonl": "\n".join(lines), "last.txt": "its red lever"}
    files = {
        name: client.files.create(file=(name, text.encode()), purpose="assistants").id
        for name, text in texts.items()
    }
    at = tmp_path / "data" / "ten_local" / "stores" / store

    def stored() -> int:
        count = Datastore.open(at, search_by="lexical" if killed == "encoder_process" else None).count
        assert count in {0, 1, 2, LONG, LONG + 1, LONG + 2}  # no file in part
        return count

    def status(name: str) -> str:
        for _ in range(6000):
            with contextlib.suppress(openai.APIError):  # while an engine starts
                told = client.vector_stores.files.retrieve(files[name], vector_store_id=store).status
                if told != "in_progress":
                    return told
            stored()
            time.sleep(0.05)
        raise AssertionError(f"{name} is on its way for ever")

    def taken_in(name: str) -> str:
        client.vector_stores.files.create(store, file_id=files[name])
        return status(name)

    assert taken_in("first.txt") == "completed" and stored() == 1
    drawn = random.Random(0)
    for restarts in range(1, KILLS + 1):
        client.vector_stores.files.create(store, file_id=files["long.jsonl"])
        while "intake_process" not in below(server):
            time.sleep(0.01)
        until = time.monotonic() + drawn.random() * (2 if killed == "encoder_process" else 1)
        while time.monotonic() < until:
            stored()
        os.kill(below(server)[killed] if killed != "engine" else server.children()[0], signal.SIGKILL)
        if killed == "engine":
            server.again(restarts)
        told = status("long.jsonl")
        # It goes on, or it is told as failed and nothing of it is left; unless it was in before the kill.
        assert stored() == (LONG + 1 if told == "completed" else 1)
        assert told == "completed" or killed != "engine"
        found = client.vector_stores.search(store, query="canary", max_num_results=50).data
        assert any(each.file_id == files["long.jsonl"] for each in found) == (told == "completed")
        # What was acknowledged stands.
        (best,) = client.vector_stores.search(store, query="pump", max_num_results=1).data
        assert best.file_id == files["first.txt"]
        client.vector_stores.files.delete(files["long.jsonl"], vector_store_id=store)
        assert stored() == 1
    assert taken_in("long.jsonl") == taken_in("last.txt") == "completed"
    assert stored() == LONG + 2
    server.close()
    assert Datastore.open(at, search_by="lexical" if killed == "encoder_process" else None).verify() == []


def test_a_server_that_goes_down_lets_what_runs_finish(server: Process) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
    stream = client.completions.create(model="toy", prompt="a", max_tokens=200, temperature=0, stream=True)
    next(iter(stream))
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    refused = ask(server)
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "draining"
    assert server.http.get("/health/ready").status_code == 503
    assert [each.choices[0].finish_reason for each in stream][-1] == "length"
    assert server.process.wait(30) == 0


def test_the_door_holds_no_torch(server: Process) -> None:
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" not in maps and "libtorch" in Path(f"/proc/{server.children()[0]}/maps").read_text()


@pytest.mark.parametrize("name", ["toy", "toy+notes", "kept"])
def test_the_harness_scores_over_http_what_the_library_scores(tmp_path: Path, name: str) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    server = Process(tmp_path, "--data", tmp_path / "data")
    pairs = [("the cat sat", " on the mat"), ("one fish, two", " fish"), ("a dog", " ran over")]
    more: dict[str, Any] = {"uptake": {"query": "the cat"}} if name == "toy+notes" else {}
    if name == "kept":
        told = ask(server, max_tokens=1, uptake={"query": "the cat", "keep": True}).json()
        name = f"toy@{told['uptake']['state']}"  # needs nothing beside its name
    remote = LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model=name,
        tokenizer=str(tmp_path / "toy"),
        tokenizer_backend="huggingface",
        max_length=256,
        tokenized_requests=True,
        **more,
    )
    if more:
        payload = remote._create_payload

        def with_query(*args: Any, **kwargs: Any) -> dict[str, Any]:
            return {**payload(*args, **kwargs), **more}

        remote._create_payload = with_query
    asked = [Instance("loglikelihood", {}, pair, place) for place, pair in enumerate(pairs)]
    found = remote.loglikelihood(asked)
    server.close()
    lm = load(str(tmp_path / "toy"))
    session = Session(
        lm,
        "ttt-nn",
        settings=server_world.LORA,
        store=Datastore.open(tmp_path / "notes.store"),
        k=2,
        continues=False,
    )
    session.adapt("the cat")
    answers = lm if name == "toy" else session.adapted
    for (context, text), (log_prob, _) in zip(pairs, found, strict=True):
        wanted = answers.score([Segment(text, context)])[0].log_probs.sum().item()
        assert log_prob == pytest.approx(wanted, abs=1e-4)


def test_what_it_prints_is_its_address_and_nothing_of_what_is_asked(tmp_path: Path) -> None:
    server = Process(tmp_path)
    ask(server, prompt="canary-4711", max_tokens=1)
    server.http.post("/v1/completions", content=b"canary-4711")
    server.close()
    assert server.process.stderr is not None
    assert "canary" not in json.dumps(server.process.stderr.read())
