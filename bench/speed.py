"""CPU seconds a query against the published loop, and what each variant gains.

Every variant reads the same neighbours of the same queries, one variant after another on each
query, so that a slow minute of the machine slows all of them. Seconds are CPU seconds of training
and scoring; finding the neighbours is told apart. Learning rates are those that validation text chose
for every variant (recipes/levers.sh); with `--validation N` they are chosen here, on N queries a
domain. The published methods search with the whole prefix; of ours, those that say so with its end.

    OMP_NUM_THREADS=1 python bench/speed.py --out bench/speed.json      # recipes/speed.sh
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch
from corpus import DOMAINS, documents, store_of
from rich.console import Console
from rich.table import Table
from torch import nn

import uptake
from uptake.evaluation.protocols.per_query import PerQuery
from uptake.evaluation.queries import Query
from uptake.lm.base import Segment
from uptake.lm.causal import Causal
from uptake.lm.examples import encode, pieces, rolling_windows
from uptake.methods.contract.method import Context, Evidence
from uptake.methods.finetune import Finetune
from uptake.settings import apply
from uptake.store.datastore import Datastore
from uptake.store.passages.source import QueryText
from uptake.text.overlap import LeakFilter
from uptake.text.types import Document, Found, Passage

RATES, LOWER = (1e-4, 3e-4, 1e-3, 3e-3), 3e-5
# Mathematics left out: its gain is ten times that of the others, and would be all that is seen.
PROSE = tuple(domain for domain in DOMAINS if domain != "dm_mathematics")
FRESH = "float32 all weights"
SEARCH = 384  # characters of the prefix's end, where a method searches with that


@dataclass(frozen=True)
class Asked:
    """A query with its neighbours, the base's bits in the benchmark's two number formats, and its bytes."""

    query: Query
    found: Found
    base_bits: dict[str, float]
    bytes: int
    retrieve_seconds: float
    by_end: Found = field(default_factory=Found)  # its neighbours by the end of the prefix alone


@dataclass(frozen=True)
class Contestant:
    """One variant: `run` takes a query and a learning rate and returns the bits of the suffix."""

    name: str
    dtype: str  # whose base model it is measured against
    run: Callable[[Asked, float], float]
    rate_of: str = ""  # the method whose learning rate it takes, where training is the same
    rate: float = math.nan  # what validation text chose


class PublishedLoop:
    """Test-time training as it was published: one module, one AdamW for good, weights put back from a copy.

    One step a neighbour in float32. With `every` the query is scored again after every neighbour.
    """

    def __init__(self, lm: Causal, every: bool) -> None:
        self.lm, self.every = lm, every
        self.module = self._trainable(lm)
        self.saved = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
        self.optimizers: dict[float, torch.optim.Optimizer] = {}

    @staticmethod
    def _trainable(lm: Causal) -> nn.Module:
        from transformers import AutoModelForCausalLM

        module: nn.Module = AutoModelForCausalLM.from_pretrained(lm.name, dtype=torch.float32)
        return module.train()

    def run(self, asked: Asked, rate: float) -> float:
        """Return the bits of the query's suffix after the last neighbour."""
        if rate not in self.optimizers:
            self.optimizers[rate] = torch.optim.AdamW(self.module.parameters(), lr=rate, weight_decay=0.01)
        optimizer = self.optimizers[rate]
        self.module.load_state_dict(self.saved)
        bits = math.nan
        for passage in asked.found.passages:
            self._learn(passage, optimizer)
            if self.every:
                bits = self._bits(asked.query)
        return bits if self.every else self._bits(asked.query)

    def _learn(self, passage: Passage, optimizer: torch.optim.Optimizer) -> None:
        for piece in pieces(encode(self.lm.tokenizer, "", passage.text), self.lm.window):
            logits = self.module(input_ids=torch.tensor([piece.inputs])).logits[0]
            loss = nn.functional.cross_entropy(logits, torch.tensor(piece.target))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            optimizer.step()

    def _bits(self, query: Query) -> float:
        nats = 0.0
        with torch.no_grad():
            example = encode(self.lm.tokenizer, query.context, query.target)
            for window in rolling_windows(example, self.lm.window):
                logits = self.module(input_ids=torch.tensor([window.inputs])).logits[0]
                targets = torch.tensor(window.target)
                nats += nn.functional.cross_entropy(logits[-len(targets) :], targets, reduction="sum").item()
        return nats / math.log(2)


def ours(lm: Causal, k: int, *settings: str, by_end: bool = False) -> Callable[[Asked, float], float]:
    """Return Uptake's variant on the first `k` neighbours, with these settings."""
    method = apply(Finetune(), *settings)

    def run(asked: Asked, rate: float) -> float:
        tuned = apply(method, f"learning_rate={rate}")
        found = asked.by_end if by_end else asked.found
        evidence = Evidence(found.part(0, k), asked.query.context)
        states = tuned.adapt([tuned.init(lm)], lm, [evidence], Context())
        (scores,) = tuned.adapted(states, lm).score([Segment(asked.query.target, asked.query.context)])
        return scores.bits

    return run


def contestants(full: Causal, half: Causal, k: int) -> list[Contestant]:
    """Return the variants, the published one first, then the same without its re-scoring."""
    few, top = max(1, k // 2), "trainable=top(layers=2)"
    dtype = str(half.dtype).removeprefix("torch.")
    own = "own_prefix=true"

    def mine(name: str, rate: float, k: int, *settings: str, by_end: bool = False) -> Contestant:
        return Contestant(f"{dtype} {name}", dtype, ours(half, k, *settings, by_end=by_end), rate=rate)

    return [
        Contestant(
            "published loop", "float32", PublishedLoop(full, True).run, "published loop, scored once", 3e-4
        ),
        Contestant("published loop, scored once", "float32", PublishedLoop(full, False).run, rate=3e-4),
        Contestant(FRESH, "float32", ours(full, k), f"{dtype} all weights", 3e-4),
        mine("all weights", 3e-4, k),
        mine("top 2 layers", 1e-3, k, top),
        mine("top 2 layers, end", 1e-3, k, top, by_end=True),
        mine("top 2 layers, end, own prefix", 1e-3, k, top, own, by_end=True),
        mine(f"top 2 layers, end, own prefix, k = {few}", 1e-3, few, top, own, by_end=True),
        mine(f"top 2 layers, end, own prefix, k = {few // 2}", 1e-3, few // 2, top, own, by_end=True),
        mine(f"top 2 layers, end, own prefix, k = {2 * k}", 1e-3, 2 * k, top, own, by_end=True),
    ]


def ask(
    models: Sequence[Causal], stores: dict[str, Datastore], part: str, count: int, k: int, shared: Path
) -> list[Asked]:
    """Return the first queries of a part of each domain with their neighbours, under the leak filter."""
    asked = []
    for domain, store in stores.items():
        for document in documents(shared, domain, part, count):
            query = next(PerQuery().queries(document))
            found, seconds = _found(store, document, query.search, k)
            by_end, _ = _found(store, document, query.search[-SEARCH:], 2 * k)
            scores = {
                str(lm.dtype).removeprefix("torch."): lm.score([Segment(query.target, query.context)])[0]
                for lm in models
            }
            base = {dtype: one.bits for dtype, one in scores.items()}
            asked.append(Asked(query, found, base, len(query.target.encode("utf8")), seconds, by_end))
    return asked


def _found(store: Datastore, document: Document, search: str, k: int) -> tuple[Found, float]:
    started = time.process_time()
    (source,) = store.sources([QueryText(search, document.id, document.group, document.text)], LeakFilter())
    found = source.search(k)
    return found, time.process_time() - started


def choose_rates(chosen: Sequence[Contestant], valid: Sequence[Asked]) -> dict[str, float]:
    """Return every method's learning rate with the largest gain on the validation queries.

    Rates rise as long as the gain does: it has one peak. Where the first is best, a lower one is tried.
    """
    rates: dict[str, float] = {}
    for contestant in chosen:
        if contestant.rate_of:
            continue
        gains: dict[float, float] = {}
        for rate in RATES:
            gains[rate] = _gain(contestant, rate, valid)
            if gains[rate] < max(gains.values()):
                break
        if gains[RATES[0]] == max(gains.values()):
            gains[LOWER] = _gain(contestant, LOWER, valid)
        rates[contestant.name] = max(gains, key=lambda rate: gains[rate])
        told = ", ".join(f"{rate:g}: {100 * gain:.1f} %" for rate, gain in gains.items())
        print(f"  validation gain, {contestant.name}: {told}", flush=True)
    return {contestant.name: rates[contestant.rate_of or contestant.name] for contestant in chosen}


def _gain(contestant: Contestant, rate: float, queries: Sequence[Asked]) -> float:
    bits, base = (
        (contestant.run(one, rate) for one in queries),
        (one.base_bits[contestant.dtype] for one in queries),
    )
    gain = 1 - sum(bits) / sum(base)
    return gain if math.isfinite(gain) else -math.inf


def measure(
    chosen: Sequence[Contestant], rates: dict[str, float], test: Sequence[Asked]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return bits and CPU seconds of every method on every query, the methods in another order each time."""
    bits: dict[str, list[float]] = {contestant.name: [] for contestant in chosen}
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in chosen}
    for number, asked in enumerate(test):
        turn = number % len(chosen)
        for contestant in [*chosen[turn:], *chosen[:turn]]:
            started = time.process_time()
            found = contestant.run(asked, rates[contestant.name])
            seconds[contestant.name].append(time.process_time() - started)
            bits[contestant.name].append(found)
        print(f"  query {number + 1} of {len(test)}", flush=True)
    return bits, seconds


def figures(
    chosen: Sequence[Contestant], rates: dict, test: Sequence[Asked], bits: dict, seconds: dict
) -> list[dict]:
    """Return a line of figures for every method; shares of gain with their 95 % interval by document."""
    published, once, fresh = (contestant.name for contestant in chosen[:3])
    # What is saved is counted from the model people have, in float32, whatever a method computes in.
    base = np.array([one.base_bits["float32"] for one in test])
    saved = {name: base - np.array(values) for name, values in bits.items()}
    size = sum(one.bytes for one in test)
    draws = np.random.default_rng(0).integers(0, len(test), (2000, len(test)))
    made = []
    for contestant in chosen:
        took = seconds[contestant.name]
        shares = {
            whose: (
                saved[contestant.name].sum() / theirs.sum(),
                saved[contestant.name][draws].sum(1) / theirs[draws].sum(1),
            )
            for whose, theirs in (("published", saved[once]), ("fresh", saved[fresh]))
        }
        made.append(
            {
                "way": contestant.name,
                "learning_rate": rates[contestant.name],
                "cpu_seconds": median(took),
                "cpu_seconds_quartiles": list(np.percentile(took, [25, 75])),
                "times_faster_than_published": median(
                    theirs / mine for theirs, mine in zip(seconds[published], took, strict=True)
                ),
                "times_faster_than_scored_once": median(
                    theirs / mine for theirs, mine in zip(seconds[once], took, strict=True)
                ),
                "bits_per_byte": sum(bits[contestant.name]) / size,
                "bits_per_byte_saved": float(saved[contestant.name].sum()) / size,
                "gain": float(saved[contestant.name].sum() / base.sum()),
                **{f"share_of_{whose}_gain": float(share) for whose, (share, _) in shares.items()},
                **{
                    f"share_of_{whose}_gain_ci": list(np.percentile(drawn, [2.5, 97.5]))
                    for whose, (_, drawn) in shares.items()
                },
            }
        )
    return made


def show(told: dict) -> None:
    measured = ("lr", "CPU s", "vs published", "vs scored once", "bpb saved", "gain")
    table = Table("variant", *measured, "of published gain", "of fresh AdamW's", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for line in told["ways"]:
        shares = [
            f"{100 * line[key]:.0f} % [{', '.join(f'{100 * end:.0f}' for end in line[key + '_ci'])}]"
            for key in ("share_of_published_gain", "share_of_fresh_gain")
        ]
        table.add_row(
            line["way"],
            f"{line['learning_rate']:g}",
            f"{line['cpu_seconds']:.2f}",
            f"{line['times_faster_than_published']:.2f}x",
            f"{line['times_faster_than_scored_once']:.2f}x",
            f"{line['bits_per_byte_saved']:.4f}",
            f"{100 * line['gain']:.2f} %",
            *shares,
        )
    Console(width=150).print(
        f"k = {told['k']}, {told['queries']} queries of {len(told['domains'])} domains, "
        f"base {told['base_bits_per_byte']:.3f} bits a byte; finding neighbours costs every variant "
        f"{told['retrieve_cpu_seconds']:.3f} s a query more",
        table,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("UPTAKE_SHARED", "../shared")))
    parser.add_argument("--model", help="default: the shared base model")
    parser.add_argument("--stores", type=Path, default=Path("build/stores"))
    parser.add_argument("--out", type=Path, default=Path("bench/speed.json"))
    parser.add_argument("--domains", nargs="+", default=PROSE)
    parser.add_argument(
        "--validation", type=int, default=0, help="queries a domain that choose learning rates"
    )
    parser.add_argument("--queries", type=int, default=5, help="test queries a domain, one a document")
    parser.add_argument("-k", type=int, default=20)
    parser.add_argument("--dtype", default="bfloat16", help="of the base under our own variants")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[""], help="beside the first three: words in the names")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    name = arguments.model or str(arguments.shared / "models/base-5m")
    full, half = uptake.load(name), uptake.load(name, dtype=arguments.dtype)
    stores = {
        domain: store_of(arguments.stores, arguments.shared, domain, passages=None)
        for domain in arguments.domains
    }

    def selected() -> list[Contestant]:
        every = contestants(full, half, arguments.k)
        return [w for w in every if w in every[:3] or any(word in w.name for word in arguments.only)]

    chosen = selected()
    valid = ask([full, half], stores, "valid", max(1, arguments.validation), arguments.k, arguments.shared)
    test = ask([full, half], stores, "test", arguments.queries, arguments.k, arguments.shared)
    rates = (
        choose_rates(chosen, valid)
        if arguments.validation
        else {contestant.name: contestant.rate for contestant in chosen}
    )
    # A first run each, untimed: what is done once does not count, nor do optimizer states of validation.
    chosen = selected()
    for contestant in chosen:
        contestant.run(valid[0], rates[contestant.name])
    bits, seconds = measure(chosen, rates, test)
    told = {
        "k": arguments.k,
        "queries": len(test),
        "domains": list(stores),
        "passages": {domain: store.count for domain, store in stores.items()},
        "model": full.fingerprint,
        "threads": arguments.threads,
        "processor": _processor(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "base_bits_per_byte": sum(one.base_bits["float32"] for one in test) / sum(one.bytes for one in test),
        "retrieve_cpu_seconds": median(one.retrieve_seconds for one in test),
        "ways": figures(chosen, rates, test, bits, seconds),
        "seconds_by_query": seconds,
        "bits_by_query": bits,
    }
    show(told)
    arguments.out.write_text(json.dumps(told, indent=1) + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.processor()


if __name__ == "__main__":
    main()
