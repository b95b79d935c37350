"""Two engines behind one address on Ray Serve, by the example that shows it."""

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


def test_an_engine_that_dies_is_started_again_and_the_other_goes_on(cluster: Cluster) -> None:
    _, one = tenant_at(cluster, "0")
    _, other = tenant_at(cluster, "1")
    kept = one.post("/uptake/memories", json={"user": "ann", "text": "ann sat"}).json()["id"]
    import psutil

    family = psutil.Process(cluster.process.pid).children(recursive=True)
    (replica,) = [each for each in family if "engine-0" in " ".join(each.cmdline())]
    replica.kill()
    ask(other)
    for _ in range(600):
        if one.get("/health/ready").status_code == 200:
            break
        time.sleep(0.2)
    assert ask(one).json()["uptake"]["cache"] == "made"  # states go with an engine, what was stored stays
    assert one.get(f"/uptake/memories/{kept}").json()["text"] == "ann sat"
