"""BM25 over texts whose words are known as hashes: which share the rarest words with a query.

Robertson & Zaragoza (2009), "The Probabilistic Relevance Framework: BM25 and Beyond", with the
customary constants. Every text is scored, so whoever searches may mask any of them and loses nothing.
"""

import numpy as np
from numpy.typing import NDArray

from uptake.text.overlap import Hashes

_SATURATION, _LENGTH = 1.2, 0.75  # k1 and b
_QUERY_WORDS = 32  # the rarest words of a query decide; each more costs as much as all texts that have it


class Bm25:
    """Texts as their words, one text's after another's; `lengths` says how many each has.

    One without words is no text.
    """

    def __init__(self, words: Hashes, lengths: NDArray[np.integer]) -> None:
        self.count = len(lengths)
        owners = np.repeat(np.arange(self.count, dtype=np.int32), lengths)
        # Owners ascend already, so a stable order leaves them ascending within each word.
        order = np.argsort(words, kind="stable")
        words, owners = words[order], owners[order]
        new_word = np.ones(len(words), bool)
        new_word[1:] = words[1:] != words[:-1]
        new = new_word.copy()
        new[1:] |= owners[1:] != owners[:-1]
        at = np.flatnonzero(new)
        often = np.diff(np.append(at, len(words)))
        starts = np.flatnonzero(new_word[at])
        self._words = words[at[starts]]
        self._starts = np.append(starts, len(at))
        self._owners = owners[at]
        spread = np.diff(self._starts)  # in how many texts each word stands
        texts = np.count_nonzero(lengths)
        rarity = np.log1p((texts - spread + 0.5) / (spread + 0.5))
        relative = np.asarray(lengths, np.float64) * (texts / max(len(words), 1))
        damping = _SATURATION * (1 - _LENGTH + _LENGTH * relative[self._owners])
        weights = np.repeat(rarity, spread) * often * (_SATURATION + 1) / (often + damping)
        self._weights = weights.astype(np.float32)

    def scores(self, words: Hashes) -> NDArray[np.float64]:
        """Return each text's score for a query of these words, 0 where it shares none: [texts].

        A word counts once; of many, the 32 that fewest texts have.
        """
        queried = np.unique(words)
        places = np.minimum(np.searchsorted(self._words, queried), max(len(self._words) - 1, 0))
        known = places[self._words[places] == queried] if len(self._words) else places[:0]
        spread = self._starts[known + 1] - self._starts[known]
        chosen = known[np.lexsort((known, spread))[:_QUERY_WORDS]]
        stretches = [slice(self._starts[word], self._starts[word + 1]) for word in chosen]
        if not stretches:
            return np.zeros(self.count)
        owners = np.concatenate([self._owners[each] for each in stretches])
        weights = np.concatenate([self._weights[each] for each in stretches])
        return np.bincount(owners, weights, minlength=self.count).astype(np.float64, copy=False)
