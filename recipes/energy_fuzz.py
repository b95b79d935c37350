"""Fuzzing our own readers, guided by an energy model, beside hypothesis, a corpus and chance, at equal time.

All four propose the same kind of input, a good file and four edits (fuzz_inputs.py); they differ in which.
`energy` is ALOE (aloe_models.py), trained online on the inputs that reached something new, the rarer the more
often; its sampler proposes. `corpus` changes a few bits of such an input, and no model learns. `hypothesis`
draws and is told by `target` how much an input reached. `random` draws bits. Counted are jumps between lines
of our readers, and faults: what no reader promised to raise, hangs, files of ours that load and are not what
they say. Seconds are CPU seconds, those of training and of proposing among them.

    python recipes/energy_fuzz.py run --json recipes/energy_fuzz.json     # goes on where it stopped
    python recipes/energy_fuzz.py table --json recipes/energy_fuzz.json
"""

import argparse
import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fuzz_inputs as inputs
import numpy as np
import torch
from aloe import interval
from aloe_models import Energy, Sampler, contrast, power_iteration, sweep

from uptake.sealed import write_whole

CHECKS = 8  # points of the curve
HIDDEN, MOST, EACH, BATCH, RATE = 32, 8, 4, 32, 2e-3
BETWEEN, EXPLORED = 32, 0.25  # inputs between two steps of training, share drawn by chance
FLIPPED = 6  # most bits that the corpus changes


class TimeUp(KeyboardInterrupt):
    """The CPU time is spent; hypothesis lets it pass, as it does whoever interrupts it."""


class Session:
    """One strategy under way: it reads inputs until the time is up, and keeps what they reached and when."""

    def __init__(self, watch: inputs.Watch, seconds: float) -> None:
        self.watch, self.seconds, self.started = watch, seconds, time.process_time()
        self.curve: list[int] = []
        self.corpus: list[tuple[inputs.Bits, set[Any]]] = []
        self._chances, self._weigh_at = np.ones(0), 0

    def read(self, bits: inputs.Bits) -> tuple[set[Any], bool]:
        """Read an input, and keep it where it reached something new. Raises TimeUp."""
        spent = time.process_time() - self.started
        while len(self.curve) < CHECKS and spent >= self.seconds * (len(self.curve) + 1) / CHECKS:
            self.curve.append(len(self.watch.seen))
        if spent >= self.seconds:
            raise TimeUp
        jumps, new = self.watch.read(bits)
        if new:
            self.corpus.append((bits, jumps))
        return jumps, new

    def drawn(self, count: int, random: np.random.Generator) -> list[inputs.Bits]:
        """Return inputs of the corpus, each the more often the rarer the rarest of its jumps is."""
        if self.watch.inputs >= self._weigh_at:  # not each time: it looks at every jump of every input
            rarest = [min(self.watch.seen[jump] for jump in jumps) for _, jumps in self.corpus]
            shares = 1 / np.array(rarest, np.float64)
            self._chances, self._weigh_at = shares / shares.sum(), self.watch.inputs + 2 * BETWEEN
        places = random.choice(len(self._chances), count, p=self._chances)
        return [self.corpus[place][0] for place in places]


def by_chance(session: Session, random: np.random.Generator) -> None:
    while True:
        session.read(random.integers(0, 2, inputs.BITS, dtype=np.int8))


def by_corpus(session: Session, random: np.random.Generator) -> None:
    while True:
        bits = random.integers(0, 2, inputs.BITS, dtype=np.int8)
        if session.corpus and random.random() >= EXPLORED:
            bits = session.drawn(1, random)[0].copy()
            bits[random.choice(inputs.BITS, int(random.integers(1, FLIPPED + 1)), replace=False)] ^= 1
        session.read(bits)


def by_energy(session: Session, random: np.random.Generator) -> None:
    seed = int(random.integers(2**31))
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    energy, sampler = Energy(inputs.BITS, HIDDEN), Sampler(inputs.BITS, HIDDEN, MOST)
    of_energy = torch.optim.Adam(energy.parameters(), RATE)
    of_sampler = torch.optim.Adam(sampler.parameters(), RATE)
    while True:
        ready = len(session.corpus) >= BATCH
        proposed = sampler.sample(BETWEEN, draw).end().numpy().astype(np.int8)
        for bits in proposed:
            if not ready or random.random() < EXPLORED:
                bits = random.integers(0, 2, inputs.BITS, dtype=np.int8)
            session.read(bits)
        if ready:
            data = torch.from_numpy(np.stack(session.drawn(BATCH, random))).float()
            negatives = sweep(energy, sampler.sample(BATCH, draw).end(), draw)
            losses = contrast(energy, data, negatives), power_iteration(sampler, negatives, EACH, draw)
            for optimizer, loss in zip((of_energy, of_sampler), losses, strict=True):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()


def by_hypothesis(session: Session, random: np.random.Generator) -> None:
    import hypothesis
    from hypothesis import strategies as st

    edit = st.tuples(
        st.integers(0, 2**inputs.KIND_BITS - 1),
        st.integers(0, 2**inputs.PLACE_BITS - 1),
        st.integers(0, 2**inputs.SPAN_BITS - 1),
        st.integers(0, 2**inputs.PIECE_BITS - 1),
    )
    edits = st.tuples(*[edit] * inputs.EDITS)

    while True:  # a run ends by itself where it has nothing new to say

        @hypothesis.seed(int(random.integers(2**31)))
        @hypothesis.settings(
            max_examples=100_000,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate, hypothesis.Phase.target],
            suppress_health_check=[*hypothesis.HealthCheck],
        )
        @hypothesis.given(st.integers(0, 2**inputs.FILE_BITS - 1), edits)
        def asked(file: int, edits: tuple[tuple[int, ...], ...]) -> None:
            jumps, _ = session.read(inputs.bits_of([file, *itertools.chain.from_iterable(edits)]))
            hypothesis.target(float(len(jumps)))

        asked()


STRATEGIES: dict[str, Callable[[Session, np.random.Generator], None]] = {
    "energy": by_energy,
    "corpus": by_corpus,
    "hypothesis": by_hypothesis,
    "random": by_chance,
}


def measured(strategy: str, seed: int, seconds: float, some: list[inputs.Target]) -> dict[str, Any]:
    """Return what one strategy reached in so many CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        watch = inputs.Watch(some, Path(folder))
        for number in range(len(some)):  # the good files are known to all
            watch.read(inputs.bits_of([number, *[0] * (4 * inputs.EDITS)]))
        session = Session(watch, seconds)
        with contextlib.suppress(TimeUp):
            STRATEGIES[strategy](session, np.random.default_rng((seed, list(STRATEGIES).index(strategy))))
    return {
        "strategy": strategy,
        "seed": seed,
        "inputs": watch.inputs,
        "curve": session.curve,
        "faults": watch.faults,
        "jumps": sorted(_said(jump) for jump in watch.seen),
    }


def _said(jump: tuple[Any, int, int]) -> str:
    code, last, line = jump
    return f"{Path(code.co_filename).stem}.{code.co_name}:{last}-{line}"


def good_files() -> dict[str, bytes]:
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    import good_files

    return good_files.good()


def run(args: argparse.Namespace) -> None:
    done = (
        json.loads(args.json.read_text())
        if args.json.exists()
        else {"seconds": args.seconds, "names": [], "rows": []}
    )
    if done["seconds"] != args.seconds:
        raise SystemExit(f"{args.json} was made in {done['seconds']} seconds: give these, or another file")
    known = {(row["strategy"], row["seed"]) for row in done["rows"]}
    some = inputs.targets(good_files())
    for strategy in STRATEGIES:  # whatever is imported at first use costs nobody's time
        measured(strategy, 0, 0.1, some)
    for seed, strategy in itertools.product(range(args.seeds), STRATEGIES):
        if (strategy, seed) not in known:
            row = measured(strategy, seed, args.seconds, some)
            numbered = {name: place for place, name in enumerate(done["names"])}
            row["jumps"] = [numbered.setdefault(name, len(numbered)) for name in row["jumps"]]
            done["names"] = [*numbered]
            done["rows"].append(row)
            write_whole(args.json, (json.dumps(done) + "\n").encode())
            print(strategy, seed, row["inputs"], row["curve"], [*row["faults"]], flush=True)


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the Markdown table: jumps reached by the CPU seconds, inputs, faults, what no other reached."""
    reached = {
        name: set().union(*(row["jumps"] for row in rows if row["strategy"] == name)) for name in STRATEGIES
    }
    yield (
        "| | inputs | "
        + " | ".join(f"{part}/{CHECKS}" for part in (1, 2, 4, 8))
        + " | by it alone | faults |"
    )
    yield "|---" * 8 + "|"
    for name in STRATEGIES:
        mine = [row for row in rows if row["strategy"] == name]
        cells = []
        for part in (1, 2, 4, 8):
            mean, half = interval([row["curve"][part - 1] for row in mine])
            cells.append(f"{mean:.0f} ± {half:.0f}")
        alone = reached[name].difference(*(other for key, other in reached.items() if key != name))
        faults = {fault for row in mine for fault in row["faults"]}
        inputs_read = sum(row["inputs"] for row in mine) // len(mine)
        yield f"| {name} | {inputs_read:,} | " + " | ".join(cells) + f" | {len(alone)} | {len(faults)} |"
    yield ""
    for fault in sorted({fault for row in rows for fault in row["faults"]}):
        yield f"- {fault}"


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--json", type=Path, default=Path("recipes/energy_fuzz.json"))
    parser.add_argument("--seconds", type=float, default=5.0, help="CPU seconds of each strategy and seed")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args(given)
    torch.set_num_threads(1)
    if args.what == "run":
        run(args)
    else:
        print("\n".join(table(json.loads(args.json.read_text())["rows"])))


if __name__ == "__main__":
    main()
