"""The scope by vectors: edits are searched as a datastore's passages are, by an encoder and by words."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.methods.gated_memory.scope import EditsByWords, Scope, distinct, terms
from uptake.text.encoders import DEFAULT_ENCODER, make_encoder
from uptake.text.types import Embedder, Passage

_KEPT = 8192  # texts whose vectors stay in memory: the edits', and those of the latest prompts


@dataclass(frozen=True)
class Vectors(Scope):
    """A prompt is about an edit where (1 - words) cos + words share is at least `least`.

    cos is between the vectors of the edit's prompt and of the one that is asked, by `encoder`; share is that
    of the words of the edit's subject, or else of its prompt, that the asked one holds, as the scope `words`
    weighs them. Words keep out prompts that ask the same of another subject.
    """

    encoder: str = DEFAULT_ENCODER
    least: float = 0.75
    words: float = 0.25

    def __post_init__(self) -> None:
        if not (0 <= self.words <= 1 and -1 <= self.least <= 1):
            raise BadInput(
                f"least {self.least}, words {self.words}: use a similarity of -1 to 1, and a share of 0 to 1"
            )

    def memory(self, edits: Sequence[Passage], lm: LM) -> "EditsByVectors":
        return EditsByVectors(self, edits, _encoder(self.encoder, str(lm.device)))


class EditsByVectors:
    """Edits by the vectors of their prompts, and by words."""

    def __init__(self, scope: Vectors, edits: Sequence[Passage], encoder: "_Encoder") -> None:
        self._edits = distinct(edits)
        self._scope, self._encoder = scope, encoder
        self._words = EditsByWords(self._edits)
        rows = [encoder.vector(edit.prompt or edit.text) for edit in self._edits]
        self._vectors = np.stack(rows) if rows else np.empty((0, encoder.dimensions))

    def find(self, prompt: str, k: int) -> list[Passage]:
        near = self.scores(prompt).tolist()
        places = [place for place, value in enumerate(near) if value >= self._scope.least - 1e-9]
        return [self._edits[place] for place in sorted(places, key=lambda at: (-near[at], at))[:k]]

    def scores(self, prompt: str) -> NDArray[np.float64]:
        """Return how like a prompt is to each edit, by the edits' ids."""
        # Summed row by row: how many edits there are rounds nothing of one's own score.
        found = (1 - self._scope.words) * (self._vectors * self._encoder.vector(prompt)).sum(axis=1)
        for place, share in self._words.shares(terms(prompt)).items():
            found[place] += self._scope.words * share
        return np.asarray(found)


class _Encoder:
    """Reads each text by itself, so that no other one rounds its vector, and keeps the latest."""

    def __init__(self, encoder: Embedder) -> None:
        self.dimensions = encoder.dimensions
        self._embed = encoder.embed
        self.vector = functools.lru_cache(maxsize=_KEPT)(self._read)

    def _read(self, text: str) -> NDArray[np.float64]:
        vector: NDArray[np.float64] = self._embed([text])[0].astype(np.float64)
        return vector


@functools.lru_cache(maxsize=2)
def _encoder(spec: str, device: str) -> _Encoder:
    return _Encoder(make_encoder(spec, device, dtype="float32"))
