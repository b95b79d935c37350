"""Energy models of bits: ALOE beside persistent Gibbs sampling and ratio matching, at equal training time.

Seven distributions of the plane as 32 bits (aloe_data.py), three ways of training (aloe_models.py), some
seeds each. Measured is how far samples are from fresh data, by the published kernel and by one that sees
more. Samples are drawn by each way's own sampler, and by Gibbs sampling of its energy from uniform bits, the
same for all. Two controls: another draw of data, and bits drawn each by itself at the data's mean.

    python recipes/aloe.py run --json recipes/aloe.json     # goes on where it stopped
    python recipes/aloe.py table --json recipes/aloe.json
    python recipes/aloe.py picture --out docs/images/aloe.png
"""

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aloe_data as data
import aloe_picture
import numpy as np
import torch
from aloe_models import Energy, Sampler, contrast, power_iteration, ratio_matching, sweep
from torch import Tensor, nn

from uptake.sealed import write_whole

ALOE, PCD, RATIO = "ALOE", "PCD", "ratio matching"
ALONE, AGAIN = "bits alone", "data again"  # the controls
BATCH, HIDDEN, MOST, EACH = 128, 128, 16, 10  # samples a step, units a layer, edits, ways proposed a sample
RATE, CLIP = 1e-3, 5.0
SWEEPS, CHAINS, FRESH = 20, 2000, 4000  # of Gibbs sampling from uniform bits; data they are compared with
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % point of Student's t, by the number of seeds
KERNELS = {"linear": data.linear, "exponential": data.exponential}


class Training:
    """One energy under training: `step` takes data, `draw` gives samples of its own sampler, if any."""

    def __init__(self, method: str, bits: int, hidden: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.method = method
        self.generator = torch.Generator().manual_seed(seed)
        self.energy = Energy(bits, hidden)
        self.sampler = Sampler(bits, hidden, min(MOST, bits)) if method == ALOE else None
        self.chains = self.uniform(BATCH, bits) if method == PCD else None
        self.of_energy = torch.optim.Adam(self.energy.parameters(), RATE)
        self.of_sampler = torch.optim.Adam(self.sampler.parameters(), RATE) if self.sampler else None

    def uniform(self, count: int, bits: int) -> Tensor:
        return torch.randint(2, (count, bits), generator=self.generator).float()

    def step(self, batch: Tensor) -> None:
        if self.method == RATIO:
            self._descend(self.energy, self.of_energy, ratio_matching(self.energy, batch))
            return
        drawn = self.sampler.sample(len(batch), self.generator).end() if self.sampler else self.chains
        negatives = sweep(self.energy, drawn, self.generator)
        if self.chains is not None:
            self.chains = negatives
        self._descend(self.energy, self.of_energy, contrast(self.energy, batch, negatives))
        if self.sampler is not None:
            loss = power_iteration(self.sampler, negatives, EACH, self.generator)
            self._descend(self.sampler, self.of_sampler, loss)

    def _descend(self, module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), CLIP)
        optimizer.step()

    def draw(self, count: int) -> Tensor | None:
        """Return samples: the learned sampler's, or of the chains, a sweep of all between two draws."""
        if self.sampler is not None:
            return self.sampler.sample(count, self.generator).end()
        if self.chains is None:
            return None
        kept = []
        for _ in range(math.ceil(count / len(self.chains))):
            self.chains = sweep(self.energy, self.chains, self.generator)
            kept.append(self.chains)
        return torch.cat(kept)[:count]

    def gibbs(self, count: int, bits: int) -> Tensor:
        x = self.uniform(count, bits)
        for _ in range(SWEEPS):
            x = sweep(self.energy, x, self.generator)
        return x


def distances(samples: Tensor, fresh: Tensor) -> dict[str, float]:
    return {name: data.squared_mmd(samples, fresh, kernel) for name, kernel in KERNELS.items()}


def measured(name: str, method: str, seed: int, seconds: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train for so many CPU seconds; return what came of it, and panels of a picture."""
    random = np.random.default_rng((seed, list(data.SETS).index(name)))
    fresh = data.drawn(name, FRESH, np.random.default_rng((seed, 99, list(data.SETS).index(name))))
    row: dict[str, Any] = {"set": name, "method": method, "seed": seed}
    if method in (ALONE, AGAIN):
        samples = data.drawn(name, CHAINS, random)
        if method == ALONE:  # each bit from another point
            samples = torch.stack(
                [column[torch.from_numpy(random.permutation(CHAINS))] for column in samples.T], 1
            )
        return row | {"sampler": distances(samples, fresh)}, {}
    training, started, steps = Training(method, data.BITS, HIDDEN, seed), time.process_time(), 0
    while time.process_time() - started < seconds:
        training.step(data.drawn(name, BATCH, random))
        steps += 1
    row |= {"steps": steps, "seconds": round(time.process_time() - started, 2)}
    own, gibbs = training.draw(CHAINS), training.gibbs(CHAINS, data.BITS)
    row["energy"] = distances(gibbs, fresh)
    if own is not None:
        row["sampler"] = distances(own, fresh)
    panels = {"scores": aloe_picture.heat(training.energy, data.reach(name))}
    if own is not None:
        panels["sampler"] = aloe_picture.counted(own, data.reach(name))
    return row, panels


def run(args: argparse.Namespace) -> None:
    done = json.loads(args.json.read_text()) if args.json.exists() else {"seconds": args.seconds, "rows": []}
    if done["seconds"] != args.seconds:
        raise SystemExit(
            f"{args.json} was trained for {done['seconds']} seconds: give these, or another file"
        )
    known = {(row["set"], row["method"], row["seed"]) for row in done["rows"]}
    ways = (ALOE, PCD, RATIO, ALONE, AGAIN)
    for seed, name, method in itertools.product(range(args.seeds), args.sets, ways):
        if (name, method, seed) not in known:
            row, panels = measured(name, method, seed, args.seconds)
            if panels and seed == 0:
                kept = read_panels(args.panels) | {
                    f"{name} {method} {kind}": made for kind, made in panels.items()
                }
                write_whole(args.panels, json.dumps(kept).encode())
            done["rows"].append(row)
            write_whole(args.json, (json.dumps(done, indent=1) + "\n").encode())
            print(json.dumps(row), flush=True)


def read_panels(path: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the 95 % interval over seeds, by Student's t."""
    spread = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(np.mean(values)), float(spread * STUDENT.get(len(values), 1.96))


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a Markdown table a kernel: squared distance in units of 1e-4, mean and interval over seeds."""
    columns = [
        ("ALOE, its sampler", ALOE, "sampler"),
        ("PCD, its chains", PCD, "sampler"),
        ("ALOE, Gibbs", ALOE, "energy"),
        ("PCD, Gibbs", PCD, "energy"),
        ("ratio matching, Gibbs", RATIO, "energy"),
        ("each bit alone", ALONE, "sampler"),
        ("data again", AGAIN, "sampler"),
    ]
    for kernel in KERNELS:
        yield f"| {kernel} | " + " | ".join(title for title, *_ in columns) + " |"
        yield "|---" * (len(columns) + 1) + "|"
        for name in data.SETS:
            cells = [_cell(rows, name, method, kind, kernel) for _, method, kind in columns]
            if any(cells):
                yield f"| {name} | " + " | ".join(cells) + " |"
        yield ""
    for method in (ALOE, PCD, RATIO):
        steps = [row["steps"] for row in rows if row["method"] == method]
        yield f"{method}: {min(steps):,} to {max(steps):,} steps"


def _cell(rows: Sequence[dict[str, Any]], name: str, method: str, kind: str, kernel: str) -> str:
    found = [
        1e4 * row[kind][kernel]
        for row in rows
        if row["set"] == name and row["method"] == method and kind in row
    ]
    if not found:
        return ""
    mean, half = interval(found)
    return f"{mean:.1f} ± {half:.1f}"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("run", "table", "picture"))
    parser.add_argument("--json", type=Path, default=Path("recipes/aloe.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/aloe.png"))
    parser.add_argument("--panels", type=Path, default=Path("build/aloe_panels.json"), help="of the picture")
    parser.add_argument("--seconds", type=float, default=15.0, help="CPU seconds of each training")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="*", choices=[*data.SETS], default=[*data.SETS])
    args = parser.parse_args(given)
    torch.set_num_threads(1)
    args.panels.parent.mkdir(parents=True, exist_ok=True)
    if args.what == "run":
        run(args)
        return
    if args.what == "picture":
        sets = {name: data.SETS[name] for name in args.sets}
        args.out.write_bytes(aloe_picture.drawn(read_panels(args.panels), sets))
    else:
        print("\n".join(table(json.loads(args.json.read_text())["rows"])))


if __name__ == "__main__":
    main()
