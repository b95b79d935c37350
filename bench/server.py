"""What a server holds up to: bad bodies, slow connections, clients that leave, four times the load, greed.

    python bench/server.py [--only bodies,slow,leaving,load,speed,ingesting] [--json out.json]

Starts `uptake serve` with the repository's model, a process with a thread, and asks it over loopback.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from uptake import Datastore, read
from uptake.server.keys import Keys, Limits

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "examples" / "demo-model"
PROGRAM = "from uptake.cli.main import main; main()"
WAY = ("trainable=lora", "learning_rate=1e-3")
GENEROUS = Limits(10**7, 10**9, 10**9, 10**5)


class Served:
    """A server in a process of its own, and keys of two tenants."""

    def __init__(self, folder: Path) -> None:
        store = folder / "docs.store"
        Datastore.create(store, retriever="lexical").add(read(str(ROOT / "docs" / "methods")))
        keys = Keys(folder / "keys.db", make=True)
        self.first, self.second = (keys.add(name, ["admin"], GENEROUS)[1] for name in ("first", "second"))
        words = ["serve", "-m", MODEL, "-s", store, "-k", 5, "--port", 0, "--threads", 1]
        words += ["--keys", folder / "keys.db", "--set", WAY[0], "--set", WAY[1], "--data", folder / "data"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, words)], stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        line = next(each for each in self.process.stderr if " at http" in each)
        self.url = line.split(" at ")[1].split("/v1")[0]
        self.port = int(self.url.rpartition(":")[2])
        (self.engine,) = map(
            int, Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        )

    def headers(self, key: str | None = None) -> dict[str, str]:
        return {"authorization": f"Bearer {key or self.first}"}

    def facts(self) -> dict[str, float]:
        """What the engine holds now, and what waits."""
        page = httpx.get(f"{self.url}/metrics", headers=self.headers(), timeout=60).text
        found = {}
        for line in page.splitlines():
            if line.startswith(("uptake_engine{", "uptake_running ", "uptake_waiting ")):
                name, value = line.rsplit(" ", 1)
                found[name.partition('"')[2].rstrip('"}') or name] = float(value)
        return found

    def memory(self) -> int:
        """The bytes of both processes."""
        pages = [
            int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in (self.process.pid, self.engine)
        ]
        return sum(pages) * 4096

    def cpu(self, pid: int) -> float:
        """CPU seconds of a process."""
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@contextlib.contextmanager
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder:
        found = Served(Path(folder))
        try:
            yield found
        finally:
            found.close()


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def bodies(server: Served) -> dict[str, Any]:
    """Send 2,000 mutated bodies: how many get a 5xx, and how long the slowest takes."""
    drawn = random.Random(0)
    whole = [
        (
            "/v1/completions",
            {"model": "demo-model", "prompt": "def f(", "max_tokens": 1, "stop": ["a"], "n": 1},
        ),
        (
            "/v1/chat/completions",
            {"model": "demo-model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
        ),
        ("/v1/completions", {"model": "demo-model", "prompt": [1, 2], "max_tokens": 1, "uptake": {"k": 1}}),
        ("/uptake/score", {"text": "def f(", "compare": ["demo-model"]}),
        ("/tokenize", {"prompt": "def"}),
        ("/detokenize", {"tokens": [1, 2, 3]}),
    ]
    odd = [None, True, -1, 0, 1e308, 2**70, "", "\x00", "\ud7ff", [], {}, [[]], "a" * 5000, [None], {"a": {}}]

    def mutated() -> tuple[str, bytes]:
        path, body = drawn.choice(whole)
        found: dict[str, Any] = json.loads(json.dumps(body))
        for _ in range(drawn.randint(1, 3)):
            found[drawn.choice([*found, "uptake", "temperature", "logprobs", "zz"])] = drawn.choice(odd)
        raw = bytearray(json.dumps(found).encode())
        if drawn.random() < 0.5:
            for _ in range(drawn.randint(1, 4)):
                raw[drawn.randrange(len(raw))] = drawn.randrange(256)
        if drawn.random() < 0.1:
            raw = raw[: drawn.randrange(len(raw))]
        return path, bytes(raw)

    codes: dict[int, int] = {}
    times = []
    headers = {**server.headers(), "content-type": "application/json"}
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for _ in range(2000):
            path, raw = mutated()
            started = time.perf_counter()
            found = http.post(path, content=raw, headers=headers)
            times.append(time.perf_counter() - started)
            codes[found.status_code] = codes.get(found.status_code, 0) + 1
            assert found.status_code == 200 or set(found.json()) == {"error"}
    return {
        "bodies": 2000,
        "codes": codes,
        "5xx": sum(n for code, n in codes.items() if code >= 500),
        "slowest_s": max(times),
    }


def slow(server: Served) -> dict[str, Any]:
    """Hold 200 connections whose headers trickle: what others take, and when they are closed."""

    def asked() -> float:
        started = time.perf_counter()
        body = {"model": "demo-model", "prompt": "def", "max_tokens": 8}
        httpx.post(f"{server.url}/v1/completions", json=body, headers=server.headers(), timeout=60)
        return time.perf_counter() - started

    before = [asked() for _ in range(20)]
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    started = time.monotonic()
    for each in held:
        each.sendall(b"POST /v1/completions HTTP/1.1\r\nx-a: ")
    during = []
    while time.monotonic() - started < 8:
        for each in held:
            with contextlib.suppress(OSError):
                each.sendall(b"a")
        during.append(asked())
    closed = None
    while closed is None and time.monotonic() - started < 30:
        gone = 0
        for each in held:
            each.setblocking(False)
            try:
                gone += each.recv(1) == b""
            except BlockingIOError:
                continue
            except OSError:
                gone += 1
        if gone == len(held):
            closed = time.monotonic() - started
        time.sleep(0.2)
    for each in held:
        each.close()
    a, b = statistics.median(before), statistics.median(during)
    return {"connections": 200, "before_s": a, "during_s": b, "times": b / a, "all_closed_after_s": closed}


def leaving(server: Served) -> dict[str, Any]:
    """Let 100 clients leave at all stages: whether every row, cache and reference is free a second later."""
    drawn = random.Random(0)

    async def one(http: httpx.AsyncClient, number: int) -> None:
        body: dict[str, Any] = {"model": drawn.choice(["demo-model", "demo-model+docs"]), "max_tokens": 200}
        body |= {"prompt": f"def f{number}(", "stream": number % 2 == 0, "n": 1 + number % 3}
        # Before its turn, while it adapts, and within the stream.
        with contextlib.suppress(httpx.TimeoutException, TimeoutError):
            async with asyncio.timeout(drawn.choice([0.02, 0.2, 1.0])):
                if not body["stream"]:
                    await http.post("/v1/completions", json=body)
                    return
                async with http.stream("POST", "/v1/completions", json=body) as found:
                    async for _ in found.aiter_lines():
                        if number % 4 == 0:
                            await asyncio.sleep(0.3)  # a slow reader

    async def all_of_them() -> None:
        limits = httpx.Limits(max_connections=16)
        async with httpx.AsyncClient(
            base_url=server.url, headers=server.headers(), timeout=60, limits=limits
        ) as http:
            for start in range(0, 100, 10):
                await asyncio.gather(*(one(http, start + number) for number in range(10)))

    asyncio.run(all_of_them())
    ended = time.monotonic()
    wanted = ("rows", "rows_waiting", "requests", "kv_bytes", "uptake_running", "uptake_waiting", "adapting")
    while True:
        left = {name: value for name, value in server.facts().items() if name in wanted and value}
        if not left or time.monotonic() - ended > 20:
            return {"clients": 100, "left": left, "free_after_s": time.monotonic() - ended}


def load(server: Served) -> dict[str, Any]:
    """Offer four times what the server does for 20 s, then a greedy key beside a modest one."""
    body = {"model": "demo-model", "prompt": "def main(", "max_tokens": 32}

    async def offered(rate: float, seconds: float, key: str) -> list[tuple[int, float, float]]:
        found: list[tuple[int, float, float]] = []
        limits = httpx.Limits(max_connections=2000)
        async with httpx.AsyncClient(
            base_url=server.url, headers=server.headers(key), timeout=120, limits=limits
        ) as http:

            async def one() -> None:
                started = time.perf_counter()
                told = await http.post("/v1/completions", json=body)
                ended = time.perf_counter()
                found.append((told.status_code, ended - started, ended))

            tasks, started = [], time.perf_counter()
            while (passed := time.perf_counter() - started) < seconds:
                while len(tasks) < rate * passed:
                    tasks.append(asyncio.create_task(one()))
                await asyncio.sleep(0.005)
            await asyncio.gather(*tasks)
        return found

    async def closed(clients: int, seconds: float, key: str) -> list[float]:
        times: list[float] = []
        end = time.perf_counter() + seconds

        async def one(http: httpx.AsyncClient) -> None:
            while time.perf_counter() < end:
                started = time.perf_counter()
                told = await http.post("/v1/completions", json=body)
                if told.status_code == 200:
                    times.append(time.perf_counter() - started)

        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(
            base_url=server.url, headers=server.headers(key), timeout=120, limits=limits
        ) as http:
            await asyncio.gather(*(one(http) for _ in range(clients)))
        return times

    alone = asyncio.run(closed(32, 10, server.first))
    capacity = len(alone) / 10
    before = server.memory()
    found = asyncio.run(offered(4 * capacity, 20, server.first))
    accepted = [seconds for code, seconds, _ in found if code == 200]
    refused = [seconds for code, seconds, _ in found if code in (429, 503)]

    async def greedy() -> tuple[int, int]:
        many, few = await asyncio.gather(closed(64, 10, server.first), closed(32, 10, server.second))
        return len(many), len(few)

    many, few = asyncio.run(greedy())
    return {
        "requests_a_second": capacity,
        "alone_p95_s": percentile(alone, 0.95),
        "offered": len(found),
        "accepted": len(accepted),
        "accepted_p95_s": percentile(accepted, 0.95),
        "refused": len(refused),
        "refused_p95_s": percentile(refused, 0.95),
        "others": len(found) - len(accepted) - len(refused),
        "memory_grew": server.memory() / before - 1,
        "greedy_and_modest": [many, few],
        "modest_of_its_fair_share": few / ((many + few) / 2),
    }


def speed(server: Served) -> dict[str, Any]:
    """Time a request, a token and a first token; of the base, of a state made, of one that is kept."""
    http = httpx.Client(base_url=server.url, headers=server.headers(), timeout=60)

    def first(model: str, prompt: str) -> tuple[float, float]:
        body = {"model": model, "prompt": prompt, "max_tokens": 4, "stream": True}
        started = time.perf_counter()
        adapt = 0.0
        with http.stream("POST", "/v1/completions", json=body) as found:
            for line in found.iter_lines():
                if line.startswith("data: {"):
                    told = json.loads(line[6:])
                    adapt = told.get("uptake", {}).get("ms", {}).get("adapt", adapt)
                    if told["choices"] and told["choices"][0]["text"]:
                        break
        return (time.perf_counter() - started) * 1000, adapt

    def cpu_of(tokens: int, count: int) -> float:
        before = server.cpu(server.process.pid)
        for _ in range(count):
            http.post("/v1/completions", json={"model": "demo-model", "prompt": "def", "max_tokens": tokens})
        return (server.cpu(server.process.pid) - before) * 1000 / count

    short = cpu_of(1, 200)
    base = [first("demo-model", f"def a{number}(")[0] for number in range(20)]
    made = [first("demo-model+docs", f"The method number {number} ") for number in range(8)]
    hits = [first("demo-model+docs", f"The method number {number} ")[0] for number in range(8)]
    curve = {}
    for clients in (1, 2, 4, 8, 16, 32):
        for model in ("demo-model", "demo-model+docs"):
            curve[f"{model} {clients}"] = asyncio.run(_throughput(server, model, clients))
    return {
        "door_cpu_ms_a_request": short,
        "door_cpu_ms_a_token_more": (cpu_of(101, 20) - short) / 100,
        "first_token_ms": {
            "base": statistics.median(base),
            "made": statistics.median(each for each, _ in made),
            "of_which_adapting": statistics.median(each for _, each in made),
            "hit": statistics.median(hits),
        },
        "tokens_a_second": curve,
    }


def ingesting(server: Served) -> dict[str, Any]:
    """Time the tokens of a stream while a vector store reads 20 MB, in turns with times when it does not."""
    http = httpx.Client(base_url=server.url, headers=server.headers(), timeout=60)
    drawn = random.Random(0)
    words = sorted({word for path in sorted(ROOT.glob("docs/**/*.md")) for word in path.read_text().split()})
    lines = (" ".join(drawn.choices(words, k=100)) for _ in itertools.count())
    text = "".join(f"{line}\n\n" for line in itertools.islice(lines, 26_000))[:20_000_000]

    def gaps(wanted: Callable[[], bool]) -> list[float]:
        """The milliseconds between tokens of streams, one after another, for as long as they are wanted."""
        found: list[float] = []
        body = {"model": "demo-model", "prompt": "def main(", "max_tokens": 200, "stream": True}
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


async def _throughput(server: Served, model: str, clients: int) -> dict[str, float]:
    """Return tokens a second and the median first token, clients asking again and again for four seconds."""
    tokens, firsts, end = 0, [], time.perf_counter() + 4

    async def one(http: httpx.AsyncClient, number: int) -> None:
        nonlocal tokens
        while time.perf_counter() < end:
            started, seen = time.perf_counter(), False
            body = {"model": model, "prompt": f"The client {number} ", "max_tokens": 32, "stream": True}
            async with http.stream("POST", "/v1/completions", json=body) as found:
                async for line in found.aiter_lines():
                    if line.startswith("data: {"):
                        if not seen:
                            firsts.append(time.perf_counter() - started)
                        seen = True
                        tokens += time.perf_counter() < end

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(
        base_url=server.url, headers=server.headers(), timeout=120, limits=limits
    ) as http:
        await asyncio.gather(*(one(http, number) for number in range(clients)))
    return {"tokens_a_second": tokens / 4, "first_ms": statistics.median(firsts) * 1000}


PARTS: dict[str, Callable[[Served], dict[str, Any]]] = {
    "bodies": bodies,
    "slow": slow,
    "leaving": leaving,
    "load": load,
    "speed": speed,
    "ingesting": ingesting,
}


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = {}
    with served() as server:
        for name in asked.only.split(","):
            found[name] = PARTS[name](server)
            print(name, json.dumps(found[name], indent=1), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
