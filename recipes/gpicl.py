"""GPICL's phase curve: with how many training tasks does a transformer stop memorising and start to learn?

One network is trained for every number of tasks and every seed (Kirsch et al. 2022), then shown new
sequences of the tasks it was trained on, of tasks it never met, and of tasks over another data set.
The first position shows what it knows without being told anything, the last five what it has learnt.
The control: the same sequences with the labels it is shown drawn at random. Chance is 1/3.

    python recipes/gpicl.py            # go on after an interruption: the same command again
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from gpicl_network import InContextLearner, Tasks
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy

from uptake.evaluation.records import RecordFile
from uptake.report.page import chart, write_chart

INPUTS, CLASSES, LENGTH = 8, 3, 20
BATCH, RATE = 64, 1e-3
LAST = 5  # positions
UNLIMITED = 0
COLUMNS = (
    "seen first",
    "seen last",
    "seen scrambled",
    "unseen first",
    "unseen last",
    "unseen scrambled",
    "other last",
)


def train(tasks: Tasks, endless: bool, steps: int, seed: int) -> InContextLearner:
    """Return a network trained on sequences of these tasks; if `endless`, of new ones every step."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = InContextLearner(INPUTS, CLASSES, LENGTH)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    for _ in range(steps):
        met = Tasks.draw(tasks.prototypes, BATCH, generator) if endless else tasks
        which = torch.randint(len(met.projections), (BATCH,), generator=generator)
        inputs, labels = met.sequences(which, LENGTH, generator)
        loss = cross_entropy(net(inputs, labels).flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net


def accuracy(
    net: InContextLearner, tasks: Tasks, scrambled: bool = False, sequences: int = 1024
) -> list[float]:
    """Return the share of right answers at each position, over new sequences of the tasks.

    `scrambled` shows random labels in place of the right ones.
    """
    generator = torch.Generator().manual_seed(7)
    which = torch.arange(sequences) % len(tasks.projections)
    inputs, labels = tasks.sequences(which, LENGTH, generator)
    shown = torch.randint(CLASSES, labels.shape, generator=generator) if scrambled else labels
    with torch.no_grad():
        return (net(inputs, shown).argmax(-1) == labels).double().mean(0).tolist()


def cell(count: int, steps: int, seed: int) -> dict[str, float]:
    """Train one network on `count` tasks and return its figures, by the names in COLUMNS."""
    generator = torch.Generator().manual_seed(1000 + seed)
    prototypes, others = torch.randn(2, CLASSES, INPUTS, generator=generator)
    unseen, other = (Tasks.draw(some, 512, generator) for some in (prototypes, others))
    seen = Tasks.draw(prototypes, count or 512, generator)
    started = time.process_time()
    net = train(seen, count == UNLIMITED, steps, seed)
    figures = {"cpu_seconds": time.process_time() - started}
    for name, tasks in (("seen", seen), ("unseen", unseen), ("other", other)):
        right, blind = accuracy(net, tasks), accuracy(net, tasks, scrambled=True)
        figures |= {
            f"{name} first": right[0],
            f"{name} last": mean(right[-LAST:]),
            f"{name} scrambled": mean(blind[-LAST:]),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--tasks", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024, UNLIMITED], help="0: no end"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="training steps of each network")
    parser.add_argument("--journal", type=Path, default=Path("build/gpicl.journal"))
    parser.add_argument("--out", type=Path, default=Path("recipes/gpicl.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/gpicl.svg"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    journal = RecordFile(arguments.journal, f"gpicl steps={arguments.steps} batch={BATCH} rate={RATE}")
    done = {(record["tasks"], record["seed"]): record for record in journal.start(dict)}
    for seed in range(arguments.seeds):
        for count in arguments.tasks:
            if (count, seed) not in done:
                done[count, seed] = {"tasks": count, "seed": seed, **cell(count, arguments.steps, seed)}
                journal.keep(done[count, seed])
                print(
                    f"  {name(count)} tasks, seed {seed}: {done[count, seed]['unseen last']:.3f} unseen",
                    flush=True,
                )
    cells = [done[count, seed] for count in arguments.tasks for seed in range(arguments.seeds)]
    report(cells, arguments.tasks)
    arguments.out.write_text(json.dumps({"steps": arguments.steps, "cells": cells}, indent=1) + "\n")
    plot(cells, arguments.tasks, arguments.plot)


def name(count: int) -> str:
    return "unlimited" if count == UNLIMITED else str(count)


def values(cells: Sequence[dict[str, float]], count: int, column: str) -> list[float]:
    return [one[column] for one in cells if one["tasks"] == count]


def report(cells: Sequence[dict[str, float]], counts: Sequence[int]) -> None:
    table = Table("tasks", *COLUMNS, "CPU s", box=None)
    for count in counts:
        told = []
        for column in COLUMNS:
            found = values(cells, count, column)
            told.append(f"{mean(found):.2f} [{min(found):.2f}, {max(found):.2f}]")
        table.add_row(name(count), *told, f"{mean(values(cells, count, 'cpu_seconds')):.0f}")
    Console(width=180).print(
        f"accuracy, last {LAST} positions or first; mean (least to most) over seeds", table
    )


def plot(cells: Sequence[dict[str, float]], counts: Sequence[int], path: Path) -> None:
    def line(column: str, shown: str, colour: int) -> chart.Series:
        marks = []
        for place, count in enumerate(counts):
            found = values(cells, count, column)
            marks.append(chart.Mark(place, mean(found), (min(found), max(found))))
        return chart.Series(shown, colour, tuple(marks))

    svg = chart.draw(
        "lines",
        [
            line("seen last", "seen", 2),
            line("unseen last", "unseen", 3),
            line("unseen scrambled", "scrambled", 1),
        ],
        chart.names("training tasks", ["∞" if count == UNLIMITED else str(count) for count in counts]),
        chart.linear(f"accuracy at the last {LAST} positions", [0.0, 1.0], digits=1),
        summary="Accuracy on seen and unseen tasks against the number of training tasks.",
        reference=(1 / CLASSES, "chance"),
    )
    write_chart(svg, path)


if __name__ == "__main__":
    main()
