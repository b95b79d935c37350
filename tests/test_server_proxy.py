"""The server behind nginx, by the very file in docs/serving; skipped without nginx or openssl."""

import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from server_world import ROOT, Process
from uptake.server.keys import Keys

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not shutil.which("nginx") or not shutil.which("openssl"), reason="needs nginx, openssl"
    ),
]
AROUND = """worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; daemon off;
events {{ }}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {server}
}}"""


class Behind:
    """A server with a key, and nginx with TLS before it."""

    def __init__(self, folder: Path) -> None:
        self.keys = Keys(folder / "keys.db", make=True)
        self.secret = self.keys.add("ann", ["admin"])[1]
        self.server = Process(folder, "--keys", folder / "keys.db", "--data", folder / "data")
        self.server.http.headers["authorization"] = f"Bearer {self.secret}"
        certificate, key = folder / "own.pem", folder / "own.key"
        asked = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
        asked += ["-addext", "subjectAltName=DNS:localhost", "-out", certificate, "-keyout", key]
        subprocess.run(["openssl", *map(str, asked)], check=True, capture_output=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        text = (ROOT / "docs" / "serving" / "nginx.conf").read_text()
        for given, own in {
            "listen 443": f"listen 127.0.0.1:{port}",
            "/etc/ssl/uptake.pem": str(certificate),
            "/etc/ssl/uptake.key": str(key),
            "http://127.0.0.1:8000": self.server.url,
        }.items():
            assert text.count(given) == 1, given
            text = text.replace(given, own)
        (folder / "nginx.conf").write_text(AROUND.format(folder=folder, server=text))
        self.nginx = subprocess.Popen(
            ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.PIPE, text=True
        )
        self.url = f"https://localhost:{port}"
        self.trusted = ssl.create_default_context(cafile=str(certificate))
        headers = {"authorization": f"Bearer {self.secret}"}
        self.http = httpx.Client(base_url=self.url, verify=self.trusted, timeout=60, headers=headers)
        for _ in range(500):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except OSError:
                assert self.nginx.poll() is None, self.nginx.stderr and self.nginx.stderr.read()
                time.sleep(0.01)
        raise AssertionError("nginx does not listen")

    def counted(self, what: str) -> float:
        """A line of the server's own metrics."""
        lines = self.server.http.get("/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(what)), 0.0)

    def close(self) -> None:
        self.http.close()
        self.nginx.terminate()
        self.nginx.wait(20)
        self.server.close()


@pytest.fixture(scope="module", name="behind")
def behind_fixture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    found = Behind(tmp_path_factory.mktemp("behind"))
    yield found
    found.close()


def test_a_client_asks_through_tls_as_it_would_without(behind: Behind) -> None:
    client = openai.OpenAI(base_url=f"{behind.url}/v1", api_key=behind.secret, http_client=behind.http)
    found = client.completions.create(model="toy+notes", prompt="the cat", max_tokens=8, temperature=0)
    straight = behind.server.http.post(
        "/v1/completions", json={"model": "toy+notes", "prompt": "the cat", "max_tokens": 8, "temperature": 0}
    ).json()
    assert found.choices[0].text == straight["choices"][0]["text"]
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="up-other").models.list()
    with pytest.raises(httpx.ConnectError):  # nobody else vouches for this certificate
        httpx.get(f"{behind.url}/health/live")
    assert behind.http.get("/metrics").status_code == 403  # from within alone
    text = "a cat. " * 300_000  # larger than what nginx takes unless it is told
    file = client.files.create(file=("a.txt", text.encode()), purpose="assistants")
    assert file.bytes == len(text)


LONG = {"model": "toy", "prompt": "a", "max_tokens": 250, "n": 8, "seed": 1, "stream": True}


def test_a_stream_passes_token_by_token(behind: Behind) -> None:
    body = json.dumps({**LONG, "n": 1, "temperature": 0}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {behind.secret}\r\n"
    head += f"content-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    port = int(behind.url.rpartition(":")[2])
    with behind.trusted.wrap_socket(
        socket.create_connection(("127.0.0.1", port)), server_hostname="localhost"
    ) as line:
        line.sendall(head.encode() + body)
        parts = [*iter(lambda: line.recv(1 << 16), b"")]
    # nginx would wait for a packet's worth, 1,460 bytes, before it sends a first part.
    assert parts[0].startswith(b"HTTP/1.1 200") and len(parts[0]) < 1460
    assert b"[DONE]" in b"".join(parts) and sum(map(len, parts)) > 10_000


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_rows_behind_the_proxy_too(behind: Behind, stream: bool) -> None:
    body: Any = {**LONG, "stream": stream}
    left = 'uptake_cancelled_total{stage="write"}'
    before = behind.counted(left)
    if stream:
        with behind.http.stream("POST", "/v1/completions", json=body) as found:
            next(found.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            behind.http.post("/v1/completions", json=body, timeout=0.2)
    for _ in range(500):
        if behind.counted("uptake_running") == 0 == behind.counted('uptake_engine{what="rows"}'):
            break
        time.sleep(0.01)
    assert behind.counted(left) == before + 1  # its answer was not written to its end
    assert behind.counted('uptake_engine{what="kv_bytes"}') == 0 == behind.counted("uptake_running")
