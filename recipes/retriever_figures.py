"""Figures of retrievers: ranks, recall, what was said, and paired differences by a bootstrap."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uptake.tasks import answers
from uptake.tasks.answers import holds
from uptake.tasks.questions import Question

RESAMPLES = 10_000
Values = NDArray[np.float64]


def ranks(scores: NDArray[np.floating], gold: Sequence[int]) -> NDArray[np.int64]:
    """Return the place of each question's right passage, from 1; `scores` is [questions, all passages].

    Passages of equal score stand before it: nobody gains by a tie.
    """
    own = scores[np.arange(len(gold)), list(gold)]
    return (scores >= own[:, None]).sum(1)


def retrieval(places: NDArray[np.int64]) -> dict[str, Values]:
    """Return what is measured of each question: recall at 1, 5 and 20, and the reciprocal rank."""
    return {**{f"recall@{k}": (places <= k).astype(float) for k in (1, 5, 20)}, "mrr": 1.0 / places}


def marks(said: Sequence[str], questions: Sequence[Question]) -> dict[str, Values]:
    """Return the marks of each answer: exact match, F1, and whether it holds a right answer."""
    pairs = list(zip(said, questions, strict=True))
    return {
        "exact": np.array([answers.exact(text, one.answers) for text, one in pairs]),
        "f1": np.array([answers.f1(text, one.answers) for text, one in pairs]),
        "contains": np.array([float(holds(text, one.answers)) for text, one in pairs]),
    }


def interval(values: Values, groups: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Return a mean over questions with its 95 % interval: whole groups are resampled."""
    _, owner = np.unique(np.array(groups), return_inverse=True)
    sums, counts = np.bincount(owner, values), np.bincount(owner)
    draws = _draws(len(sums), seed)
    means = (draws @ sums) / (draws @ counts)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": round(float(values.mean()), 4), "ci": [round(float(low), 4), round(float(high), 4)]}


@lru_cache(maxsize=4)
def _draws(groups: int, seed: int) -> NDArray[np.int64]:
    """Return how often each group is drawn in each resample: the same for all that is measured of them."""
    return np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), RESAMPLES)


def figures(
    measured: Mapping[str, Sequence[Mapping[str, Values]]],
    groups: Sequence[str],
    pairs: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Return each system's means, and the differences of `pairs`, all with intervals.

    `measured[system]` has one set of values a seed; a question's value is its mean over the seeds. Of no
    question there is nothing to tell.
    """
    if not groups:
        return {}
    mean = {
        system: {name: np.mean([one[name] for one in seeds], axis=0) for name in seeds[0]}
        for system, seeds in measured.items()
    }
    by_seed = {
        system: {name: [round(float(one[name].mean()), 4) for one in seeds] for name in seeds[0]}
        for system, seeds in measured.items()
        if len(seeds) > 1
    }
    return {
        "systems": {
            system: {name: interval(values, groups) for name, values in found.items()}
            for system, found in mean.items()
        },
        "seeds": by_seed,
        "differences": {
            f"{one} - {other}": {
                name: interval(mean[one][name] - mean[other][name], groups)
                for name in mean[one]
                if name in mean[other]
            }
            for one, other in pairs
            if one in mean and other in mean
        },
    }
