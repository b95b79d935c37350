"""Whether a prompt is about an edit that is remembered, and which: the gate before an edited model.

A scope is a setting; on the edits it makes a memory, which finds those that a prompt is about. Order does
not matter: of two that fit alike the one of the lower id is nearer.
"""

import math
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from uptake.errors import BadInput
from uptake.lm.base import LM
from uptake.text.terms import spans
from uptake.text.types import Passage

Terms = frozenset[str]


class Memory(Protocol):
    """Edits by what they are about."""

    def find(self, prompt: str, k: int) -> list[Passage]:
        """Return at most k edits that a prompt is about, the nearest first; none where it is about none."""
        ...


class Scope(ABC):
    """How it is told whether a prompt is about an edit."""

    @abstractmethod
    def memory(self, edits: Sequence[Passage], lm: LM) -> Memory:
        """Return a memory of these edits, made of this base model."""


@dataclass(frozen=True)
class Always(Scope):
    """Every prompt is about the edits: those that share the rarest words with it, and else any."""

    def memory(self, edits: Sequence[Passage], lm: LM) -> Memory:
        return _Words(edits, 0.0, 0.0)


@dataclass(frozen=True)
class Words(Scope):
    """A prompt is about an edit whose subject's words it holds, or its prompt's where no subject is given.

    Words count as they are rare among the edits (BM25's weights): of a subject's at least the share `least`
    must be there, of a prompt's at least `least_prompt`.
    """

    least: float = 1.0
    least_prompt: float = 0.8

    def __post_init__(self) -> None:
        if not (0 < self.least <= 1 and 0 < self.least_prompt <= 1):
            raise BadInput(
                f"least {self.least}, least_prompt {self.least_prompt}: use shares above 0, at most 1"
            )

    def memory(self, edits: Sequence[Passage], lm: LM) -> Memory:
        return _Words(edits, self.least, self.least_prompt)


class EditsByWords:
    """Edits by the words of their subjects, or prompts, or of what has neither; each word as it is rare."""

    def __init__(self, edits: Sequence[Passage]) -> None:
        self._keys = [terms(_key(edit)) for edit in edits]
        self._whole = [terms(edit.prompt or edit.text) for edit in edits]
        self._having: dict[str, list[int]] = defaultdict(list)
        for place, key in enumerate(self._keys):
            for term in key:
                self._having[term].append(place)
        spread = Counter(term for whole in self._whole for term in whole)
        spread.update(term for place, key in enumerate(self._keys) for term in key - self._whole[place])
        count = len(edits)
        self._weights = {term: math.log1p((count - n + 0.5) / (n + 0.5)) for term, n in spread.items()}

    def shares(self, asked: Terms) -> dict[int, float]:
        """Return the places of edits that share words with a prompt, and the share of their weight."""
        shared: dict[int, float] = defaultdict(float)
        for term in asked:
            for place in self._having.get(term, ()):
                shared[place] += self._weights[term]
        return {place: weight / self.weight(place) for place, weight in shared.items()}

    def weight(self, place: int) -> float:
        """Return the weight of all words by which an edit is known."""
        return sum(self._weights[term] for term in self._keys[place])

    def beside(self, place: int, asked: Terms) -> float:
        """Return the weight of the words that a prompt shares with an edit's own, not its subject alone."""
        return sum(self._weights.get(term, 0.0) for term in self._whole[place] & asked)


class _Words:
    """Edits that are found by words alone."""

    def __init__(self, edits: Sequence[Passage], least: float, least_prompt: float) -> None:
        self._edits = distinct(edits)
        self._least = [least if edit.meta.get("subject") else least_prompt for edit in self._edits]
        self._words = EditsByWords(self._edits)

    def find(self, prompt: str, k: int) -> list[Passage]:
        asked = terms(prompt)
        shares = self._words.shares(asked)
        if not any(self._least):
            shares |= {place: shares.get(place, 0.0) for place in range(len(self._edits))}
        fitting = [
            (-self._words.weight(place) * share, -self._words.beside(place, asked), place)
            for place, share in shares.items()
            if share >= self._least[place] - 1e-9
        ]
        return [self._edits[place] for _, _, place in sorted(fitting)[:k]]


def distinct(edits: Sequence[Passage]) -> list[Passage]:
    """Return edits in the order of their ids; of one that was read again the last reading counts."""
    return sorted({edit.id: edit for edit in edits}.values(), key=lambda edit: edit.id)


def _key(edit: Passage) -> str:
    return edit.meta.get("subject") or edit.prompt or edit.text


def terms(text: str) -> Terms:
    """Return the words of a text, each once."""
    return frozenset(term for term, _ in spans(text))
