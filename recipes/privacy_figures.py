"""What the trainings of recipes/privacy.py show: gains, what privacy keeps of them, and the attack."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from privacy_data import Data
from privacy_runs import OPENLY, Run

from uptake.report.metrics import gain, gain_interval, ratio_interval


def advantage(ratios: NDArray[np.float64], members: NDArray[np.bool_]) -> float:
    """Return the attack's true less its false positive rate, the likelier half of all called members.

    The threshold is fixed beforehand: half of the planted documents are in the stream.
    """
    called = np.argsort(np.argsort(-ratios, kind="stable"), kind="stable") < members.sum()
    return float(called[members].mean() - called[~members].mean())


def chance(members: NDArray[np.bool_], draws: int = 10_000, seeds: int = 1) -> tuple[float, float]:
    """Return the 95 % interval of the advantage of guessing, the mean of `seeds` times, by permutation."""
    generator = np.random.default_rng(0)
    found = [
        np.mean([advantage(generator.random(len(members)), members) for _ in range(seeds)])
        for _ in range(draws)
    ]
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def best_of(runs: Sequence[Run], rows: Mapping[str, Any]) -> list[Run]:
    """Return the runs of those settings that are best on validation text, the mean over their seeds."""
    alike: dict[Run, list[Run]] = {}
    for run in runs:
        alike.setdefault(replace(run, seed=0), []).append(run)
    return max(alike.values(), key=lambda some: np.mean([sum(rows[run.key]["valid"]) for run in some]))


def figures(
    data: Data, rows: Mapping[str, Any], base: Mapping[str, Any], runs: Sequence[Run]
) -> dict[str, Any]:
    """Return each arm's gain on test text, its share of the gains without privacy, and the attack.

    Of several settings of an arm the one that is best on validation text is told. Several seeds of it are
    one figure: the mean of their bits, and of the attack's advantages.
    """
    there = {
        arm: best_of([run for run in runs if run.arm == arm and run.key in rows], rows)
        for arm in dict.fromkeys(run.arm for run in runs if run.key in rows)
    }
    groups = [document.group for document in data.held_out["test"]]
    before = -np.array(base["test"])

    def bits(arm: str, part: str) -> NDArray[np.float64]:
        return -np.mean([rows[run.key][part] for run in there[arm]], axis=0)

    arms: dict[str, Any] = {}
    for arm, some in there.items():
        found = [rows[run.key] for run in some]
        after = bits(arm, "test")
        attacks = [
            advantage(np.array(row["planted"]) - np.array(base["planted"]), np.array(row["members"]))
            for row in found
        ]
        arms[arm] = {
            "seeds": len(some),
            "tried": {
                run.key: gain(-np.array(rows[run.key]["valid"]), -np.array(base["valid"]))
                for run in runs
                if run.arm == arm and run.key in rows
            },
            "steps": some[0].steps,
            "batch": some[0].batch,
            "rate": some[0].rate,
            "documents": some[0].documents or len(data.stream),
            "layers": some[0].layers,
            "rank": some[0].rank,
            "parts": [*some[0].parts],
            "gain_valid": gain(bits(arm, "valid"), -np.array(base["valid"])),
            "gain": gain(after, before),
            "ci": gain_interval(after, before, groups),
            "attack": float(np.mean(attacks)),
            "chance": chance(np.array(found[0]["members"]), seeds=len(some)),
            "cpu_seconds": float(np.mean([row["cpu_seconds"] for row in found])),
            **{name: found[0][name] for name in ("claim", "said", "tokens_trained", "parameters")},
            **{name: found[0][name] for name in ("lengths", "best_step") if name in found[0]},
        }
        for name, other in (("share", "none"), ("share_of_openly", OPENLY)):
            if arm not in (OPENLY, other) and other in there:
                saved = before - bits(other, "test")
                arms[arm][name] = float((before - after).sum() / saved.sum())
                arms[arm][f"{name}_ci"] = ratio_interval(before - after, saved, groups)
    return {"documents": len(data.stream), "planted": len(data.planted), "test": len(groups), "arms": arms}
