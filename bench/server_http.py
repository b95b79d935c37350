"""What HTTP costs: a request and a token over the same work without a door, beside the floor of any door."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.served import Served, cpu_of_threads, served, spread
from bench.server_floor import Floor, floor

RUNS = 5


def http(model: Path, large: bool) -> dict[str, Any]:
    """Count what a request and a token cost over the same work without a door, in CPU milliseconds.

    Beside it is what they cost through stock Starlette before a process that does that work alone.
    """
    from bench.server_rows import InProcess

    inside, few, long = InProcess(model), 20 if large else 100, 51 if large else 201
    found: dict[str, list[float]] = {}

    def put(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    with served(model) as server, floor(model) as stock:

        def outside(server: Served | Floor, tokens: int, count: int) -> tuple[float, float]:
            pids = (server.process.pid, server.engine)
            before = [cpu_of_threads(pid) for pid in pids]
            for _ in range(count):
                body = {"model": "m", "prompt": "def f(", "max_tokens": tokens}
                body |= {"stream": True, "temperature": 0}
                with server.http.stream("POST", "/v1/completions", json=body) as told:
                    told.read()
            door, engine = (cpu_of_threads(pid) - was for pid, was in zip(pids, before, strict=True))
            return door * 1000, (door + engine) * 1000

        def own(tokens: int, count: int) -> tuple[float, float]:
            before = time.process_time()
            for _ in range(count):
                inside.write("def f(", tokens)
            return 0.0, (time.process_time() - before) * 1000

        ways = {
            "alone": own,
            "": partial(outside, server),
            "stock": partial(outside, stock),
        }
        for run in range(RUNS + 1):
            # A machine's speed drifts: the ways take turns, a few requests at a time.
            short, whole = ({name: [0.0, 0.0] for name in ways} for _ in range(2))
            for sums, tokens, count, turns in ((short, 1, few // 10, 10), (whole, long, 1, 3)):
                for _ in range(turns):
                    for name, way in ways.items():
                        for place, spent in enumerate(way(tokens, count)):
                            sums[name][place] += spent / count / turns
            if not run:
                continue  # what is done for the first time costs more
            for name, each in whole.items():
                before, own_short = short[name], short["alone"][1]
                tokens = [(one - first) / (long - 1) for one, first in zip(each, before, strict=True)]
                if name == "alone":
                    put("alone_a_request", own_short)
                    put("alone_a_token", tokens[1])
                    continue
                prefix = f"{name}_" if name else ""
                put(f"{prefix}door_a_request", before[0])
                put(f"{prefix}request", before[1] - own_short)
                put(f"{prefix}door_a_token", tokens[0])
                put(f"{prefix}token", tokens[1] - found["alone_a_token"][-1])
    return {name: spread(values) for name, values in found.items()}
