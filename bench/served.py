"""A server in processes of its own, for what bench/server.py and bench/server_proofs.py measure."""

import contextlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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
HELD = ("rows", "rows_waiting", "requests", "kv_bytes", "uptake_running", "uptake_waiting", "adapting")


class Served:
    """`uptake serve` over loopback with one thread, keys of two tenants, and a store of `docs/methods`."""

    def __init__(self, folder: Path, model: Path = MODEL, k: int = 5) -> None:
        store = folder / "docs.store"
        Datastore.create(store, retriever="lexical").add(read(str(ROOT / "docs" / "methods")))
        self.keys = Keys(folder / "keys.db", make=True)
        self.first, self.second = (self.key(name) for name in ("first", "second"))
        words = ["serve", "-m", model, "-s", store, "-k", k, "--port", 0, "--threads", 1, "--name", "m"]
        words += ["--keys", folder / "keys.db", "--data", folder / "data", "--set", WAY[0], "--set", WAY[1]]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, words)], stderr=subprocess.PIPE, text=True
        )
        assert self.process.stderr is not None
        line = next(each for each in self.process.stderr if " at http" in each)
        self.url = line.split(" at ")[1].split("/v1")[0]
        self.port = int(self.url.rpartition(":")[2])
        self.http = httpx.Client(base_url=self.url, headers=self.headers(), timeout=120)

    def key(self, tenant: str, limits: Limits = GENEROUS) -> str:
        return self.keys.add(tenant, ["admin"], limits)[1]

    def headers(self, key: str | None = None) -> dict[str, str]:
        return {"authorization": f"Bearer {key or self.first}"}

    def client(self, connections: int, key: str | None = None) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=connections)
        return httpx.AsyncClient(base_url=self.url, headers=self.headers(key), timeout=120, limits=limits)

    @property
    def engine(self) -> int:
        """The engine's process id."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return int(children.split()[0])

    def counts(self, prefix: str = "uptake_engine{") -> dict[str, float]:
        """Lines of /metrics that begin so, by their label's value."""
        page = self.http.get("/metrics").text
        lines = [line.rsplit(" ", 1) for line in page.splitlines() if line.startswith(prefix)]
        return {name.partition('"')[2].rstrip('"}') or name: float(value) for name, value in lines}

    def held(self) -> dict[str, float]:
        """What is not free now, of rows, caches, requests and turns."""
        every = self.counts("uptake_")
        return {name: every[name] for name in HELD if every[name]}

    def memory(self) -> int:
        """The resident bytes of both processes."""
        pids = (self.process.pid, self.engine)
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in pids)

    def cpu(self) -> tuple[float, float]:
        """CPU seconds of the door and of the engine."""
        return cpu_of(self.process.pid), cpu_of(self.engine)

    def ask(self, model: str = "m", prompt: str = "def f(", tokens: int = 1, **more: Any) -> dict[str, Any]:
        body = {"model": model, "prompt": prompt, "max_tokens": tokens, **more}
        found = self.http.post("/v1/completions", json=body)
        found.raise_for_status()
        told: dict[str, Any] = found.json()
        return told

    def close(self) -> None:
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@contextlib.contextmanager
def served(model: Path = MODEL, k: int = 5) -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder:
        found = Served(Path(folder), model, k)
        try:
            yield found
        finally:
            found.close()


def cpu_of(pid: int) -> float:
    """CPU seconds of a process, to a hundredth."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def cpu_of_threads(pid: int) -> float:
    """CPU seconds of the threads that a process has now, to the nanosecond."""
    every = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((each / "schedstat").read_text().split()[0]) for each in every) / 1e9


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median of some figures, and the least and the largest."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def until(done: Any, seconds: float) -> float | None:
    """Ask again and again; return the seconds until it was so, None if it never was."""
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        if done():
            return time.monotonic() - started
        time.sleep(0.005)
    return None
