"""What a stream writes down: one row a question, way and checkpoint, and the like for drift and cost.

Plain data, so that a report can be made from a file long after the run.
"""

from dataclasses import dataclass

from uptake.report.results import Header


@dataclass(frozen=True, slots=True)
class Answered:
    """One question under one way, asked once `taken` documents had been taken up."""

    method: str
    taken: int
    question: str
    group: str  # the unit of the bootstrap
    place: int  # of its document in the stream, from 1; 0 where it names none
    nats: float  # of the right answer
    tokens: int
    said: str
    f1: float
    exact: float


@dataclass(frozen=True, slots=True)
class Drifted:
    """KL(base || adapted) on one unrelated text, in nats summed over its tokens."""

    method: str
    taken: int
    text: str
    nats: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Spent:
    """What a way had spent once `taken` documents had been taken up; seconds are CPU seconds."""

    method: str
    taken: int
    tokens_trained: int = 0
    tokens_read: int = 0
    steps: int = 0
    take_seconds: float = 0.0
    ask_seconds: float = 0.0  # at this checkpoint alone


@dataclass(frozen=True, slots=True)
class Stopped:
    """A document, or the rehearsal after it, that could not be taken up: the state before it was kept."""

    method: str
    document: str
    place: int
    reason: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A question in words, for showing what was said to it."""

    question: str
    text: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StreamResults:
    """A whole stream. The base's rows stand under its name with `taken` 0: each question once."""

    header: Header
    answers: tuple[Answered, ...]
    drift: tuple[Drifted, ...] = ()
    costs: tuple[Spent, ...] = ()
    stopped: tuple[Stopped, ...] = ()
    shown: tuple[Asked, ...] = ()  # a few questions, evenly from the whole stream
