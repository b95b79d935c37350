"""What a server holds up to: bad bodies, slow connections, leaving clients, overload, greed and spies.

    OMP_NUM_THREADS=1 python bench/server_proofs.py [--only bodies,slow,...] [--json bench/server_proofs.json]

Starts `uptake serve` with the repository's model, a process with a thread, and asks it over loopback. A part
that is run alone takes its place among the figures that are there.
"""

import argparse
import asyncio
import contextlib
import json
import random
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from bench.served import Served, percentile, served, spread, until
from bench.server_ingesting import ingesting

ODD = [None, True, -1, 0, 1e308, 2**70, "", "\x00", "\ud7ff", [], {}, [[]], "a" * 5000, [None], {"a": {}}]
LEAVE = 100  # clients at each stage


def bodies(server: Served) -> dict[str, Any]:
    """Send 2,000 mutated bodies: how many get a 5xx, and how long the slowest takes."""
    drawn = random.Random(0)
    store = server.http.post("/v1/vector_stores", json={"name": "a"}).json()["id"]
    session = server.http.post("/uptake/sessions", json={"uptake": {"method": "online"}}).json()["id"]
    messages = [{"role": "user", "content": "hi"}]
    whole: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"model": "m", "prompt": "def f(", "max_tokens": 1, "stop": ["a"], "n": 1}),
        ("/v1/completions", {"model": "m", "prompt": [1, 2], "max_tokens": 1, "uptake": {"k": 1}}),
        ("/v1/completions", {"model": "m+docs", "prompt": "def", "max_tokens": 1, "stream": True}),
        ("/v1/chat/completions", {"model": "m", "messages": messages, "max_tokens": 1}),
        ("/uptake/score", {"text": "def f(", "compare": ["m"]}),
        ("/tokenize", {"prompt": "def"}),
        ("/detokenize", {"tokens": [1, 2, 3]}),
        ("/v1/vector_stores", {"name": "a", "metadata": {}}),
        (f"/v1/vector_stores/{store}/search", {"query": "a", "max_num_results": 2}),
        (f"/v1/vector_stores/{store}/files", {"file_id": "file_x"}),
        ("/uptake/memories", {"user": "a", "text": "b"}),
        ("/uptake/sessions", {"uptake": {"method": "online", "k": 1}}),
        (f"/uptake/sessions/{session}/take", {"texts": ["a"]}),
    ]

    def mutated() -> tuple[str, bytes]:
        path, body = drawn.choice(whole)
        found: dict[str, Any] = json.loads(json.dumps(body))
        for _ in range(drawn.randint(1, 3)):
            found[drawn.choice([*found, "uptake", "temperature", "logprobs", "zz"])] = drawn.choice(ODD)
        raw = bytearray(json.dumps(found).encode())
        if drawn.random() < 0.5:
            for _ in range(drawn.randint(1, 4)):
                raw[drawn.randrange(len(raw))] = drawn.randrange(256)
        if drawn.random() < 0.1:
            raw = raw[: drawn.randrange(len(raw))]
        return path, bytes(raw)

    codes: dict[int, int] = {}
    times: list[tuple[float, int]] = []
    for _ in range(2000):
        path, raw = mutated()
        started = time.perf_counter()
        found = server.http.post(path, content=raw, headers={"content-type": "application/json"})
        times.append((time.perf_counter() - started, found.status_code))
        codes[found.status_code] = codes.get(found.status_code, 0) + 1
        assert found.status_code == 200 or set(found.json()) == {"error"}
    return {
        "bodies": 2000,
        "codes": dict(sorted(codes.items())),
        "5xx": sum(n for code, n in codes.items() if code >= 500),
        "slowest_s": max(seconds for seconds, _ in times),
        "slowest_refused_s": max(seconds for seconds, code in times if code != 200),
        "engine_restarts": server.http.get("/health/ready").json()["restarts"],
    }


def slow(server: Served) -> dict[str, Any]:
    """Hold 200 connections, half of them trickling headers, half a body: what others take meanwhile."""

    def asked() -> float:
        started = time.perf_counter()
        server.ask(prompt="def", tokens=8)
        return time.perf_counter() - started

    before = [asked() for _ in range(40)]
    held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    started = time.monotonic()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {server.first}\r\n"
    whole = f"{head}content-type: application/json\r\ncontent-length: 100000\r\n\r\n".encode()
    for place, each in enumerate(held):
        each.sendall(whole if place % 2 else b"POST /v1/completions HTTP/1.1\r\nx-a: ")
    during = []
    while time.monotonic() - started < 8:
        for each in held:
            with contextlib.suppress(OSError):
                each.sendall(b"a")
        during.append(asked())

    def closed(some: list[socket.socket]) -> bool:
        gone = 0
        for each in some:
            each.setblocking(False)
            try:
                gone += b"408" in each.recv(1000, socket.MSG_PEEK) or each.recv(1) == b""
            except BlockingIOError:
                continue
            except OSError:
                gone += 1
        return gone == len(some)

    ends = [until(lambda some=some: closed(some), 90) for some in (held[::2], held[1::2])]
    for each in held:
        each.close()
    a, b = statistics.median(before), statistics.median(during)
    return {
        "connections": 200,
        "before_s": spread(before),
        "during_s": spread(during),
        "times": b / a,
        "headers_closed_after_s": None if ends[0] is None else ends[0] + 8,
        "bodies_refused_after_s": None if None in ends else ends[0] + ends[1] + 8,  # type: ignore[operator]
    }


def leaving(server: Served) -> dict[str, Any]:
    """Let 100 clients leave at each stage: whether every row, cache and reference is free a second later."""

    async def leave(http: httpx.AsyncClient, number: int, stage: str) -> None:
        body: dict[str, Any] = {"model": "m", "prompt": f"The method {stage} {number}", "max_tokens": 400}
        body |= {"n": 1 if stage == "queue" else 1 + number % 3, "stream": stage != "whole"}
        if stage == "adapt":
            body["model"] = "m+docs"
        with contextlib.suppress(httpx.HTTPError, TimeoutError):
            if stage in ("queue", "adapt", "whole"):
                async with asyncio.timeout(0.15 if stage == "queue" else 0.1 + 0.01 * (number % 20)):
                    await http.post("/v1/completions", json=body)
                return
            async with http.stream("POST", "/v1/completions", json=body) as found:
                async for line in found.aiter_lines():
                    if stage == "slow reader":
                        await asyncio.sleep(0.3)
                    if '"text":"' in line:
                        return

    async def every(stage: str) -> None:
        async with server.client(200) as http:
            full = []
            if stage == "queue":  # what runs fills the engine, and nothing else gets a turn
                body = {"model": "m", "prompt": "def main(", "max_tokens": 900, "n": 2}
                full = [asyncio.create_task(http.post("/v1/completions", json=body)) for _ in range(16)]
                await asyncio.sleep(1)
            together = 5 if stage == "queue" else 10  # more would not be let wait
            for start in range(0, LEAVE, together):
                await asyncio.gather(*(leave(http, start + number, stage) for number in range(together)))
            for task in full:
                task.cancel()
            await asyncio.gather(*full, return_exceptions=True)

    found: dict[str, Any] = {}
    for stage in ("queue", "adapt", "whole", "stream", "slow reader"):
        before = server.counts("uptake_cancelled_total{")
        asyncio.run(every(stage))
        free = until(lambda: not server.held(), 20)
        after = server.counts("uptake_cancelled_total{")
        left = {name: after[name] - before.get(name, 0) for name in after}
        found[stage] = {
            "clients": LEAVE,
            "free_after_s": free,
            "left_while": {name: n for name, n in left.items() if n},
        }
    return found


def unread(server: Served) -> dict[str, Any]:
    """Let clients ask for much and read nothing: they are dropped half a minute after the line is full."""
    asked = {"model": "m", "prompt": "def main(", "max_tokens": 900, "n": 8, "logprobs": 20, "stream": True}
    raw = json.dumps(asked).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {server.first}\r\n"
    whole = f"{head}content-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw
    before = server.counts("uptake_cancelled_total{").get("unread", 0)
    held = []
    for _ in range(4):
        each = socket.socket()
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        each.connect(("127.0.0.1", server.port))
        each.sendall(whole)
        held.append(each)
    begun = until(lambda: bool(server.held()), 20)
    free = until(lambda: not server.held(), 200)
    for each in held:
        each.close()
    dropped = server.counts("uptake_cancelled_total{").get("unread", 0) - before
    return {"clients": 4, "began": begun is not None, "free_after_s": free, "dropped": dropped}


def load(server: Served) -> dict[str, Any]:
    """Offer four times what the server does for 20 s, then a greedy key beside a modest one."""
    # Long answers: the process that asks shares the cores, and has to offer four times what is done.
    body = {"model": "m", "prompt": "def main(", "max_tokens": 128}

    async def offered(rate: float, seconds: float, key: str) -> list[tuple[int, float]]:
        found: list[tuple[int, float]] = []
        async with server.client(2000, key) as http:

            async def one() -> None:
                started = time.perf_counter()
                told = await http.post("/v1/completions", json=body)
                found.append((told.status_code, time.perf_counter() - started))

            tasks, started = [], time.perf_counter()
            while (passed := time.perf_counter() - started) < seconds:
                while len(tasks) < rate * passed:
                    tasks.append(asyncio.create_task(one()))
                await asyncio.sleep(0.005)
            await asyncio.gather(*tasks)
        return found

    async def closed(clients: int, seconds: float, key: str) -> list[float]:
        """Ask again once answered, or when a refusal said so; return the seconds of what ended in time."""
        times: list[float] = []
        end = time.perf_counter() + seconds

        async def one(http: httpx.AsyncClient) -> None:
            while (started := time.perf_counter()) < end:
                told = await http.post("/v1/completions", json=body)
                if told.status_code != 200:
                    await asyncio.sleep(min(float(told.headers["retry-after"]), end - started))
                elif time.perf_counter() < end:
                    times.append(time.perf_counter() - started)

        async with server.client(clients, key) as http:
            await asyncio.gather(*(one(http) for _ in range(clients)))
        return times

    alone = asyncio.run(closed(32, 20, server.first))
    capacity = len(alone) / 20
    before = server.memory()
    found = asyncio.run(offered(4 * capacity, 20, server.first))
    accepted = [seconds for code, seconds in found if code == 200]
    refused = [seconds for code, seconds in found if code in (429, 503)]
    grew = server.memory() / before - 1

    # The greedy one takes all seats at first, and gives none of them back before its answers are whole.
    contest = max(20, 5 * percentile(alone, 0.95))

    async def greedy() -> tuple[int, int]:
        many, few = await asyncio.gather(
            closed(128, contest, server.first), closed(32, contest, server.second)
        )
        return len(many), len(few)

    many, few = asyncio.run(greedy())
    return {
        "requests_a_second": capacity,
        "alone_p95_s": percentile(alone, 0.95),
        "offered": len(found),
        "accepted": len(accepted),
        "accepted_p95_s": percentile(accepted, 0.95),
        "accepted_p95_of_alone": percentile(accepted, 0.95) / percentile(alone, 0.95),
        "refused": len(refused),
        "refused_p50_s": percentile(refused, 0.5),
        "refused_p95_s": percentile(refused, 0.95),
        "others": len(found) - len(accepted) - len(refused),
        "memory_grew": grew,
        "contest_s": contest,
        "greedy_and_modest": [many, few],
        "modest_of_its_fair_share": few / ((many + few) / 2),
    }


def spying(server: Served) -> dict[str, Any]:
    """Time a tenant's request for what another tenant has made, beside one that nobody has."""
    theirs = [f"The method numbered {number} trains on" for number in range(30)]
    nobodys = [f"The method numbered {number} trains on" for number in range(100, 130)]
    for prompt in theirs:
        server.ask("m+docs", prompt)
    http = httpx.Client(base_url=server.url, headers=server.headers(server.second), timeout=120)
    times: dict[str, list[float]] = {"theirs": [], "nobodys": []}
    caches = set()
    for pair in zip(theirs, nobodys, strict=True):
        for name, prompt in zip(times, pair, strict=True):
            body = {"model": "m+docs", "prompt": prompt, "max_tokens": 1}
            started = time.perf_counter()
            told = http.post("/v1/completions", json=body).json()
            times[name].append(time.perf_counter() - started)
            caches.add(told["uptake"]["cache"])
    ratios = [one / other for one, other in zip(*times.values(), strict=True)]
    return {
        "caches": sorted(caches),
        "theirs_s": spread(times["theirs"]),
        "nobodys_s": spread(times["nobodys"]),
        "ratio": spread(ratios),
        "theirs_sooner": sum(ratio < 1 for ratio in ratios),
        "pairs": len(ratios),
    }


PARTS: dict[str, Callable[[Served], dict[str, Any]]] = {
    "bodies": bodies,
    "slow": slow,
    "leaving": leaving,
    "unread": unread,
    "load": load,
    "spying": spying,
    "ingesting": ingesting,
}


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = json.loads(asked.json.read_text()) if asked.json and asked.json.exists() else {}
    with served() as server:
        for name in asked.only.split(","):
            found[name] = PARTS[name](server)
            print(name, json.dumps(found[name], indent=1), flush=True)
            if asked.json:
                asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
