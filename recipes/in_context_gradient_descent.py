"""Transformers learn in context by gradient descent: the construction, and what training finds instead.

Regression problems y = w x with w ~ N(0, I), x ~ U(-1/2, 1/2) in ten dimensions and ten examples each
(von Oswald et al. 2022, section 3). Every row of the table predicts the same unseen queries of the same
unseen problems; the loss is half the mean squared error. Rates of gradient descent are chosen on other
problems, for every number of steps by itself.

    python recipes/in_context_gradient_descent.py
"""

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path

import torch
from gradient_attention import GradientAttention, best_step, linear_problems
from rich.console import Console
from rich.table import Table
from torch import Tensor

from uptake.report.metrics import ratio_interval
from uptake.report.page import chart, write_chart

WIDTH = EXAMPLES = 10
Problems = tuple[Tensor, Tensor, Tensor, Tensor]


def train(depth: int, steps: int, seed: int = 0, problems: int = 512, queries: int = 10) -> GradientAttention:
    """Return linear attention trained from small random weights: Adam from 1e-2 down a cosine, clip 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = GradientAttention(WIDTH, depth=depth)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        *shown, answers = linear_problems(problems, WIDTH, EXAMPLES, queries, generator)
        loss = (net(*shown) - answers).square().mean() / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return net


def descent(steps: int, gain: float, curvature: float = 0.0) -> GradientAttention:
    """Return the construction from W0 = 0; `gain` is rate / N."""
    return GradientAttention.descending(torch.zeros(1, WIDTH), gain * EXAMPLES, EXAMPLES, steps, curvature)


def losses(net: GradientAttention, problems: Problems) -> Tensor:
    """Return the loss of each problem."""
    *shown, answers = problems
    with torch.no_grad():
        return (net(*shown) - answers).square().mean((1, 2)) / 2


def tuned(steps: int, curved: bool, problems: Problems) -> tuple[float, float]:
    """Return the gain and the curvature with the least loss on the problems: a grid, refined twice."""
    gains, curves = [0.1 * 1.3**n for n in range(12)], [0.02 * 1.4**n for n in range(12)] if curved else [0.0]
    best = (1.0, 0.0)
    for _ in range(3):
        tried = {
            (gain, curve): losses(descent(steps, gain, curve), problems).mean().item()
            for gain in gains
            for curve in curves
        }
        best = min(tried, key=lambda pair: tried[pair])
        gains, curves = around(best[0], gains), around(best[1], curves) if curved else [0.0]
    return best


def around(best: float, tried: list[float]) -> list[float]:
    """Return values around the best one, at a quarter of the spacing it was tried at."""
    ratio = max(high / low for low, high in pairwise(tried)) ** 0.25
    return [best * ratio**n for n in range(-3, 4)]


def alike(net: GradientAttention, other: GradientAttention, problems: Problems) -> float:
    """Return the mean cosine of the linear models that two networks have learnt of each problem."""
    inputs, targets, _, _ = problems
    every = torch.eye(WIDTH).expand(len(inputs), -1, -1)  # both are linear in the query
    with torch.no_grad():
        one, two = net(inputs, targets, every), other(inputs, targets, every)
    return torch.cosine_similarity(one, two, dim=1).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--steps", type=int, default=1000, help="training steps of each network")
    parser.add_argument("--problems", type=int, default=10_000, help="unseen problems")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("recipes/in_context_gradient_descent.json"))
    parser.add_argument("--plot", type=Path, default=Path("docs/images/in-context-gradient-descent.svg"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    valid = linear_problems(2000, WIDTH, EXAMPLES, 10, torch.Generator().manual_seed(arguments.seed + 1))
    test = linear_problems(
        arguments.problems, WIDTH, EXAMPLES, 10, torch.Generator().manual_seed(arguments.seed + 2)
    )
    names = [str(number) for number in range(arguments.problems)]
    gain, expected = best_step(WIDTH, EXAMPLES)
    rows = []

    def row(label: str, depth: int, net: GradientAttention, **told: float) -> None:
        found = losses(net, test)
        interval = ratio_interval(found.numpy(), torch.ones(len(found)).numpy(), names, resamples=2000)
        rows.append(
            {"way": label, "layers": depth, "loss": found.mean().item(), "interval": interval, **told}
        )

    row("no step", 0, descent(1, 0.0))
    row("untrained layer", 1, train(1, steps=0))
    for times in (0.5, 2.0):
        row(f"gradient descent, {times:g} x the best rate", 1, descent(1, times * gain))
    for depth in arguments.depths:
        found, _ = tuned(depth, False, valid)
        plain = descent(depth, found)
        row("gradient descent", depth, plain, gain=found)
        started = time.process_time()
        net = train(depth, arguments.steps, arguments.seed)
        told = {"cpu_seconds": time.process_time() - started, "cosine_to_gd": alike(net, plain, test)}
        if depth == 1:  # no layer reads what the first one made of x, so GD++ is plain SGD
            told["gain"] = net.gain()
        else:
            found, curve = tuned(depth, True, valid)
            curved = descent(depth, found, curve)
            row("GD++", depth, curved, gain=found, curvature=curve)
            told["cosine_to_gd++"] = alike(net, curved, test)
        row("trained", depth, net, **told)
        print(f"  {depth} layers done", flush=True)

    table = Table(
        "layers", "method", "loss", "95 %", "rate / N", "curvature", "cosine to GD, GD++", "CPU s", box=None
    )
    for one in rows:
        low, high = one["interval"]
        cosines = [f"{one[key]:.3f}" for key in ("cosine_to_gd", "cosine_to_gd++") if key in one]
        table.add_row(
            str(one["layers"]),
            one["way"],
            f"{one['loss']:.4f}",
            f"[{low:.4f}, {high:.4f}]",
            *(f"{one[key]:.4f}" if key in one else "" for key in ("gain", "curvature")),
            ", ".join(cosines),
            f"{one['cpu_seconds']:.0f}" if "cpu_seconds" in one else "",
        )
    Console(width=130).print(f"best single step: rate / N = {gain:.4f}, expected loss {expected:.4f}", table)
    arguments.out.write_text(json.dumps({"best_step": [gain, expected], "rows": rows}, indent=1) + "\n")
    plot(rows, arguments.depths, arguments.plot)


def plot(rows: list[dict], depths: list[int], path: Path) -> None:
    lines = [
        chart.Series(
            name,
            colour,
            tuple(
                chart.Mark(one["layers"], one["loss"], one["interval"]) for one in rows if one["way"] == label
            ),
        )
        for colour, label, name in (
            (0, "gradient descent", "descent"),
            (2, "GD++", "GD++"),
            (3, "trained", "trained"),
        )
    ]
    heights = [mark.y for line in lines for mark in line.marks]
    svg = chart.draw(
        "lines",
        lines,
        chart.counts("layers, or steps", depths),
        chart.linear("loss on unseen problems", [0.0, *heights], digits=2),
        summary="Loss of gradient descent, GD++ and trained linear attention against the number of layers.",
    )
    write_chart(svg, path)


if __name__ == "__main__":
    main()
