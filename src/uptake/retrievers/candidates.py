"""Candidate passages of questions, as training reads them: what words and what vectors find in a store.

The store is read only. A question's own document is evidence here and no leak, so no filter stands between.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uptake.errors import BadInput
from uptake.retrievers.attention import AttentionTable
from uptake.retrievers.table import Entry, ReaderTable
from uptake.retrievers.training import Asked
from uptake.store.datastore import Datastore
from uptake.tasks.answers import holds
from uptake.tasks.questions import Question
from uptake.text.types import Passage


@dataclass(frozen=True)
class Candidates:
    """A question with its passages, the best by words first, then those that vectors alone found."""

    question: Question
    passages: tuple[Passage, ...]
    words: np.ndarray  # BM25 scores, [passages]
    vectors: np.ndarray  # [passages, dimensions]
    vector: np.ndarray  # of the question, as the store's own encoder gives it

    @property
    def gold(self) -> np.ndarray:
        """Which passages answer it: those of its document; if it names none, those with an answer."""
        return np.array([answers(self.question, passage) for passage in self.passages], bool)

    def entries(self) -> list[Entry]:
        """Return what a reader's table has to know of it: its first answer after each passage."""
        return [
            Entry(self.question.text, passage.text, self.question.answers[0]) for passage in self.passages
        ]

    def asked(self, table: ReaderTable | None = None, attention: AttentionTable | None = None) -> Asked:
        """Return it as training takes it, with what filled tables say of it."""
        texts = [passage.text for passage in self.passages]
        first = self.question.answers[0]
        tokens = None if table is None else table.tokens(self.question.text, texts, first)
        weighed = None if attention is None else attention.of(*self.in_a_row)
        return Asked(self.vector, self.vectors, self.words, self.gold, tokens, weighed)

    @property
    def in_a_row(self) -> tuple[str, list[str], str]:
        """The question, all passages and the first answer: what a reader's attention is measured on."""
        texts = [passage.text for passage in self.passages]
        return self.question.text, texts, self.question.answers[0]


def answers(question: Question, passage: Passage) -> bool:
    """Whether a passage is of the question's document; if it names none, whether it holds an answer."""
    if question.document:
        return passage.document == question.document
    return holds(passage.text, question.answers)


def candidates(
    store: Datastore, questions: Sequence[Question], each: int = 10, with_right: bool = False
) -> list[Candidates]:
    """Return for each question the `each` best passages by words and the `each` best by vectors, none twice.

    `with_right` adds the passages of the question's document that neither found: for supervised tuning, where
    the right passage is known; a loss that learns from a reader is not told. Raises BadInput for a store that
    has not both words and vectors, or where nothing is found for any question.
    """
    texts = [question.text for question in questions]
    words = store.searched("lexical").search(texts, each)
    dense = store.searched("dense")
    near = dense.search(texts, each)
    vectors = dense.query_vectors(texts)
    right = store.passages_of([q.document for q in questions]) if with_right else {}
    found = []
    for place, question in enumerate(questions):
        ids = list(dict.fromkeys([*words[place].ids.tolist(), *near[place].ids.tolist()]))
        ids += [key for key in right.get(question.document, ()) if key not in ids]
        found.append(
            Candidates(
                question,
                tuple(store.passages(ids)),
                store.word_scores(question.text, ids),
                store.vectors(ids),
                vectors[place],
            )
        )
    if not any(one.passages for one in found):
        raise BadInput(
            f"{store.path}: no passage is found for any of {len(questions)} questions; add text to it with "
            f"`uptake index add {store.path}`"
        )
    return found
