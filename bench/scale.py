"""What 210 M documents (TTT-NN's index) and 2 T tokens (RETRO's) would need, from figures measured here.

Reads bench/ten_million.json (ten million vectors of 384 dimensions in one process: a shard here has as many),
bench/cluster_million.json (a million in shards on Ray) and bench/hedging.json; what none of them measures is
an assumption, named below and told on the page. Writes the tables of docs/scale.md between its marks.

    python bench/scale.py
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "scale.md"
MARKS = "<!-- made by bench/scale.py: begin -->", "<!-- end -->"

# Assumptions; prices are round figures of rented machines and nobody's offer.
MACHINE_BYTES, MACHINE_CORES = 512e9, 64
DOLLARS_AN_HOUR = 4.0  # of such a machine
DOLLARS_A_TERABYTE_MONTH = 80.0  # of disk
GPU_EMBEDDINGS_A_SECOND, DOLLARS_A_GPU_HOUR = 2000.0, 2.5  # a RoBERTa-sized encoder, not measured
DRAWS = 4000


@dataclass(frozen=True)
class Corpus:
    name: str
    rows: float
    dimensions: int
    text: float  # bytes of text a row


CORPORA = (
    Corpus("TTT-NN: 210 M documents", 210e6, 1024, 4000),
    Corpus("RETRO: 2 T tokens in chunks of 64", 2e12 / 64, 1024, 64 * 4.2),
)


def needs(corpus: Corpus, one: dict[str, Any], cluster: dict[str, Any]) -> dict[str, str]:
    """Return what a corpus needs, as people read it; `one` is a shard."""
    wide = corpus.dimensions / one["dimensions"]
    vectors = 2.0 * corpus.dimensions * corpus.rows  # float16
    # What an opened index holds of a row, ids and lists among it, with longer codes for wider vectors.
    held = one["memory_mib"]["opened"]["own"] * 2**20 / one["vectors"]
    codes = (held + one["index"]["code_bytes"] * (wide - 1)) * corpus.rows
    shards = int(np.ceil(corpus.rows / one["vectors"]))
    every = vectors + codes
    disk = every + vectors + corpus.text * corpus.rows
    shard_ms = one["searching"]["warm_cpu_ms"] * wide
    storing = sum(one[part]["cpu_seconds"] for part in ("storing", "indexing")) / one["vectors"]
    core_hours = storing * wide * corpus.rows / 3600
    gpu_hours = corpus.rows / GPU_EMBEDDINGS_A_SECOND / 3600
    within = np.ceil(every / MACHINE_BYTES)
    few, many = (cluster["shards"][count] for count in ("1", "8"))
    moved = many["bytes_a_query"]["32"] / 8 + 4 * (corpus.dimensions - one["dimensions"])
    texts = 4 * corpus.dimensions + 20 * corpus.text
    asking = {
        batch: (many["carrying_call_ms"][batch]["p50"] - few["carrying_call_ms"][batch]["p50"])
        / 7
        / int(batch)
        for batch in ("1", "256")
    }
    return {
        "vectors": size(vectors),
        "codes and ids": size(codes),
        "text": size(corpus.text * corpus.rows),
        "shards": f"{shards:,}",
        "machines, all vectors in memory": f"{within:,.0f}",
        "machines, codes in memory and vectors on disk": f"{np.ceil(codes / (0.8 * MACHINE_BYTES)):,.0f}",
        "CPU time of a query, one shard": f"{shard_ms:.0f} ms",
        "CPU time of a query, all shards": f"{shard_ms * shards / 1e3:,.1f} s",
        "the caller's own time of a query, asked alone": f"{asking['1'] * shards:,.0f} ms",
        "the caller's own time of a query, 256 at once": f"{asking['256'] * shards:,.1f} ms",
        "moved for a query": size(moved * shards),
        "moved, were texts sent by every shard": size(texts * shards),
        "queries a second of those machines": f"{within * MACHINE_CORES * 1e3 / shard_ms / shards:,.0f}",
        "storing and indexing": f"{core_hours:,.0f} core hours",
        "embedding": f"{gpu_hours:,.0f} GPU hours (assumed rate)",
        "building": f"${core_hours / MACHINE_CORES * DOLLARS_AN_HOUR + gpu_hours * DOLLARS_A_GPU_HOUR:,.0f}",
        "a month, all in memory": f"${within * DOLLARS_AN_HOUR * 730:,.0f}",
        "a month of disk": f"${disk / 1e12 * DOLLARS_A_TERABYTE_MONTH:,.0f}",
    }


def size(count: float) -> str:
    """Return bytes as people read them."""
    for unit, name, digits in ((1e12, "TB", 1), (1e9, "GB", 0), (1e6, "MB", 1)):
        if count >= unit:
            return f"{count / unit:,.{digits}f} {name}"
    return f"{count / 1e3:,.0f} KB"


def tails(shard_ms: NDArray[np.float64], shards: int, hedged: bool) -> list[float]:
    """Return the p50, p95 and p99 of a fan-out's slowest shard, in milliseconds.

    Hedged: a shard that has not answered by its p95 is queried again at a replica.
    """
    random = np.random.default_rng(0)
    first = random.choice(shard_ms, (DRAWS, shards))
    if hedged:
        limit = np.percentile(shard_ms, 95)
        first = np.minimum(first, limit + random.choice(shard_ms, (DRAWS, shards)))
    return [float(value) for value in np.percentile(first.max(axis=1), (50, 95, 99))]


def page() -> str:
    one = json.loads((HERE / "ten_million.json").read_text())
    cluster = json.loads((HERE / "cluster_million.json").read_text())
    found = {corpus.name: needs(corpus, one, cluster) for corpus in CORPORA}
    lines = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for what in next(iter(found.values())):
        lines.append(f"| {what} | " + " | ".join(each[what] for each in found.values()) + " |")
    lines += [
        "",
        "| shards | replicas | vectors in memory: p50, ms | p95 | p99 | from the disk: p50 | p95 | p99 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    times = [np.array(one["searching"][f"each_{how}_ms"]) for how in ("warm", "cold")]
    for shards in (1, 8, 21, 200, 3125):
        for hedged in (False, True):
            told = " | ".join(f"{value:.0f}" for each in times for value in tails(each, shards, hedged))
            lines.append(f"| {shards:,} | {'hedged' if hedged else 'none'} | {told} |")
    lines += [
        "",
        "| measured, milliseconds | hedging | p50 | p95 | p99 | asked again |",
        "|---|---|---|---|---|---|",
    ]
    hedging = json.loads((HERE / "hedging.json").read_text())
    for world in ("undisturbed", "hanging"):
        for side in ("alone", "hedged"):
            told = " | ".join(f"{hedging[world][side][q]:.1f}" for q in ("p50", "p95", "p99"))
            again = f"{100 * hedging[world]['asked_again']:.1f} %" if side == "hedged" else ""
            lines.append(f"| {world} | {'0.95' if side == 'hedged' else 'none'} | {told} | {again} |")
    return "\n".join(lines)


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{page()}\n\n{MARKS[1]}{after}", encoding="utf8")
