"""Whether the sizes that docs/serving.md reckons with are what the engine takes."""

import json
import threading
from pathlib import Path
from typing import Any

from bench.served import MODEL, Served, served, until

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
            counts = server.counts()
            before, count = resident(server.engine), 8 if name == "lora" or model == MODEL else 1
            text = "the server reads a text and adapts to it. " * 20
            forget(server.engine)
            for number in range(count):
                uptake = {"method": "online", "settings": settings, "texts": [f"{number} {text}"]}
                server.ask(uptake=uptake)
            after = server.counts()
            state = (after["state_bytes"] - counts["state_bytes"]) / max(
                1, after["states"] - counts["states"]
            )
            peak, kept = resident(server.engine, "VmHWM") - before, resident(server.engine) - before
            found["states"][name] = {
                "state_bytes": state,
                "made": count,
                "kept": after["states"] - counts["states"],
                "resident_grew_a_state": kept / count,
                "peak_over_before": peak,
            }
    return found
