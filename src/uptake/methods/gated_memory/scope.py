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


class _Words:
    """Edits by the words of their subjects, or prompts, or of what has neither."""

    def __init__(self, edits: Sequence[Passage], least: float, least_prompt: float) -> None:
        # One that was read again is one edit: its last reading counts.
        self._edits = sorted({edit.id: edit for edit in edits}.values(), key=lambda edit: edit.id)
        self._least = [least if edit.meta.get("subject") else least_prompt for edit in self._edits]
        self._keys = [_terms(_key(edit)) for edit in self._edits]
        self._whole = [_terms(edit.prompt or edit.text) for edit in self._edits]
        self._having: dict[str, list[int]] = defaultdict(list)
        for place, key in enumerate(self._keys):
            for term in key:
                self._having[term].append(place)
        spread = Counter(term for terms in self._whole for term in terms | set())
        spread.update(term for place, key in enumerate(self._keys) for term in key - self._whole[place])
        count = len(self._edits)
        self._weights = {term: math.log1p((count - n + 0.5) / (n + 0.5)) for term, n in spread.items()}

    def find(self, prompt: str, k: int) -> list[Passage]:
        asked = _terms(prompt)
        shared: dict[int, float] = defaultdict(float)
        for term in asked:
            for place in self._having.get(term, ()):
                shared[place] += self._weights[term]
        if not any(self._least):
            shared |= {place: shared.get(place, 0.0) for place in range(len(self._edits))}
        fitting = []
        for place, weight in shared.items():
            whole = sum(self._weights[term] for term in self._keys[place])
            share = weight / whole if whole else 1.0
            if share >= self._least[place] - 1e-9:
                beside = sum(self._weights.get(term, 0.0) for term in self._whole[place] & asked)
                fitting.append((-whole * share, -beside, place))
        return [self._edits[place] for _, _, place in sorted(fitting)[:k]]


def _key(edit: Passage) -> str:
    return edit.meta.get("subject") or edit.prompt or edit.text


def _terms(text: str) -> frozenset[str]:
    return frozenset(term for term, _ in spans(text))
