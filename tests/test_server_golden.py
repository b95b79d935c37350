"""The wire as clients see it, but for what is drawn or timed: every endpoint beside what is kept.

UPTAKE_GOLDEN=write make test ARGS=tests/test_server_golden.py   # after a change that was meant
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import server_world
from server_world import LORA, Running

GOLDEN = Path(__file__).with_name("golden_wire.json")
HEADERS = ("content-type", "cache-control", "x-should-retry", "retry-after")
DRAWN = re.compile(r"\b(cmpl|chatcmpl|file|vs|mem|pe|se|st|pa|tx|req|fp)[-_][0-9a-z_]{8,}")
WRITTEN = {"text", "content", "token", "tokens", "bytes", "chat_template"}  # by a model of random weights
TIMED = {"created", "created_at", "expires_at", "last_active_at", "seed"}
COMPLETION = {"model": "toy", "prompt": "the cat", "max_tokens": 2, "temperature": 0}
CHAT = {"model": "toy", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "temperature": 0}
STREAM = {"stream": True, "stream_options": {"include_usage": True}}
ONLINE = {"method": "online", "settings": [*LORA]}
NAMED = {"user": "ann", "text": "a cat"}

ASKED: list[tuple[str, str, Any]] = [
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/toy+notes", None),
    ("POST", "/v1/completions", COMPLETION),
    ("POST", "/v1/completions", {**COMPLETION, "logprobs": 2, "echo": True}),
    ("POST", "/v1/completions", {**COMPLETION, **STREAM, "logprobs": 1}),
    ("POST", "/v1/completions", {**COMPLETION, "model": "toy+notes", "zz": 1}),
    ("POST", "/v1/completions", {**COMPLETION, **STREAM, "model": "toy+notes"}),
    ("POST", "/v1/completions", {**COMPLETION, "uptake": {**ONLINE, "texts": ["a"], "explain": True}}),
    ("POST", "/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 1}),
    ("POST", "/v1/chat/completions", {**CHAT, **STREAM}),
    ("POST", "/uptake/score", {"text": "ab", "context": "c", "compare": ["toy", "toy+notes"]}),
    ("POST", "/tokenize", {"prompt": "ab"}),
    ("POST", "/detokenize", {"tokens": [1]}),
    ("GET", "/tokenizer_info", None),
    ("GET", "/health/live", None),
    ("GET", "/health/ready", None),
    ("POST", "/v1/files", b"a cat sat"),
    ("GET", "/v1/files", None),
    ("GET", "/v1/files/file", None),
    ("POST", "/v1/vector_stores", {"name": "notes"}),
    ("POST", "/v1/vector_stores/vs/files", {"file_id": "file"}),
    ("GET", "/v1/vector_stores/vs/files", None),
    ("GET", "/v1/vector_stores/vs/files/file", None),
    ("POST", "/v1/vector_stores/vs/search", {"query": "cat"}),
    ("GET", "/v1/vector_stores/vs", None),
    ("GET", "/v1/vector_stores", None),
    ("DELETE", "/v1/vector_stores/vs/files/file", None),
    ("DELETE", "/v1/vector_stores/vs", None),
    ("DELETE", "/v1/files/file", None),
    ("POST", "/uptake/memories", NAMED),
    ("GET", "/uptake/memories?user=ann", None),
    ("GET", "/uptake/memories/mem", None),
    ("DELETE", "/uptake/memories/mem", None),
    ("DELETE", "/uptake/memories?user=ann", None),
    ("POST", "/uptake/sessions", {"uptake": ONLINE}),
    ("POST", "/uptake/sessions/se/take", {"texts": ["a"]}),
    ("GET", "/uptake/sessions/se", None),
    ("DELETE", "/uptake/sessions/se", None),
    ("POST", "/v1/completions", {**COMPLETION, "model": "other"}),
    ("POST", "/v1/completions", {**COMPLETION, "tools": 1, "n": 99}),
    ("POST", "/v1/completions", {**COMPLETION, "best_of": 3}),
    ("GET", "/v1/completions", None),
    ("GET", "/v1/nothing", None),
]


@pytest.fixture(scope="module", name="server")
def server_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("golden")
    with server_world.running(server_world.config(root, data=str(root / "data"))) as found:
        yield found


def masked(value: Any, key: str = "") -> Any:
    """Return what stays the same from run to run, and from machine to machine."""
    if isinstance(value, dict):
        if key in ("top_logprobs", "forgotten"):
            return dict.fromkeys(value, 0) if key == "forgotten" else {"...": "number"}
        return {name: masked(each, name) for name, each in value.items()}
    if key in TIMED:
        return value if value is None else "number"
    if isinstance(value, list):
        kept = [masked(each, key) for each in value]
        return kept[:1] if key in WRITTEN or kept[1:] == kept[:-1] else kept
    if key in WRITTEN and value is not None:
        return type(value).__name__
    if isinstance(value, float):
        return "number"
    return DRAWN.sub(lambda found: found[1], value) if isinstance(value, str) else value


def told(found: Any) -> dict[str, Any]:
    """Return an answer as it is kept."""
    headers = {name: found.headers[name] for name in HEADERS if name in found.headers}
    if "event-stream" not in headers["content-type"]:
        return {"status": found.status_code, "headers": headers, "body": masked(found.json())}
    lines = [line for line in found.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    events = [line[6:] if "[DONE]" in line else masked(json.loads(line[6:])) for line in lines]
    return {"status": found.status_code, "headers": headers, "events": events}


def test_the_wire_is_what_it_was(server: Running) -> None:
    ids: dict[str, str] = {}
    answers = {}
    for place, (method, path, body) in enumerate(ASKED):
        for name, own in ids.items():
            path = re.sub(rf"/{name}(?=/|$)", f"/{own}", path)
            if isinstance(body, dict) and body.get("file_id") == name:
                body = {"file_id": own}
        if isinstance(body, bytes):
            sent: Any = {"files": {"file": ("a.txt", body)}, "data": {"purpose": "assistants"}}
        else:
            sent = {"json": body}
        found = server.http.request(method, path, **sent)
        if path.endswith("/files") and method == "POST" and "vs_" in path:
            server.openai().vector_stores.files.poll(
                ids["file"], vector_store_id=ids["vs"], poll_interval_ms=20
            )
        answers[f"{place} {method} {ASKED[place][1]}"] = told(found)
        if (
            method == "POST"
            and found.status_code == 200
            and "event-stream" not in found.headers["content-type"]
        ):
            made = found.json().get("id", "")
            ids |= {made.partition("_")[0]: made} if "_" in made else {}
    if os.environ.get("UPTAKE_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(answers, indent=1) + "\n")
    kept = json.loads(GOLDEN.read_text())
    assert list(answers) == list(kept)
    for name, answer in json.loads(json.dumps(answers)).items():
        assert answer == kept[name], name
