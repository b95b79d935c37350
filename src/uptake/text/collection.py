"""Many passages compared with one document at once: which of them the leak filter has to judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from uptake.preparation import preparing
from uptake.text.hashes import Hashes, rolled
from uptake.text.letters import RUN, SHORT_RUN
from uptake.text.overlap import GRAM, SHINGLE, LeakFilter, Overlap, Shingles


@dataclass(frozen=True)
class Collected:
    """What is kept of passages to compare them: words and runs of letters, one passage's after another's.

    `words` and `runs` are as `Shingles` gives them; `word_counts` and `run_counts` say how many each passage
    has, `unspaced` how long its runs are and `sampled` whether they are a sample.
    """

    words: Hashes
    word_counts: NDArray[np.integer]
    runs: Hashes
    run_counts: NDArray[np.integer]
    unspaced: NDArray[np.bool_]
    sampled: NDArray[np.bool_]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Collected":
        """Return what is kept of these texts."""
        each = [Shingles(text) for text in texts]
        words, runs = [one.words for one in each], [one.runs for one in each]
        none = np.empty(0, np.uint64)
        return cls(
            np.concatenate([none, *words]),
            np.array([len(one) for one in words], np.int64),
            np.concatenate([none, *runs]),
            np.array([len(one) for one in runs], np.int64),
            np.array([one.unspaced for one in each], bool),
            np.array([one.sampled for one in each], bool),
        )


class Collection:
    """Passages ready to be compared with one document after another."""

    def __init__(self, collected: Collected) -> None:
        self._kept = collected
        self._count = len(collected.word_counts)

    def suspects(self, document: Overlap, leak: LeakFilter) -> NDArray[np.bool_]:
        """Return which passages `leak` might withhold for what they share with the document.

        All that it would withhold are among them, and few besides: whoever needs to know judges those.
        """
        if not leak.enabled:
            return np.zeros(self._count, bool)
        return self._by_words(document, leak) | self._by_letters(document, leak)

    def _by_words(self, document: Overlap, leak: LeakFilter) -> NDArray[np.bool_]:
        # The rules for short texts and for pieces that stand in the document letter for letter are left
        # to the judge: every passage that either could concern is a suspect.
        found = _Counts(self._grams[GRAM], document.shingles.grams(GRAM), self._count)
        missed = found.own - found.shared
        suspects = (self._kept.word_counts < GRAM) | (missed <= 2)
        suspects |= found.shared >= leak.containment * found.own
        if found.whole:
            suspects |= found.shared >= leak.containment * found.whole
        near = _Counts(self._grams[SHINGLE], document.shingles.grams(SHINGLE), self._count)
        return suspects | (near.shared >= leak.jaccard * (near.own + near.whole - near.shared))

    def _by_letters(self, document: Overlap, leak: LeakFilter) -> NDArray[np.bool_]:
        suspects = np.zeros(self._count, bool)
        letters = document.shingles.letters
        for (unspaced, sampled), owned in self._runs.items():
            run = SHORT_RUN if unspaced else RUN
            found = _Counts(owned, letters.sample(run) if sampled else letters.runs(run), self._count)
            least = leak.of_letters(unspaced)
            suspects |= found.shared >= np.maximum(least * found.own, 1)
            if letters.worth >= 2 * RUN:
                suspects |= found.shared >= max(least * found.whole, 1)
        return suspects

    @cached_property
    @preparing()
    def _grams(self) -> dict[int, "_Owned"]:
        """The n-grams of each length, sorted, and whose each is; none twice for one passage."""
        counts = self._kept.word_counts
        owners = np.repeat(np.arange(self._count), counts)
        ends = np.repeat(np.cumsum(counts), counts)
        made = {}
        for length in (GRAM, SHINGLE):
            grams = rolled(self._kept.words, length)
            within = np.arange(len(grams)) + length <= ends[: len(grams)]
            grams, whose = grams[within], owners[: len(grams)][within]
            order = np.lexsort((whose, grams))
            grams, whose = grams[order], whose[order]
            first = np.ones(len(grams), bool)
            first[1:] = (grams[1:] != grams[:-1]) | (whose[1:] != whose[:-1])
            made[length] = (grams[first], whose[first])
        return made

    @cached_property
    @preparing()
    def _runs(self) -> dict[tuple[bool, bool], "_Owned"]:
        """The runs, and whose each is, of every kind of passages: (unspaced, sampled)."""
        owners = np.repeat(np.arange(self._count), self._kept.run_counts)
        made = {}
        for unspaced, sampled in product((False, True), (False, True)):
            some = ((self._kept.unspaced == unspaced) & (self._kept.sampled == sampled))[owners]
            if some.any():
                runs, whose = self._kept.runs[some], owners[some]
                order = np.argsort(runs, kind="stable")
                made[unspaced, sampled] = (runs[order], whose[order])
        return made


_Owned = tuple[Hashes, NDArray[np.int64]]


class _Counts:
    """How many hashes each passage has (`own`), the document has (`whole`), and they share."""

    def __init__(self, owned: _Owned, document: Hashes, passages: int) -> None:
        hashes, whose = owned
        first, last = (np.searchsorted(hashes, document, side) for side in ("left", "right"))
        matched = np.flatnonzero(_between(first, last, len(hashes)))
        self.shared = np.bincount(whose[matched], minlength=passages)
        self.own = np.bincount(whose, minlength=passages)
        self.whole = len(document)


def _between(first: NDArray[np.intp], last: NDArray[np.intp], count: int) -> NDArray[np.bool_]:
    """Mark the places from each `first` up to its `last`; the stretches do not overlap."""
    edges = np.zeros(count + 1, np.int64)
    np.add.at(edges, first, 1)
    np.add.at(edges, last, -1)
    return np.cumsum(edges[:-1]) > 0
