"""The figures of camels_squad.py: answers pooled over seeds, and methods compared with intervals."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import online_common as common

Row = dict[str, Any]
PUBLISHED, PLACES, MINE = "CaMeLS as published", "places alone", "CaMeLS from places"


def pooled(told: Sequence[Sequence[Row]], label: str, rate: float) -> Row:
    """Return the answers of all seeds, as of one row."""
    rows = [row for some in told for row in some if (row["way"], row["rate"]) == (label, rate)]
    kl = sum(row["kl"] for row in rows) / len(rows)
    return {"kl": kl, "rate": rate, "answers": [answer for row in rows for answer in row["answers"]]}


def at_kl(curves: Sequence[Sequence[Row]], label: str, kl: float) -> Row | None:
    """Return a method's answers between the two rates on both sides of a KL, straight lines between them.

    None where it has no rate, known for every seed, on one of the sides.
    """
    rates = set.intersection(*({row["rate"] for row in some if row["way"] == label} for some in curves))
    curve = sorted((pooled(curves, label, rate) for rate in rates), key=lambda row: row["kl"])
    for low, high in pairwise(curve):
        if low["kl"] <= kl <= high["kl"]:
            share = (kl - low["kl"]) / (high["kl"] - low["kl"])
            both = zip(low["answers"], high["answers"], strict=True)
            answers = [(one[0], (1 - share) * one[1] + share * two[1], one[2]) for one, two in both]
            return {"kl": kl, "rate": (1 - share) * low["rate"] + share * high["rate"], "answers": answers}
    return None


def helped(row: Row) -> bool:
    """Whether the answers are likelier than without an update."""
    return row["nll"] is not None and bool(row["nll"] < row["base"]["nll"])


def compared(title: str, told: Sequence[Sequence[Row]], best: Mapping[str, float]) -> list[Row]:
    """Compare CaMeLS with each method at that one's best rate, and at the KL that CaMeLS has at its own."""
    of = {label: pooled(told, label, rate) for label, rate in best.items()}
    useful = [[row for row in some if helped(row)] for some in told]
    out = []
    for mine in (MINE, PUBLISHED):
        if mine in of:
            out += compare(f"{title}: each method at its best rate", mine, of)
            same = {label: at_kl(useful, label, of[mine]["kl"]) for label in best if label != mine}
            there = {label: row for label, row in same.items() if row}
            out += compare(f"{title}: at the KL of {mine}", mine, {mine: of[mine], **there})
    return out


def compare(title: str, mine: str, of: Mapping[str, Row]) -> list[Row]:
    """Print and return how much more NLL a token a method has than each other one, with its interval."""
    print(f"\n{title}")
    out = []
    for label, row in of.items():
        if label == mine:
            continue
        gap, interval = common.difference(of[mine], row)
        told = "[{:+.4f}, {:+.4f}]".format(*interval) if interval else ""
        where = f"rate {row['rate']:g}, KL {row['kl']:.3f}"
        print(f"{mine} less {label} ({where}): NLL {gap:+.4f} {told} a token")
        figures = {"rate": row["rate"], "kl": row["kl"], "nll": gap, "ci": interval and [*interval]}
        out.append({"compared": title, "way": mine, "less": label, **figures})
    return out
