"""What the rows of camels.py show: answers at equal KL, what a long stream remembers, and plots of both."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from uptake.report import metrics
from uptake.report.page import chart, write_chart

Row = Mapping[str, Any]
Rights = list[float]  # of each question, how much of it is answered right
UNIFORM, CAMELS = "uniform", "CaMeLS"
DRAWN = (UNIFORM, "TF-IDF", "CaMeLS, untrained", CAMELS, "oracle")


def at_kl(rows: Sequence[Row], level: float) -> Rights | None:
    """Return the answers of one method at a KL, between the two rates on either side of it.

    The curve begins with no update, at a KL of 0. None where no rate goes as far.
    """
    curve: list[tuple[float, Rights]] = [(0.0, [before for before, _ in rows[0]["right"]])]
    curve += [(row["kl"], [after for _, after in row["right"]]) for row in by_rate(rows)]
    for (low, one), (high, two) in pairwise(curve):
        if low <= level <= high:
            share = (level - low) / (high - low) if high > low else 1.0
            return [(1 - share) * a + share * b for a, b in zip(one, two, strict=True)]
    return None


def by_rate(rows: Sequence[Row]) -> list[Row]:
    return sorted((row for row in rows if row["kl"] is not None), key=lambda row: float(row["rate"]))


def equal_kl(rows: Sequence[Row], levels: Sequence[float]) -> list[dict[str, Any]]:
    """Return the share that each method answers at each KL, over all seeds, and its ratio to uniform's.

    The last level is none of `levels`: for each seed it is the KL at which uniform weights answer most.
    Intervals are a paired bootstrap by question.
    """
    methods = list(dict.fromkeys(row["way"] for row in rows))
    seeds = sorted({row["seed"] for row in rows})
    split = {
        (label, seed): [r for r in rows if (r["way"], r["seed"]) == (label, seed)]
        for label in methods
        for seed in seeds
    }
    peaks = {seed: max(split[UNIFORM, seed], key=lambda row: row["exact"])["kl"] for seed in seeds}
    out = []
    for level in [*levels, None]:
        where = {seed: peaks[seed] if level is None else level for seed in seeds}
        plain = {seed: at_kl(split[UNIFORM, seed], where[seed]) for seed in seeds}
        for label in methods:
            some = {
                seed: at_kl(split[label, seed], where[seed]) if split[label, seed] else None for seed in seeds
            }
            both = [(some[s], plain[s], s) for s in seeds if some[s] is not None and plain[s] is not None]
            if not both:
                continue
            above = [value for mine, _, _ in both for value in mine or ()]
            below = [value for _, other, _ in both for value in other or ()]
            asked = [f"{seed} {place}" for mine, _, seed in both for place in range(len(mine or ()))]
            interval = metrics.ratio_interval(above, below, asked)
            out.append(
                {
                    "kl": fmean(where[seed] for _, _, seed in both),
                    "uniform's best": level is None,
                    "way": label,
                    "seeds": [round(fmean(mine or ()), 4) for mine, _, _ in both],
                    "exact": round(fmean(above), 4),
                    "times uniform": round(sum(above) / sum(below), 3) if sum(below) else None,
                    "interval": interval and [round(end, 3) for end in interval],
                }
            )
    return out


def kept(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what each method answers along a stream, and of that what the first stretch of it told."""
    return [
        {
            "way": row["way"],
            "rate": row["rate"],
            "seed": row["seed"],
            "taken": at["taken"],
            "exact": at["exact"],
            "kl": at["kl"],
            "first": at["bands"][0]["exact"],
            "newest": at["bands"][-1]["exact"],
        }
        for row in rows
        for at in row["at"]
    ]


def light(row: Row) -> dict[str, Any]:
    """Return what is written down of a row."""
    fields = ("stream", "way", "rate", "seed", "exact", "f1", "nll", "kl", "adapt_seconds")
    return {"before": row["base"]["exact"], **{field: row[field] for field in fields}}


def show(title: str, found: Sequence[Row]) -> None:
    """Print what is answered at equal KL."""
    table = Table("KL", "method", "exact %", "of each seed", "times uniform", "95 %", title=title)
    for row in found:
        level = f"{row['kl']:.2f}" + (" (uniform's best)" if row["uniform's best"] else "")
        seeds = ", ".join(f"{100 * share:.1f}" for share in row["seeds"])
        interval = row["interval"] and "{:.2f} to {:.2f}".format(*row["interval"])
        times = "" if row["times uniform"] is None else f"{row['times uniform']:.2f}"
        table.add_row(level, row["way"], f"{100 * row['exact']:.1f}", seeds, times, interval)
    Console().print(table)


def show_kept(found: Sequence[Row]) -> None:
    """Print what is answered along a stream."""
    table = Table("documents", "method", "rate", "exact %", "KL", "of the first %", "of the newest %")
    for row in sorted(found, key=lambda row: int(row["taken"])):
        shares = (f"{100 * row[name]:.1f}" for name in ("first", "newest"))
        exact = f"{100 * row['exact']:.1f}"
        table.add_row(str(row["taken"]), row["way"], f"{row['rate']:.3g}", exact, f"{row['kl']:.3f}", *shares)
    Console().print(table)


def plot_curves(rows: Sequence[Row], path: Path) -> None:
    """Draw the share answered against the KL, a mark a rate, means over seeds."""
    lines = []
    for colour, label in enumerate(DRAWN):
        marks = []
        for rate in sorted({row["rate"] for row in rows if row["way"] == label}):
            some = [row for row in rows if row["way"] == label and row["rate"] == rate and row["kl"]]
            if some and (kl := fmean(row["kl"] for row in some)) < 5:
                exact = 100 * fmean(row["exact"] for row in some)
                marks.append(
                    chart.Mark(kl, exact, title=f"{label}, rate {rate:.3g}: {exact:.1f} % at {kl:.2f}")
                )
        if marks:
            # The frame leaves room for short names.
            lines.append(chart.Series(label.removeprefix("CaMeLS, "), colour + 1, tuple(marks)))
    marks = [mark for line in lines for mark in line.marks]
    before = 100 * fmean(row["base"]["exact"] for row in rows)
    svg = chart.draw(
        "lines",
        lines,
        chart.logarithmic("KL on unrelated text, nats a token", [mark.x for mark in marks]),
        chart.linear("questions answered, %", [0.0, *(mark.y for mark in marks)]),
        summary="Questions answered against KL on unrelated text.",
        reference=(before, "no update"),
    )
    write_chart(svg, path)


def plot_kept(found: Sequence[Row], folder: Path) -> None:
    """Draw what is answered along a stream, in all and of the first stretch."""
    lines = []
    for label in (UNIFORM, CAMELS):
        for colour, (field, name) in enumerate((("exact", label), ("first", f"{label}, first"))):
            places = sorted({row["taken"] for row in found if row["way"] == label})
            marks = [
                chart.Mark(
                    taken,
                    100 * fmean(r[field] for r in found if (r["way"], r["taken"]) == (label, taken)),
                )
                for taken in places
            ]
            if marks:
                lines.append(chart.Series(name, (1 if label == UNIFORM else 3) + colour, tuple(marks)))
    marks = [mark for line in lines for mark in line.marks]
    svg = chart.draw(
        "lines",
        lines,
        chart.logarithmic("documents read", [mark.x for mark in marks]),
        chart.linear("questions answered, %", [0.0, *(mark.y for mark in marks)]),
        summary="Questions answered along a stream.",
    )
    write_chart(svg, folder / "camels-kept.svg")
