"""What camels_squad.py tells of its rows: answers pooled over seeds, and ways compared with intervals."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import online_common as common

Row = dict[str, Any]
PUBLISHED, PLACES, MINE = "CaMeLS as published", "places alone", "CaMeLS from places"


def pooled(told: Sequence[Sequence[Row]], way: str, rate: float) -> Row:
    """Return the answers of all seeds, as of one row."""
    rows = [row for some in told for row in some if (row["way"], row["rate"]) == (way, rate)]
    kl = sum(row["kl"] for row in rows) / len(rows)
    return {"kl": kl, "rate": rate, "answers": [answer for row in rows for answer in row["answers"]]}


def at_kl(curves: Sequence[Sequence[Row]], way: str, kl: float) -> Row | None:
    """Return a way's answers between the two rates on both sides of a KL, straight lines between them.

    None where it has no rate, known for every seed, on one of the sides.
    """
    rates = set.intersection(*({row["rate"] for row in some if row["way"] == way} for some in curves))
    curve = sorted((pooled(curves, way, rate) for rate in rates), key=lambda row: row["kl"])
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
    """Return how CaMeLS compares with each way at its best rate, and at the KL that CaMeLS has at its own."""
    of = {way: pooled(told, way, rate) for way, rate in best.items()}
    useful = [[row for row in some if helped(row)] for some in told]
    out = []
    for mine in (MINE, PUBLISHED):
        if mine in of:
            out += compare(f"{title}: each way at its best rate", mine, of)
            same = {way: at_kl(useful, way, of[mine]["kl"]) for way in best if way != mine}
            there = {way: row for way, row in same.items() if row}
            out += compare(f"{title}: at the KL of {mine}", mine, {mine: of[mine], **there})
    return out


def compare(title: str, mine: str, of: Mapping[str, Row]) -> list[Row]:
    """Print and return how much more NLL a token a way has than each other one, with its interval."""
    print(f"\n{title}")
    out = []
    for way, row in of.items():
        if way == mine:
            continue
        gap, interval = common.difference(of[mine], row)
        told = "[{:+.4f}, {:+.4f}]".format(*interval) if interval else ""
        print(f"{mine} less {way} (rate {row['rate']:g}, KL {row['kl']:.3f}): NLL {gap:+.4f} {told} a token")
        figures = {"rate": row["rate"], "kl": row["kl"], "nll": gap, "ci": interval and [*interval]}
        out.append({"compared": title, "way": mine, "less": way, **figures})
    return out
