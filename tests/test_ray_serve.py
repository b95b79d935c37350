"""Two engines behind one address on Ray Serve, by the example that shows it."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

import server_world
from server_world import ROOT
from uptake.server.keys import Keys

pytest.importorskip("ray.serve", exc_type=ImportError)
pytestmark = pytest.mark.long

# On a busy machine Ray's own front door takes longer to come up than Ray waits by itself.
PATIENT = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "90", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "90"}


class Cluster:
    """The example as it is started by hand."""

    def __init__(self, folder: Path) -> None:
        own = server_world.config(folder)
        self.keys = Keys(folder / "keys.db", make=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = ["--model", own.model, "--store", own.stores[0].path, "--keys", folder / "keys.db"]
        words += ["--data", folder / "data", "--engines", 2, "--port", port]
        self._ray = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "examples" / "ray_serve.py"), *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=(folder / "log").open("w"),
            text=True,
            env={**os.environ, **PATIENT, "RAY_TMPDIR": self._ray.name, "RAY_USAGE_STATS_ENABLED": "0"},
        )
        assert self.process.stdout is not None
        line = next((each for each in self.process.stdout if " engines at http" in each), None)
        assert line is not None, (folder / "log").read_text()[-4000:]
        self.url = line.split(" at ")[1].split("/v1")[0]

    def http(self, secret: str) -> httpx.Client:
        headers = {"authorization": f"Bearer {secret}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def replica(self, place: str) -> psutil.Process:
        """The process of an engine's server."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        (found,) = [each for each in family if f"engine-{place}" in " ".join(each.cmdline())]
        return found

    def straight(self, place: str) -> httpx.Client:
        """A client of an engine's server, without Ray between."""
        for line in self.replica(place).net_connections("inet4"):
            if line.status == "LISTEN":
                http = httpx.Client(base_url=f"http://{line.laddr.ip}:{line.laddr.port}", timeout=60)
                with contextlib.suppress(httpx.HTTPError, ValueError):
                    if http.get("/health/live", timeout=5).json() == {"live": True}:
                        return http
        raise AssertionError("the engine listens nowhere")

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)
        self._ray.cleanup()


@pytest.fixture(scope="module", name="cluster")
def cluster_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("cluster"))
    yield found
    found.close()


def ask(http: httpx.Client, model: str = "m+docs", **more: Any) -> httpx.Response:
    body = {"model": model, "prompt": "the cat sat on", "max_tokens": 8, "temperature": 0, **more}
    found = http.post("/v1/completions", json=body)
    assert found.status_code == 200, found.text
    return found


def tenant_at(cluster: Cluster, place: str) -> tuple[str, httpx.Client]:
    """Return a key of a tenant that this engine answers, and a client with it."""
    for number in range(64):
        secret = cluster.keys.add(f"tenant {number}", ["admin"])[1]
        http = cluster.http(secret)
        if http.get("/health/ready").headers["x-uptake-engine"] == place:
            return f"tenant {number}", http
    raise AssertionError("no tenant goes there")


def test_both_engines_answer_and_a_tenant_stays_with_the_one_that_keeps_its_states(cluster: Cluster) -> None:
    texts = set()
    for place in "01":
        name, http = tenant_at(cluster, place)
        other = cluster.http(cluster.keys.add(name)[1])  # another key of the same tenant
        first, second = ask(http), ask(other)
        assert first.headers["x-uptake-engine"] == second.headers["x-uptake-engine"] == place
        assert [each.json()["uptake"]["cache"] for each in (first, second)] == ["made", "hit"]
        texts |= {each.json()["choices"][0]["text"] for each in (first, second)}
        kept = http.post("/uptake/memories", json={"user": "ann", "text": f"ann sits {place}"}).json()["id"]
        assert http.get(f"/uptake/memories/{kept}").json()["text"] == f"ann sits {place}"
    assert len(texts) == 1  # one model, one store: whichever answers
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="up-none", max_retries=0).models.list()


def test_a_stream_passes(cluster: Cluster) -> None:
    _, http = tenant_at(cluster, "1")
    secret = http.headers["authorization"].split()[1]
    client = openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=secret, max_retries=0)
    asked: Any = {"model": "m", "prompt": "the cat sat on", "max_tokens": 8, "temperature": 0}
    streamed = "".join(each.choices[0].text for each in client.completions.create(**asked, stream=True))
    assert streamed == ask(http, "m").json()["choices"][0]["text"]


# Some seconds of work each: writing 32 rows, and training on many pieces.
LONG = {"model": "m", "prompt": ["the cat"] * 4, "max_tokens": 240, "n": 8, "seed": 1}
TRAINS = {"method": "ttt-nn", "settings": ["trainable=lora(rank=2)"], "texts": ["the cat sat. " * 4000]}
LEAVES = {
    "write": LONG,
    "write, in a stream": {**LONG, "stream": True},
    "adapt": {**LONG, "n": 1, "prompt": "a", "uptake": TRAINS},
}


@pytest.mark.parametrize("stage", LEAVES)
def test_a_client_that_leaves_frees_what_it_held_on_the_engine(cluster: Cluster, stage: str) -> None:
    _, http = tenant_at(cluster, "0")
    key, straight = {"authorization": http.headers["authorization"]}, cluster.straight("0")

    def counts() -> dict[str, float]:
        page = straight.get("/metrics", headers=key).text
        lines = (each.rsplit(" ", 1) for each in page.splitlines() if not each.startswith("#"))
        return {name: float(value) for name, value in lines}

    def held() -> list[float]:
        found = counts()
        names = [f'uptake_engine{{what="{name}"}}' for name in ("rows", "kv_bytes", "requests", "adapting")]
        return [found[name] for name in ("uptake_running", "uptake_waiting", *names) if found[name]]

    left = f'uptake_cancelled_total{{stage="{stage.split(",")[0]}"}}'
    before = counts().get(left, 0)
    body = LEAVES[stage]
    if body.get("stream"):
        with (
            httpx.Client(base_url=cluster.url, headers=key, timeout=120) as leaving,
            leaving.stream("POST", "/v1/completions", json=body) as found,
        ):
            assert next(found.iter_lines()).startswith("data: ")
    else:
        under_way = f'uptake_engine{{what="{"rows" if stage == "write" else "adapting"}"}}'

        async def leave_once_it_is_under_way() -> None:
            async with httpx.AsyncClient(base_url=cluster.url, headers=key, timeout=120) as leaving:
                asked = asyncio.create_task(leaving.post("/v1/completions", json=body))
                while not counts()[under_way]:
                    await asyncio.sleep(0.01)
                asked.cancel()

        asyncio.run(asyncio.wait_for(leave_once_it_is_under_way(), 60))
    started = time.monotonic()
    while held():
        assert time.monotonic() - started < 5
        time.sleep(0.01)
    assert counts()[left] == before + 1


def test_a_file_passes_as_it_comes_and_one_that_is_too_large_is_refused(cluster: Cluster) -> None:
    _, http = tenant_at(cluster, "0")
    text = b"the cat sat on the mat. " * 400_000
    form: Any = {"files": {"file": ("a.txt", text)}, "data": {"purpose": "assistants"}}
    made = http.post("/v1/files", **form)
    assert made.status_code == 200 and made.json()["bytes"] == len(text)
    assert http.get(f"/v1/files/{made.json()['id']}/content").content == text
    told = http.post(
        "/v1/completions", content=b"{" * (5 << 20), headers={"content-type": "application/json"}
    )
    assert told.status_code == 413 and told.json()["error"]["code"] == "too_large"


def test_an_engine_that_dies_tells_those_it_was_answering(cluster: Cluster) -> None:
    _, http = tenant_at(cluster, "1")
    with http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as found:
        lines = found.iter_lines()
        next(lines)
        cluster.replica("1").kill()
        *_, last, end = [line.removeprefix("data: ") for line in lines if line]
    assert end == "[DONE]" and json.loads(last)["error"]["code"] == "engine_restarted"
    for _ in range(600):
        again = http.get("/health/ready")
        if again.status_code == 200:
            break
        # Whatever is told until another is there has the one shape.
        assert again.json()["error"]["code"] in ("starting", "engine_restarted")
        time.sleep(0.2)
    assert ask(http, "m").status_code == 200


def test_an_engine_that_dies_is_started_again_and_the_other_goes_on(cluster: Cluster) -> None:
    _, one = tenant_at(cluster, "0")
    _, other = tenant_at(cluster, "1")
    kept = one.post("/uptake/memories", json={"user": "ann", "text": "ann sat"}).json()["id"]
    cluster.replica("0").kill()
    ask(other)
    for _ in range(600):
        if one.get("/health/ready").status_code == 200:
            break
        time.sleep(0.2)
    assert ask(one).json()["uptake"]["cache"] == "made"  # states go with an engine, what was stored stays
    assert one.get(f"/uptake/memories/{kept}").json()["text"] == "ann sat"
