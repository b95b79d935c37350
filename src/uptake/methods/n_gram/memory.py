"""What followed the last tokens of a text wherever a memory holds them, for contexts of every length.

Counts of an n-gram are smoothed with the estimate of the (n-1)-gram, and those at the bottom with a language
model's: p_n(w) = (c_n(w) + s_n p_{n-1}(w)) / (C_n + s_n), a hierarchical Dirichlet model (MacKay & Peto
1995). That is linear in the counts: each place of the memory counts by the length of its match alone. This
file knows no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Smoothing:
    """How counts and model are weighed: s_n is a strength times decay ** n, for n from 1 to `longest`.

    A strength is how many counts of a unigram the model is worth. There may be several, each for itself.
    """

    longest: int = 12
    strengths: tuple[float, ...] = (10.0, 100.0, 1000.0)
    decay: float = 0.7

    def __post_init__(self) -> None:
        if not 1 <= self.longest <= 1000:
            raise BadInput(f"longest {self.longest}: use 1 to 1000 tokens")
        if not self.strengths or not all(0 < each < float("inf") for each in self.strengths):
            raise BadInput(f"strengths {self.strengths}: give one or more, above 0")
        if not 0 < self.decay <= 1:
            raise BadInput(f"decay {self.decay}: use a number above 0, and at most 1")

    def by_length(self, counts: Ints) -> tuple[Floats, Floats]:
        """Return what a match of each length counts, [strengths, longest], and the model's own share.

        `counts` [longest] says how many places match 1, 2, ... tokens or more; the share is [strengths].
        """
        lengths = np.arange(1, self.longest + 1)
        strength = np.array(self.strengths)[:, None] * self.decay**lengths
        kept = strength / (counts + strength)
        # What is left of an n-gram's estimate once all longer ones have been mixed with it.
        above = np.cumprod(kept[:, ::-1], 1)[:, ::-1]
        left = np.concatenate([above[:, 1:], np.ones((len(above), 1))], 1)
        return np.cumsum(left / (counts + strength), 1), above[:, 0]


@dataclass(frozen=True)
class Matches:
    """Places of the memory where the last token stands, ascending, and how many tokens match there."""

    places: Ints
    lengths: Ints


NO_MATCHES = Matches(np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True)
class Continuations:
    """What may come next: each token once, its probability under each strength, and the model's share."""

    tokens: Ints  # [tokens]
    mass: Floats  # [strengths, tokens]
    rest: Floats  # [strengths]; with the mass of all tokens it adds up to 1

    def of(self, token: int) -> Floats:
        """Return what the memory gives one token under each strength."""
        place = int(np.searchsorted(self.tokens, token))
        there = place < len(self.tokens) and self.tokens[place] == token
        return self.mass[:, place] if there else np.zeros(len(self.mass))


class NGramMemory:
    """Texts as tokens, one after another; text i has `sizes[i]`: so many read alone, then so many to predict.

    A step costs what the last token's places are many, however large the memory is.
    """

    def __init__(self, tokens: Ints, sizes: Sequence[tuple[int, int]]) -> None:
        learnt, self._begins = np.zeros(len(tokens) + 1, bool), np.zeros(len(tokens) + 1, bool)
        place = 0
        for alone, predicted in sizes:
            self._begins[place] = True
            learnt[place + alone : place + alone + predicted] = True
            place += alone + predicted
        self._begins[place:] = True
        # What follows a place, where that is to be predicted and of the same text.
        self._follows = np.where(learnt[1:] & ~self._begins[1:], np.append(tokens[1:], -1), -1)
        self._order = np.argsort(tokens, kind="stable")
        self._sorted = tokens[self._order]

    def after(self, matches: Matches, token: int, longest: int) -> Matches:
        """Return where the text stands once it has gone on with this token."""
        start, stop = np.searchsorted(self._sorted, [token, token + 1])
        places = self._order[start:stop]
        if not len(places) or not len(matches.places):
            return Matches(places, np.ones(len(places), np.int64))
        before = np.minimum(np.searchsorted(matches.places, places - 1), len(matches.places) - 1)
        goes_on = (matches.places[before] == places - 1) & ~self._begins[places]
        return Matches(places, np.minimum(1 + np.where(goes_on, matches.lengths[before], 0), longest))

    def along(self, ids: Sequence[int], longest: int) -> Matches:
        """Return where a text of these tokens stands."""
        matches = NO_MATCHES
        for token in ids[-longest:]:
            matches = self.after(matches, token, longest)
        return matches

    def continuations(self, matches: Matches, smoothing: Smoothing) -> Continuations:
        """Return what came next at these places."""
        follows = self._follows[matches.places]
        known = follows >= 0
        lengths = matches.lengths[known]
        exactly = np.bincount(lengths, minlength=smoothing.longest + 1)[1:]
        weights, rest = smoothing.by_length(exactly[::-1].cumsum()[::-1])
        tokens, which = np.unique(follows[known], return_inverse=True)
        each = [np.bincount(which, own[lengths - 1], len(tokens)) for own in weights]
        return Continuations(tokens, np.stack(each), rest)
