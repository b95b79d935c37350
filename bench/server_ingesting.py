"""What a stream and calls of a store take while the store of a client reads a large file."""

import itertools
import random
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx

from bench.served import ROOT, Served, percentile


def ingesting(server: Served) -> dict[str, Any]:
    """Time the tokens of a stream while a vector store reads 20 MB, in turns with times when it does not."""
    http = server.http
    drawn = random.Random(0)
    words = sorted({word for path in sorted(ROOT.glob("docs/**/*.md")) for word in path.read_text().split()})
    lines = (" ".join(drawn.choices(words, k=100)) for _ in itertools.count())
    text = "".join(f"{line}\n\n" for line in itertools.islice(lines, 26_000))[:20_000_000]

    def gaps(wanted: Callable[[], bool]) -> list[float]:
        """The milliseconds between tokens of streams, one after another, for as long as they are wanted."""
        found: list[float] = []
        body = {"model": "m", "prompt": "def main(", "max_tokens": 200, "stream": True}
        while wanted():
            last = None
            with http.stream("POST", "/v1/completions", json=body) as stream:
                for line in stream.iter_lines():
                    if line.startswith("data: {"):
                        now = time.perf_counter()
                        found += [] if last is None else [(now - last) * 1000]
                        last = now
        return found

    def asked(path: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Ask a store of clients' for as long as it is wanted, and keep the milliseconds of each answer."""
        with httpx.Client(base_url=server.url, headers=server.headers(), timeout=600) as watching:
            while True:
                started = time.perf_counter()
                found = watching.get(path).json()
                calls[now].append((time.perf_counter() - started) * 1000)
                if not wanted(found):
                    return
                time.sleep(0.05)

    tokens: dict[str, list[float]] = {"without": [], "during": []}
    calls: dict[str, list[float]] = {"without": [], "during": []}
    seconds = []
    for _ in range(3):
        store = f"/v1/vector_stores/{http.post('/v1/vector_stores', json={}).json()['id']}"
        sent = {"file": ("a.txt", text)}
        file = http.post("/v1/files", files=sent, data={"purpose": "assistants"}).json()["id"]
        now, end = "without", time.perf_counter() + 8
        waits = threading.Thread(target=asked, args=[store, lambda _, end=end: time.perf_counter() < end])
        waits.start()
        tokens[now] += gaps(waits.is_alive)
        now, started = "during", time.perf_counter()
        http.post(f"{store}/files", json={"file_id": file})
        path = f"{store}/files/{file}"
        waits = threading.Thread(target=asked, args=[path, lambda told: told["status"] == "in_progress"])
        waits.start()
        tokens[now] += gaps(waits.is_alive)
        seconds.append(time.perf_counter() - started)
        assert http.get(path).json()["status"] == "completed"
        http.delete(f"/v1/files/{file}", timeout=600)
    found = {
        what: {"count": len(each), "median_ms": statistics.median(each), "p95_ms": percentile(each, 0.95)}
        for what, each in (
            *((f"tokens {name}", each) for name, each in tokens.items()),
            *((f"store calls {name}", each) for name, each in calls.items()),
        )
    }
    times = {
        what: found["tokens during"][what] / found["tokens without"][what] for what in ("median_ms", "p95_ms")
    }
    return {"bytes": len(text.encode()), "read_in_s": seconds, **found, "times": times}
