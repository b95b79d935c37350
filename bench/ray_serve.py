"""How soon a client that leaves frees what it held on the engine: through Ray Serve, and asked straight.

    OMP_NUM_THREADS=1 python bench/ray_serve.py --json bench/ray_serve.json

Starts `examples/ray_serve.py` with two engines and the repository's model. In turns one client asks through
Ray and one asks the very engine at its own address; each leaves in the middle, and the engine's own counts
say when no row, cache or request of it is left. Needs `pip install 'uptake[server,ray]'`.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.served import GENEROUS, MODEL, ROOT, spread, until
from uptake import Datastore, read
from uptake.server.keys import Keys

TIMES = 10
# Seconds of work each: 32 rows, and training on all that a request may.
LONG = {"model": "m", "prompt": ["def main("] * 4, "max_tokens": 900, "n": 8, "seed": 1}
TRAINS = {"method": "ttt-nn", "settings": ["trainable=lora"], "texts": ["def main(): pass\n" * 8000]}
LEAVES: dict[str, dict[str, Any]] = {
    "whole": LONG,
    "stream": {**LONG, "stream": True},
    "adapt": {"model": "m", "prompt": "a", "max_tokens": 1, "uptake": TRAINS},
}
HELD = ("rows", "rows_waiting", "requests", "kv_bytes", "adapting")


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, str, psutil.Process]]:
    """Around two engines: yield their address, a key, and the process that started them."""
    Datastore.create(folder / "docs.store", retriever="lexical").add(read(str(ROOT / "docs" / "methods")))
    key = Keys(folder / "keys.db", make=True).add("ann", ["admin"], GENEROUS)[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--model", MODEL, "--store", folder / "docs.store", "--keys", folder / "keys.db"]
    words += ["--data", folder / "data", "--port", port]
    given = {**os.environ, "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "ray_serve.py"), *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        env=given,
    )
    try:
        assert process.stdout is not None
        line = next(each for each in process.stdout if " engines at http" in each)
        yield line.split(" at ")[1].split("/v1")[0], key, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(120)


def straight(process: psutil.Process, place: str) -> str:
    """The address of an engine itself."""
    family = process.children(recursive=True)
    (replica,) = [each for each in family if f"engine-{place}" in " ".join(each.cmdline())]
    for line in replica.net_connections("inet4"):
        if line.status == "LISTEN":
            url = f"http://{line.laddr.ip}:{line.laddr.port}"
            with contextlib.suppress(httpx.HTTPError, ValueError):
                if httpx.get(f"{url}/health/live", timeout=5).json() == {"live": True}:
                    return url
    raise RuntimeError("the engine listens nowhere")


def leave(url: str, key: dict[str, str], body: dict[str, Any]) -> None:
    """Ask, and go away in the middle."""
    with httpx.Client(base_url=url, headers=key, timeout=120) as http:
        if body.get("stream"):
            with http.stream("POST", "/v1/completions", json=body) as found:
                next(found.iter_lines())
            return
        with contextlib.suppress(httpx.ReadTimeout):
            http.post("/v1/completions", json=body, timeout=0.5)
            raise RuntimeError("it was answered before its client left")


def measure() -> dict[str, Any]:
    """Let clients leave in turns, through Ray and straight."""
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        cluster(Path(folder)) as (url, secret, process),
    ):
        key = {"authorization": f"Bearer {secret}"}
        place = httpx.get(f"{url}/health/ready", headers=key, timeout=60).headers["x-uptake-engine"]
        engine = straight(process, place)
        asking = httpx.Client(base_url=engine, headers=key, timeout=60)

        def counts() -> dict[str, float]:
            page = asking.get("/metrics").text
            lines = (line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#"))
            return {name: float(value) for name, value in lines}

        def free() -> bool:
            found = counts()
            names = [f'uptake_engine{{what="{name}"}}' for name in HELD]
            return not any(found[name] for name in ("uptake_running", "uptake_waiting", *names))

        found: dict[str, Any] = {}
        for name, body in LEAVES.items():
            times: dict[str, list[float]] = {"ray": [], "straight": []}
            for _ in range(TIMES):
                for way, at in (("ray", url), ("straight", engine)):
                    leave(at, key, body)
                    seconds = until(free, 60)
                    assert seconds is not None
                    times[way].append(seconds * 1000)
            found[name] = {way: spread(values) for way, values in times.items()}
        left = {name: n for name, n in counts().items() if name.startswith("uptake_cancelled_total")}
        return {"clients": TIMES, "ms_until_free": found, "left_while": left}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found = measure()
    for name, ways in found["ms_until_free"].items():
        told = (
            f"{way} {each['median']:.0f} ms [{each['least']:.0f}, {each['most']:.0f}]"
            for way, each in ways.items()
        )
        print(f"{name}: {', '.join(told)}")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
