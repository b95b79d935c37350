"""Addresses where nobody answers, or somebody else: refused within seconds, not tried for minutes."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from uptake.errors import BadInput, UptakeError
from uptake.store import Datastore
from uptake.store.cluster import connect
from uptake.store.remote import objects


@contextlib.contextmanager
def listening(answer: bytes | None) -> Iterator[tuple[int, list[bytes]]]:
    """A port whose connections get an answer and are closed, or with None nothing; and what they sent."""
    heard: list[bytes] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)

        def serve() -> None:
            kept = []
            while True:
                try:
                    one, _ = server.accept()
                except OSError:
                    return
                if answer is None:
                    heard.append(b"")
                    kept.append(one)
                    continue
                heard.append(one.recv(1024))
                one.sendall(answer)
                one.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], heard
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.fixture(name="no_ray")
def no_ray_fixture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself must not be asked: it tries for minutes."""
    ray = pytest.importorskip("ray")

    def init(*arguments: Any, **named: Any) -> None:
        raise AssertionError("Ray was asked")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(connect, "SECONDS", 0.2)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_does_not_answer_is_refused(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(None) as (port, _), pytest.raises(BadInput, match=r"no answer within 0\.2 seconds"):
        connect.connect(f"{scheme}127.0.0.1:{port}")
    with listening(b"") as (port, heard), pytest.raises(BadInput, match="what listens there is no Ray"):
        connect.connect(f"{scheme}127.0.0.1:{port}")
    assert heard[0].startswith(b"PRI * HTTP/2.0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(BadInput, match=r"no Ray cluster at .*refused"):
        connect.connect(f"{scheme}127.0.0.1:{port}")
    with pytest.raises(BadInput, match="no Ray cluster"):
        connect.connect(f"{scheme}127.0.0.1:999999")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    with pytest.raises(BadInput, match=f"no Ray cluster at '127.0.0.1:{port}'"):
        connect.connect("auto")


@pytest.mark.usefixtures("no_ray")
def test_what_answers_as_ray_does_is_asked() -> None:
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    with listening(settings) as (port, _), pytest.raises(AssertionError, match="Ray was asked"):
        connect.connect(f"127.0.0.1:{port}")
    with pytest.raises(AssertionError, match="Ray was asked"):
        connect.connect("local")


def test_an_object_store_that_fails_is_not_tried_beyond_its_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(objects, "PATIENCE", timedelta(0))
    objects._opened.cache_clear()
    with listening(b"") as (port, heard):
        options = {
            "aws_endpoint": f"http://127.0.0.1:{port}",
            "aws_access_key_id": "a",
            "aws_secret_access_key": "b",
            "aws_region": "x",
            "allow_http": "true",
        }
        with pytest.raises(UptakeError, match=r"bucket/notes\.store"):
            Datastore.open("s3://bucket/notes.store", storage_options=options)
    assert len(heard) <= 2
    objects._opened.cache_clear()
