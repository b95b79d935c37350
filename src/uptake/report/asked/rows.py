"""The rows of open questions: one a question and method: what was said, its marks, what was read."""

from collections.abc import Mapping
from dataclasses import dataclass

from uptake.report.results import Row


@dataclass(frozen=True, slots=True)
class Asked(Row):
    """One question under one method, and what the base made of it. Where it failed its marks are the base's.

    `read` are the ids of the documents that the passages read are of, best first. `right_place` is the place
    among them of the first that is right, 0 where none is, -1 where the question names no document.
    """

    k: int
    question: str
    group: str  # the unit of the bootstrap: the document that answers it
    nats: float  # of the first right answer
    said: str
    exact: float
    f1: float
    contains: float
    base_nats: float
    base_exact: float
    base_f1: float
    base_contains: float
    said_nats: float = 0.0  # of what was said, its end included
    said_tokens: int = 0  # 0 where nothing was generated
    base_said_nats: float = 0.0
    base_said_tokens: int = 0
    read: tuple[str, ...] = ()
    right_place: int = -1
    rests_on: str = ""  # the document of the first passage read that holds what was said; "" where none does
    retrieve_seconds: float = 0.0
    train_seconds: float = 0.0
    ask_seconds: float = 0.0
    failed: str = ""


@dataclass(frozen=True, slots=True)
class ShownAsked:
    """A question in words: the right answers, and of each method what it said and the passage it rests on."""

    question: str
    answers: tuple[str, ...]
    said: Mapping[str, str]
    passages: Mapping[str, str]
