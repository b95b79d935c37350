"""Tokens a second and first tokens against the number of clients, each asking again once it is answered.

python bench/server_curve.py     # draws docs/images/server-*.svg from bench/server.json
"""

import asyncio
import json
import math
import time
from pathlib import Path
from typing import Any

from bench.served import ROOT, Served, percentile, served
from uptake.report.page import write_chart
from uptake.report.page.chart import Axis, Mark, Series, draw, logarithmic

CLIENTS = (1, 2, 4, 8, 16, 32)
TOKENS = 32
KINDS = {"base": "m", "adapted, kept": "m+docs", "adapted anew": "m+docs"}


async def _asked(server: Served, kind: str, clients: int, seconds: float, least: int) -> dict[str, float]:
    """Let clients ask for so many seconds, and each so many times at least."""
    tokens, trained, firsts, done = 0, 0, [], 0
    started, before = time.perf_counter(), sum(server.cpu())

    async def one(http: Any, client: int) -> None:
        nonlocal tokens, trained, done
        turn = 0
        while time.perf_counter() - started < seconds or turn < least:
            prompt = (
                f"The method number {client} "
                if kind != "adapted anew"
                else f"The method {clients} {client} {turn} "
            )
            turn += 1
            body = {"model": KINDS[kind], "prompt": prompt, "max_tokens": TOKENS, "stream": True}
            begun, seen = time.perf_counter(), False
            body["stream_options"] = {"include_usage": True}
            async with http.stream("POST", "/v1/completions", json=body) as found:
                assert found.status_code == 200, await found.aread()
                async for line in found.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    told = json.loads(line[6:])
                    if told.get("uptake"):
                        cache = told["uptake"]["cache"]
                        assert (cache == "hit") == (kind == "adapted, kept"), cache
                        trained += told["uptake"]["tokens_trained"] if cache == "made" else 0
                    if not seen and told["choices"] and told["choices"][0]["text"]:
                        firsts.append(time.perf_counter() - begun)
                        seen = True
                    if told.get("usage"):
                        tokens += told["usage"]["completion_tokens"]
            done += 1

    async with server.client(clients) as http:
        await asyncio.gather(*(one(http, number) for number in range(clients)))
    passed = time.perf_counter() - started
    return {
        "clients": clients,
        "requests": done,
        "tokens_a_second": tokens / passed,
        "tokens_a_cpu_second": tokens / (sum(server.cpu()) - before),
        "trained_a_second": trained / passed,
        "first_p50_s": percentile(firsts, 0.5),
        "first_p95_s": percentile(firsts, 0.95),
    }


def curve(model: Path, large: bool) -> dict[str, Any]:
    """Ask the base, a state that is kept and one made anew for each request, by 1 to 32 clients."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    with served(model) as server:
        for client in range(CLIENTS[-1]):
            server.ask("m+docs", f"The method number {client} ")
        for clients in CLIENTS[: 4 if large else None]:
            for kind in KINDS:
                seconds, least = (1, 1) if kind == "adapted anew" else (4, 1)
                found[kind].append(asyncio.run(_asked(server, kind, clients, seconds, least)))
                print(kind, json.dumps(found[kind][-1]), flush=True)
    return found


def main() -> None:
    """Draw what was found."""
    found = json.loads((Path(__file__).parent / "server.json").read_text())["demo-model"]["curve"]
    ticks = tuple((float(count), str(count)) for count in CLIENTS)
    at = Axis("clients, each asking again once it is answered", ticks, 0.9, 1.1 * CLIENTS[-1], math.log)
    for name, label, of, ends in (
        ("throughput", "tokens a CPU second of both processes", "tokens_a_cpu_second", None),
        (
            "first-token",
            "seconds to the first token; shaded up to the 95th percentile",
            "first_p50_s",
            "first_p95_s",
        ),
    ):
        series = [
            Series(
                kind,
                colour,
                tuple(
                    Mark(
                        each["clients"],
                        each[of],
                        None if ends is None else (each[of], each[ends]),
                        f"{kind}, {each['clients']} clients: {each[of]:.3g}",
                    )
                    for each in rows
                ),
            )
            for colour, (kind, rows) in zip((2, 4, 3), found.items(), strict=True)
        ]
        values = [each[key] for rows in found.values() for each in rows for key in (of, ends or of)]
        summary = f"{label}, against the number of clients, for the base, a kept state and one made anew"
        svg = draw("lines", series, at, logarithmic(label, values), summary=summary)
        write_chart(svg, ROOT / "docs" / "images" / f"server-{name}.svg")


if __name__ == "__main__":
    main()
