"""What the checks of files cost: CPU seconds to open and search a store, and to load a delta.

    python bench/opening.py --work build/opening [--passages 100000]

Made-up text and vectors, so that nothing is embedded. "first" reads every file of the table to check it, as
the first opening on a machine does; "again" looks whether they have changed. Runs on an older Uptake too.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np

from uptake.store.datastore import Datastore
from uptake.text.types import Document

WIDTH, WORDS = 384, 160


class Vectors:
    """Vectors that the length and the first words of a text decide."""

    spec, dtype, dimensions, fingerprint = "", "float32", WIDTH, "made-up"

    def embed(self, texts: list[str]) -> np.ndarray:
        made = np.empty((len(texts), WIDTH), np.float32)
        for row, text in zip(made, texts, strict=True):
            seed = int.from_bytes(text[:16].encode().ljust(8, b"\0")[:8], "little")
            row[:] = np.random.default_rng([seed, len(text)]).standard_normal(WIDTH, dtype=np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)


def built(path: Path, passages: int) -> None:
    random = np.random.default_rng(0)
    words = np.array([f"{number:x}word" for number in range(30_000)])
    store = Datastore.create(path, encoder=Vectors())
    store.add(
        Document(str(number), " ".join(random.choice(words, WORDS))[:1000]) for number in range(passages)
    )


def timed(what: str, path: Path) -> float:
    """Return the CPU seconds of one opening in a process of its own, without its imports."""
    import torch

    from uptake.adaptation.delta import Delta, LowRank
    from uptake.store.passages import table

    assert table and torch
    if what == "delta":
        file = path / "delta.safetensors"
        if not file.exists():
            parts = {str(n): LowRank(torch.randn(768, 16), torch.randn(16, 768)) for n in range(48)}
            Delta.of("base", parts, "bench").save(file)
        started = time.process_time()
        Delta.load(file, "base")
        return time.process_time() - started
    started = time.process_time()
    store = Datastore.open(path / "s", encoder=Vectors())
    assert store.count
    if what == "search":
        store._table.match("1word 2word 3word", 5)
        store.passages(store._table.ids[:5])
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--passages", type=int, default=100_000)
    parser.add_argument("--one", choices=["open", "search", "delta"])
    given = parser.parse_args()
    if given.one:
        print(timed(given.one, given.work))
        return
    given.work.mkdir(parents=True, exist_ok=True)
    if not (given.work / "s").exists():
        started = time.process_time()
        built(given.work / "s", given.passages)
        print(f"built in {time.process_time() - started:.1f} CPU seconds", file=sys.stderr)
        time.sleep(3)  # a file that has just changed is hashed again
    told = {"passages": given.passages}
    told["bytes"] = sum(file.stat().st_size for file in (given.work / "s").rglob("*") if file.is_file())
    for what in ("open", "search", "delta"):
        command = [sys.executable, __file__, "--work", str(given.work), "--one", what]
        runs = [
            float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            for _ in range(6)
        ]
        told[what] = {"first": round(runs[0], 3), "again": round(median(runs[1:]), 3)}
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
