"""All passages of a store with their vectors as they were last encoded: the index that training searches.

It is held in memory and searched exactly. The store is read only: what is encoded anew is here alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uptake.retrievers.candidates import answers
from uptake.store.datastore import Datastore
from uptake.tasks.questions import Question

_DEPTH = 128  # at least so many candidates have both scores, as in a store that is searched by their sum


@dataclass(frozen=True)
class Pool:
    """What was retrieved for a question, best first; `gold` marks what answers it."""

    places: NDArray[np.int64]  # [passages]
    words: NDArray[np.float32]  # BM25 scores, zeros where words are not asked
    gold: NDArray[np.bool_]


class Corpus:
    """Passages in the order of the store; `vectors` is [passages, dimensions], at first the store's own."""

    def __init__(self, store: Datastore) -> None:
        self._store = store
        self.contents = store.contents  # names what was in the store when it was read
        self.ids = store.ids
        self.passages = store.passages(self.ids)
        self.texts = [passage.text for passage in self.passages]
        self.vectors: NDArray[np.floating] = store.vectors(self.ids)
        self._place = {key: place for place, key in enumerate(self.ids)}

    def pools(
        self,
        questions: Sequence[Question],
        vectors: NDArray[np.floating],
        count: int,
        weight: float,
        words: bool,
        with_right: bool,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Pool]:
        """Return for each question the `count` best passages by `weight` times the vectors' score.

        With `words` the BM25 score is added, as a store does that is searched by the `sum`. `with_right` adds
        the passages of the question's document, where they are not among them. `vectors` are the
        questions', [questions, dimensions]. Of equal scores the smaller id comes first.
        """
        right = self._store.passages_of([q.document for q in questions]) if with_right else {}
        found = []
        for place, question in enumerate(questions):
            near = self._best(vectors[place] @ self.vectors.T, max(count, _DEPTH) if words else count)
            if words:
                near = self._summed(question.text, near, vectors[place], weight)[:count]
            more = [self._place[key] for key in right.get(question.document, ())]
            found.append(self.pool(question, [*near, *(each for each in more if each not in near)], words))
            progress(place + 1, len(questions))
        return found

    def pool(self, question: Question, places: Sequence[int], words: bool) -> Pool:
        """Return the pool of these passages."""
        ids = [self.ids[place] for place in places]
        found = self._store.word_scores(question.text, ids) if words and ids else np.zeros(len(ids))
        gold = np.array([answers(question, self.passages[place]) for place in places], bool)
        return Pool(np.array(places, np.int64), np.asarray(found, np.float32), gold)

    def _best(self, scores: NDArray[np.floating], count: int) -> list[int]:
        if count < len(scores):
            least = np.partition(scores, len(scores) - count)[len(scores) - count]
            places = np.flatnonzero(scores >= least)
        else:
            places = np.arange(len(scores))
        return sorted(places.tolist(), key=lambda place: (-scores[place], self.ids[place]))[:count]

    def _summed(self, text: str, near: list[int], vector: NDArray[np.floating], weight: float) -> list[int]:
        ranked = self._store.searched("lexical").search([text], len(near))[0]
        places = list(dict.fromkeys([*near, *(self._place[key] for key in ranked.ids.tolist())]))
        words = self._store.word_scores(text, [self.ids[place] for place in places])
        total = weight * (self.vectors[places] @ vector) + words
        order = sorted(range(len(places)), key=lambda n: (-total[n], self.ids[places[n]]))
        return [places[n] for n in order]
