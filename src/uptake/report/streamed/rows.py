"""The rows of a stream: one a question, method and checkpoint, and the like for drift, cost and failures."""

from collections.abc import Mapping
from dataclasses import dataclass

from uptake.report.results import Row


@dataclass(frozen=True, slots=True)
class Answered(Row):
    """One question under one method, asked once `taken` documents had been read.

    Where it could not be asked `failed` says why, and it counts at the base's answer.
    """

    taken: int
    question: str
    group: str  # the unit of the bootstrap
    place: int  # of its document in the stream, from 1; 0 where it names none
    nats: float  # of the right answer
    tokens: int
    said: str
    f1: float
    exact: float
    failed: str = ""
    bytes: int = 0  # of the right answer, scored
    bytes_not_scored: int = 0  # which the tokenizer does not give back: neither they nor their nats count
    said_nats: float = 0.0  # of what was said, its end included
    said_tokens: int = 0  # 0 where nothing was generated


@dataclass(frozen=True, slots=True)
class Drifted(Row):
    """KL(base || adapted) on one unrelated text, in nats summed over its tokens."""

    taken: int
    text: str
    nats: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Spent(Row):
    """What a method had spent once `taken` documents had been read; seconds are CPU seconds."""

    taken: int
    tokens_trained: int = 0
    tokens_read: int = 0
    steps: int = 0
    retrieve_seconds: float = 0.0  # finding neighbours of documents, where there is a store
    adapt_seconds: float = 0.0
    gpu_seconds: float = 0.0  # of adapting, where there is a GPU
    ask_seconds: float = 0.0  # at this checkpoint alone
    prepare_seconds: float = 0.0  # of what was done once, such as opening an index: in none of the others
    short: int = 0  # documents behind which fewer neighbours were found than asked for


@dataclass(frozen=True, slots=True)
class DocumentFailed(Row):
    """A document, or the rehearsal after it, that could not be read: the state before it was kept."""

    document: str
    place: int
    reason: str


@dataclass(frozen=True, slots=True)
class Claimed(Row):
    """What a private method has kept once `taken` documents had been read: in words and in numbers."""

    taken: int
    said: str
    claim: Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True)
class ShownQuestion:
    """A question in words, for showing what was said to it."""

    question: str
    text: str
    answers: tuple[str, ...]
