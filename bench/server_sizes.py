"""Whether the sizes that docs/serving.md reckons with are what the engine takes."""

import json
import threading
from pathlib import Path
from typing import Any

from bench.served import Served, served, until

WAYS = {"lora": ["trainable=lora(rank=8)", "learning_rate=1e-3"], "all": ["learning_rate=1e-4"]}


def resident(pid: int, name: str = "VmRSS") -> int:
    """Return the bytes of a process now, or with VmHWM at most since `forget`."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def forget(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def writing(server: Served, choices: int, tokens: int) -> int:
    """Return the most bytes of caches that so many rows take while they write."""
    body = {"model": "m", "prompt": "def main(", "max_tokens": tokens, "n": choices}
    task = threading.Thread(target=lambda: server.http.post("/v1/completions", json=body))
    most = 0

    def look() -> bool:
        nonlocal most
        most = max(most, int(server.counts()["kv_bytes"]))
        return not task.is_alive()

    task.start()
    until(look, 300)
    return most


def sizes(model: Path, large: bool) -> dict[str, Any]:
    """Measure the model, rows that write, states that are kept and the peak of adapting, with their sums."""
    shape = json.loads((model / "config.json").read_text())
    heads = shape["num_key_value_heads"] * (
        shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
    )
    a_token = shape["num_hidden_layers"] * 2 * heads * 4
    found: dict[str, Any] = {"bytes_a_token": a_token, "rows": [], "states": {}}
    with served(model) as server:
        found["engine_bytes"], found["door_bytes"] = resident(server.engine), resident(server.process.pid)
        for choices, tokens in ((1, 40), (4, 200), (8, 200)):
            most = writing(server, choices, tokens)
            found["rows"].append(
                {"rows": choices, "tokens": tokens, "bytes": most, "tokens_held": most / a_token}
            )
        for name, settings in WAYS.items():
            text, more = "the server reads a text and adapts to it. " * 20, 3 if not large else 1

            def make(number: int, settings: list[str] = settings, text: str = text) -> None:
                uptake = {"method": "online", "settings": settings, "texts": [f"{number} {text}"]}
                server.ask(uptake=uptake)

            make(0)  # what is loaded and taken once
            before, started = server.counts(), resident(server.engine)
            forget(server.engine)
            make(1)
            peak = resident(server.engine, "VmHWM") - started
            for number in range(more):
                make(2 + number)
            after = server.counts()
            made = after["states"] - before["states"]
            if made != 1 + more:
                raise SystemExit(f"{name}: {1 + more} states were made, {made:g} more are kept: make fewer")
            found["states"][name] = {
                "made": 1 + more,
                "kept": made,
                "state_bytes": (after["state_bytes"] - before["state_bytes"]) / made,
                "resident_grew_a_state": (resident(server.engine) - started) / (1 + more),
                "peak_of_one": peak,
            }
    return found
